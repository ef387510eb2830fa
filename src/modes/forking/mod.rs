//! The mode `forking`: a child process serves each request.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use super::service::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, Requirements, RunContext,
    ServiceRunner, SessionFactory,
};
use crate::accepted::{Accepted, AcceptedStream};
use crate::address::{LogPeer, Peer};
use crate::blocking::{Served, Session};
use crate::datagram::Datagram;
use crate::error::{CloseReason, Error};
use crate::event_loop::{
    DatagramDispatcher, Dispatcher, ListenerHooks, LoopAccess, LoopCx, Silent, StreamDispatcher,
};
use crate::guard;
use crate::guard::log;
use crate::server_state::StopRequester;
use crate::sys::{self, Forked, InChild, RecvMeta};
use children::{ChildCx, Children, ServedBy};

mod children;

/// The mode that serves each request in its own child process: Python's `ForkingMixIn`. Handlers do
/// not share memory; each request costs a fork.
///
/// A fork is sound only in a process with one thread. So a server with this mode refuses services
/// whose mode starts threads, and a fork fails with [`Error::Mode`] while other threads run. Bind
/// and serve on the main thread. A thread that has ended and been joined does not count. On Linux
/// the threads are counted in `/proc/self/task`, or, without `/proc`, by
/// [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html); if neither works, a fork
/// fails as well. Other systems do not report the number of threads; there the user must ensure it.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`embedding`](crate::guide::embedding),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`shared_state`](crate::guide::shared_state), [`testing`](crate::guide::testing).
///
/// ```
/// use socketserver::{Forking, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Forking::default().max_children(40))
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forking {
    max_children: usize,
    allow_threads: bool,
}

impl Forking {
    pub(super) const DEFAULT: Forking = Forking { max_children: 40, allow_threads: false };

    /// Sets Python's `max_children`, 40 by default: with as many child processes the listener
    /// pauses, and clients wait in the kernel's queue. The event loop continues.
    #[must_use]
    pub fn max_children(mut self, children: usize) -> Self {
        self.max_children = children.max(1);
        self
    }

    /// Forks although the process has other threads.
    ///
    /// Use this only if no other thread can hold a lock that the handler needs in the child,
    /// because it would stay locked there without limit: a lock of the allocator, of standard
    /// output, of a logger, or of the user's code.
    ///
    /// ```
    /// use socketserver::Forking;
    ///
    /// // The other thread only waits for signals, and holds no lock.
    /// let forking = Forking::default().allow_threads(true);
    /// # let _ = forking;
    /// ```
    #[must_use]
    pub fn allow_threads(mut self, allowed: bool) -> Self {
        self.allow_threads = allowed;
        self
    }
}

impl Default for Forking {
    fn default() -> Self {
        Forking::DEFAULT
    }
}

/// The state of a service between runs: a child process serves each request.
struct ForkRunner<T, S> {
    start: Box<dyn MakeFactory<T>>,
    serve: S,
    children: Children,
}

pub(super) fn forking<T: 'static, S: SessionFactory<T>>(
    mode: Forking,
    start: Box<dyn MakeFactory<T>>,
    serve: S,
) -> ServiceRunner {
    ServiceRunner(Box::new(ForkRunner { start, serve, children: Children::new(mode) }))
}

impl<T: 'static, S: SessionFactory<T>> ModeRunner for ForkRunner<T, S> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(ForkDispatcher { of_connections: true, ..ForkDispatcher::new(self, run_cx)? }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(ForkDispatcher::new(self, run_cx)?))
    }

    fn close(&mut self) {
        self.children.terminate();
    }

    fn requirements(&self) -> Requirements {
        let allows_threads = self.children.threads_allowed();
        Requirements { one_thread: true, allows_threads, ..Requirements::default() }
    }
}

struct ForkDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    children: &'a mut Children,
    listener_handle: ListenerHandle,
    stop: StopRequester,
    /// Requests for which a fork is due.
    pending: VecDeque<Incoming>,
    /// Whether requests are connections, so that the end of a child is the end of a connection.
    of_connections: bool,
}

impl<'a, T: 'static, S: SessionFactory<T>> ForkDispatcher<'a, T, S> {
    fn new(runner: &'a mut ForkRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let ForkRunner { start, serve, children } = runner;
        children.begin(run_cx.drain, &run_cx.control.published);
        Ok(ForkDispatcher {
            make: start.start(run_cx)?,
            serve,
            children,
            listener_handle: run_cx.listener_handle.clone(),
            stop: run_cx.stop.clone(),
            pending: VecDeque::new(),
            of_connections: false,
        })
    }

    /// Queues a request; the fork follows after the current call of the loop.
    fn fork_for(&mut self, request: Incoming, cx: &mut LoopCx) {
        self.pending.push_back(request);
        cx.defer();
    }

    /// How many more requests can be taken.
    fn room(&self) -> usize {
        self.children.room().saturating_sub(self.pending.len())
    }

    /// Forks for a request. The child closes the descriptors of the event loop and serves the
    /// request; it does not return.
    fn fork(
        &mut self,
        request: Incoming,
        hooks: &mut dyn ListenerHooks,
        access: &mut dyn LoopAccess,
    ) {
        let (mut request, prepared) = (request, ServedBy::new(self.of_connections));
        let held = self.listener_handle.reply_socket.hold();
        let forked = prepared.and_then(|served_by| {
            fork_if_sound(self.children.threads_allowed()).map(|forked| (forked, served_by))
        });
        drop(held);
        match forked {
            Ok((Forked::Child(process), served_by)) => process.run(|process| {
                self.pending.clear();
                // The reply to a datagram is sent on the socket of the listener.
                let keep_listener = matches!(request, Incoming::Datagram(_));
                if keep_listener {
                    self.listener_handle.reply_socket.enter_child();
                }
                access.close_all_but(keep_listener, &mut |descriptor| process.close(descriptor));
                let cx = access.cx();
                cx.run.memory.enter_child();
                self.serve_in_child(request, process, &served_by, &mut |origin, reason| {
                    hooks.fault(origin, reason, cx);
                })
            }),
            Ok((Forked::Parent(child), served_by)) => {
                if let Err(error) = access.watch(child.as_fd().as_raw_fd()) {
                    log::warn!(
                        "cannot register the end of a child process with the poller: {error}"
                    );
                }
                self.children.add(served_by.child(child, &mut request));
            }
            Err(error) => {
                let cx = access.cx();
                cx.scratch.tally.rejected_full += 1;
                cx.scratch.tally.closed += u64::from(self.of_connections);
                // There may be no child whose end would resume the listener.
                cx.turn.capacity_freed = true;
                match error {
                    Error::Mode(_) => cx.run.failed = Some(error),
                    error => log::error!("a request is rejected: {error:#}"),
                }
            }
        }
    }

    /// In the child: makes the handler, as Python does, and serves the request. Returns the exit code.
    fn serve_in_child(
        &mut self,
        request: Incoming,
        process: &InChild,
        served_by: &ServedBy,
        fault: &mut dyn FnMut(&LogPeer, &CloseReason),
    ) -> i32 {
        let origin = match &request {
            Incoming::Stream(stream) => LogPeer { id: Some(stream.id), peer: stream.peer.clone() },
            Incoming::Datagram(datagram) => LogPeer { id: None, peer: datagram.peer.clone() },
        };
        let mut connection = None;
        let made = guard::call(|| {
            let session: Box<dyn Session> = match request {
                Incoming::Stream(stream) => {
                    let made = self.make.make(&stream.accepted());
                    let AcceptedStream { socket, peer, id, permit } = stream;
                    // The parent has its copy of the permit.
                    std::mem::forget(permit);
                    let socket = connection.insert(Arc::new(socket)).clone();
                    let (handle, now) = (&self.listener_handle, Instant::now());
                    Box::new(self.serve.stream(made, handle, socket, peer, id, now))
                }
                Incoming::Datagram(mut datagram) => {
                    let reply_socket = &self.listener_handle.reply_socket;
                    let accepted = Accepted::datagram(&datagram.peer, reply_socket, datagram.info);
                    let made = self.make.make(&accepted);
                    datagram.id = accepted.known_id();
                    Box::new(self.serve.datagram(made, &self.listener_handle, *datagram))
                }
            };
            session
        });
        match made {
            Ok(session) => {
                let fault = |served: &Served| fault(&served.origin, &served.reason);
                let connection = connection.as_deref();
                let child = ChildCx { process, stop: &self.stop, standing: served_by.standing() };
                self.children.serve_in_child(session, connection, &child, fault)
            }
            Err(message) => {
                fault(&origin, &CloseReason::Panic(message));
                1
            }
        }
    }
}

impl<T: 'static, S: SessionFactory<T>> Dispatcher for ForkDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.room() > 0
    }

    fn burst(&self) -> usize {
        self.room().max(1)
    }

    fn on_ready(&mut self, cx: &mut LoopCx) {
        let reaped = self.children.reap(&mut cx.scratch.tally);
        cx.turn.capacity_freed |= reaped > 0;
    }

    fn watched(&self) -> Vec<RawFd> {
        self.children.watched()
    }

    fn run_deferred(&mut self, hooks: &mut dyn ListenerHooks, access: &mut dyn LoopAccess) {
        while let Some(request) = self.pending.pop_front() {
            self.fork(request, hooks, access);
        }
    }

    fn stop(&mut self) {
        self.children.terminate();
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        self.children.kill(&mut cx.scratch.tally);
    }

    fn close_silent(&mut self, mature: u64, _for_waiting: bool) -> Silent {
        self.children.close_silent(mature)
    }

    fn in_flight(&self) -> usize {
        self.children.len()
    }

    fn ended_idle(&self) -> usize {
        self.children.ended_idle()
    }
}

impl<T: 'static, S: SessionFactory<T>> StreamDispatcher for ForkDispatcher<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx) {
        self.fork_for(Incoming::Stream(stream), cx);
    }
}

impl<T: 'static, S: SessionFactory<T>> DatagramDispatcher for ForkDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let datagram = Datagram::new(bytes, peer, None, received);
        self.fork_for(Incoming::Datagram(Box::new(datagram)), cx);
    }
}

/// A request that waits for its child process.
pub(super) enum Incoming {
    Stream(AcceptedStream),
    Datagram(Box<Datagram>),
}

/// Forks, unless other threads make the fork unsound.
fn fork_if_sound(allow_threads: bool) -> Result<Forked, Error> {
    match if allow_threads { Ok(true) } else { sys::is_only_thread() } {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::Mode(
                "this process has other threads, so a fork is unsound: serve on the only thread, \
                 before others are started, or use Forking::allow_threads(true)"
                    .to_owned(),
            ));
        }
        Err(error) => {
            return Err(Error::Mode(format!(
                "it is not known whether this process has other threads, beside which a fork is \
                 unsound: there is no /proc, and unshare(2) fails: {error}; provide one of the two, or \
                 use Forking::allow_threads(true)"
            )));
        }
    }
    // Otherwise both processes would write what is buffered for standard output.
    let _ = io::stdout().flush();
    sys::fork().map_err(Error::Loop)
}
