//! Requests under `inline`, `threading`, `pool` and `forking`: the loop accepts them, and they are
//! served by blocking.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use socket2::Socket;

use super::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, Requirements, RunContext,
    ServiceRunner, SessionFactory, make_handler,
};
use crate::address::Peer;
use crate::blocking::{Datagram, ReplySocket, Served, Session};
use crate::error::CloseReason;
use crate::event_loop::{
    DatagramDispatcher, Dispatcher, Incoming, LingeringConnection, LoopCx, NewConnection,
    PendingFork, StreamDispatcher,
};
use crate::guard;
use crate::modes::{
    Children, CompletionNotifier, Forking, InlineRunner, Pool, SessionJob, Threading, Threads, When,
};
use crate::sys::{Child, InChild, RecvMeta};
use crate::token::Token;

/// One request at a time, on the loop's thread.
struct InlineServiceRunner<T, S> {
    start: Box<dyn MakeFactory<T>>,
    serve: S,
}

pub(super) fn inline<T: 'static, S: SessionFactory<T>>(
    start: Box<dyn MakeFactory<T>>,
    serve: S,
) -> ServiceRunner {
    ServiceRunner(Box::new(InlineServiceRunner { start, serve }))
}

impl<T: 'static, S: SessionFactory<T>> ModeRunner for InlineServiceRunner<T, S> {
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(InlineDispatcher::new(self, run_cx)?))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        run_cx.listener_handle.reply_socket.retried_by(&run_cx.control.mailbox, run_cx.listener);
        Ok(Box::new(InlineDispatcher::new(self, run_cx)?))
    }
}

struct InlineDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    listener_handle: ListenerHandle,
    listener: Token,
    runner: InlineRunner<'static>,
}

impl<'a, T: 'static, S: SessionFactory<T>> InlineDispatcher<'a, T, S> {
    fn new(runner: &'a mut InlineServiceRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let signals = run_cx.signals.clone();
        let (control, asked) = (run_cx.control.clone(), run_cx.control.clone());
        let wakeup = signals.as_ref().map(|signals| signals.wakeup());
        let is_stopping = move || {
            control.stop_requested()
                || control.mailbox.asks_shutdown()
                || signals.as_ref().is_some_and(|signals| signals.is_due())
        };
        Ok(InlineDispatcher {
            make: runner.start.start()?,
            serve: &runner.serve,
            listener_handle: run_cx.listener_handle.clone(),
            listener: run_cx.listener,
            runner: InlineRunner::new(
                run_cx.control.mailbox.clone(),
                wakeup,
                run_cx.control.child_stop_request().cloned(),
                is_stopping,
                move || asked.request_stop(),
                run_cx.drain,
            ),
        })
    }

    fn serve(&mut self, session: impl Session, cx: &mut LoopCx) {
        let (served, stop_outcome) = self.runner.serve(Box::new(session), &mut cx.tally);
        let Served { peer, reason, lingering, .. } = served;
        if let Some(lingering) = lingering {
            // On the loop, since it would hold up the next request here.
            match LingeringConnection::new(lingering) {
                Ok(lingers) => cx.register(NewConnection {
                    descriptor: lingers.descriptor(),
                    source: Box::new(lingers),
                    parent: self.listener,
                }),
                Err(_) => cx.tally.closed += 1,
            }
        }
        cx.end(&peer, reason);
        cx.inline_outcome = stop_outcome;
        cx.shutdown |= self.runner.is_stopping();
    }
}

impl<T, S> Dispatcher for InlineDispatcher<'_, T, S> {
    fn burst(&self) -> usize {
        1
    }
}

impl<T: 'static, S: SessionFactory<T>> StreamDispatcher for InlineDispatcher<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        let socket = Arc::new(socket);
        let Some(session) = make_handler(&peer, cx, || {
            self.serve.stream(self.make.make(&peer), &self.listener_handle, socket, peer.clone())
        }) else {
            cx.tally.closed += 1;
            return;
        };
        self.serve(session, cx);
    }
}

impl<T: 'static, S: SessionFactory<T>> DatagramDispatcher for InlineDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        let session = self.serve.datagram(
            handler,
            &self.listener_handle,
            Datagram::new(bytes, peer, received),
        );
        self.serve(session, cx);
    }

    fn reply_socket(&self) -> Option<Arc<ReplySocket>> {
        Some(self.listener_handle.reply_socket.clone())
    }
}

/// Each request in a thread of its own, while it lasts.
struct ThreadRunner<T, S> {
    start: Box<dyn MakeFactory<T>>,
    serve: S,
    threads: Threads,
    /// Made with the first run: a request may end in a later one than it came in.
    notifier: Option<Arc<CompletionNotifier>>,
}

pub(super) fn threading<T, S>(
    mode: Threading,
    start: Box<dyn MakeFactory<T>>,
    serve: S,
) -> ServiceRunner
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    ServiceRunner(Box::new(ThreadRunner {
        start,
        serve,
        threads: Threads::for_each_request(mode),
        notifier: None,
    }))
}

pub(super) fn pool<T, S>(mode: Pool, start: Box<dyn MakeFactory<T>>, serve: S) -> ServiceRunner
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    ServiceRunner(Box::new(ThreadRunner {
        start,
        serve,
        threads: Threads::pooled(mode),
        notifier: None,
    }))
}

impl<T, S> ModeRunner for ThreadRunner<T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        run_cx.listener_handle.reply_socket.retried_by(&run_cx.control.mailbox, run_cx.listener);
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn requirements(&self) -> Requirements {
        Requirements { threads: true, ..Requirements::default() }
    }
}

struct ThreadDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    threads: &'a Threads,
    listener_handle: ListenerHandle,
    notifier: Arc<CompletionNotifier>,
    run: usize,
}

impl<'a, T, S> ThreadDispatcher<'a, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn new(runner: &'a mut ThreadRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let ThreadRunner { start, serve, threads, notifier } = runner;
        let notifier =
            notifier.get_or_insert_with(|| Arc::new(completion_notifier(run_cx))).clone();
        let run = run_cx.control.mailbox.run();
        threads.active.reopen();
        threads.count_into(&run_cx.control.published);
        let listener_handle = run_cx.listener_handle.clone();
        Ok(ThreadDispatcher {
            make: start.start()?,
            serve,
            threads,
            listener_handle,
            notifier,
            run,
        })
    }

    /// Whether a request is turned away, rather than left in the kernel's queue.
    fn rejects(&self, cx: &mut LoopCx) -> bool {
        let rejected =
            self.threads.when_full == When::Reject && !self.threads.has_room(&self.notifier);
        cx.tally.rejected_full += u64::from(rejected);
        rejected
    }
}

fn completion_notifier(run_cx: &RunContext<'_>) -> CompletionNotifier {
    let RunContext { control, service, .. } = run_cx;
    CompletionNotifier::new(control.mailbox.clone(), control.published.clone(), *service)
}

impl<T, S> Dispatcher for ThreadDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.threads.when_full == When::Reject || self.threads.has_room(&self.notifier)
    }

    fn tell_ends(&mut self) {
        self.notifier.notify_on_completion();
    }

    fn burst(&self) -> usize {
        self.threads.room()
    }

    fn stop(&mut self) {
        self.threads.stop(&self.notifier);
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        cx.tally.closed += self.threads.abort_all() as u64;
    }

    fn in_flight(&self) -> usize {
        self.threads.load()
    }

    fn ended_idle(&self) -> usize {
        self.threads.ended_idle()
    }
}

impl<T, S> StreamDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        if self.rejects(cx) {
            cx.tally.closed += 1;
            return;
        }
        let socket = Arc::new(socket);
        let Some(session) = make_handler(&peer, cx, || {
            self.serve.stream(
                self.make.make(&peer),
                &self.listener_handle,
                socket.clone(),
                peer.clone(),
            )
        }) else {
            cx.tally.closed += 1;
            return;
        };
        let registration = Some(self.threads.active.register(socket));
        let session = Box::new(session);
        self.threads.assign(SessionJob {
            session,
            registration,
            notifier: self.notifier.clone(),
            run: self.run,
        });
    }
}

impl<T, S> DatagramDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        if self.rejects(cx) {
            return;
        }
        let Some(handler) = make_handler(&peer, cx, || self.make.make(&peer)) else { return };
        let datagram = Datagram::new(bytes, peer, received);
        let session = Box::new(self.serve.datagram(handler, &self.listener_handle, datagram));
        let (notifier, run) = (self.notifier.clone(), self.run);
        self.threads.assign(SessionJob { session, registration: None, notifier, run });
    }

    fn reply_socket(&self) -> Option<Arc<ReplySocket>> {
        Some(self.listener_handle.reply_socket.clone())
    }
}

/// Each request in a process of its own.
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
        Requirements { one_thread: true, ..Requirements::default() }
    }
}

struct ForkDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    children: &'a mut Children,
    listener_handle: ListenerHandle,
    listener: Token,
    /// The end of a child is the end of a connection.
    of_connections: bool,
}

impl<'a, T: 'static, S: SessionFactory<T>> ForkDispatcher<'a, T, S> {
    fn new(runner: &'a mut ForkRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let ForkRunner { start, serve, children } = runner;
        let asked = run_cx.control.child_stop_request().cloned();
        children.begin(asked.expect("made when a service that forks is added"), run_cx.drain);
        Ok(ForkDispatcher {
            make: start.start()?,
            serve,
            children,
            listener_handle: run_cx.listener_handle.clone(),
            listener: run_cx.listener,
            of_connections: false,
        })
    }

    fn fork_for(&mut self, request: Incoming, cx: &mut LoopCx) {
        self.children.expect_one();
        let allow_threads = self.children.threads_allowed();
        cx.fork(PendingFork { request, parent: self.listener, allow_threads });
    }
}

impl<T: 'static, S: SessionFactory<T>> Dispatcher for ForkDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.children.has_room()
    }

    fn burst(&self) -> usize {
        self.children.room().max(1)
    }

    fn look(&mut self, cx: &mut LoopCx) {
        let reaped = self.children.reap();
        if self.of_connections {
            cx.tally.closed += reaped as u64;
        }
        cx.capacity_freed |= reaped > 0;
    }

    fn watched(&self) -> Vec<RawFd> {
        self.children.watched()
    }

    fn forked(&mut self, child: Option<Child>) {
        self.children.forked(child);
    }

    /// The child's whole life. Whoever answers is made here, as Python makes its handlers.
    fn serve_in_child(
        &mut self,
        request: Incoming,
        process: &InChild,
        fault: &mut dyn FnMut(&Peer, &CloseReason),
    ) -> i32 {
        let peer = match &request {
            Incoming::Stream(_, peer) => peer.clone(),
            Incoming::Datagram(datagram) => datagram.peer.clone(),
        };
        let mut connection = None;
        let make_handler = guard::call(|| {
            let handler = self.make.make(&peer);
            let session: Box<dyn Session> = match request {
                Incoming::Stream(socket, peer) => {
                    let socket = connection.insert(Arc::new(socket)).clone();
                    Box::new(self.serve.stream(handler, &self.listener_handle, socket, peer))
                }
                Incoming::Datagram(datagram) => {
                    Box::new(self.serve.datagram(handler, &self.listener_handle, datagram))
                }
            };
            session
        });
        match make_handler {
            Ok(session) => {
                self.children.serve_in_child(session, connection.as_deref(), process, |served| {
                    fault(&served.peer, &served.reason);
                })
            }
            Err(message) => {
                fault(&peer, &CloseReason::Panic(message));
                1
            }
        }
    }

    fn stop(&mut self) {
        self.children.terminate();
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        let killed = self.children.kill();
        if self.of_connections {
            cx.tally.closed += killed as u64;
        }
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

    fn dispatch(&mut self, socket: Socket, peer: Peer, cx: &mut LoopCx) {
        self.fork_for(Incoming::Stream(socket, peer), cx);
    }
}

impl<T: 'static, S: SessionFactory<T>> DatagramDispatcher for ForkDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        self.fork_for(Incoming::Datagram(Datagram::new(bytes, peer, received)), cx);
    }
}
