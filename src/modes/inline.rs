//! The mode `inline`: requests are served on the event loop's thread, with blocking calls, one at a
//! time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::service::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, RunContext, ServiceRunner,
    SessionFactory, make_handler,
};
use crate::accepted::{Accepted, AcceptedStream};
use crate::address::Peer;
use crate::blocking::{
    InterruptibleWait, OtherClients, Served, Session, SessionCx, Standing, WaitStrategy,
};
use crate::conversation::Scratch;
use crate::datagram::Datagram;
use crate::error::UnsupportedError;
use crate::event_loop::{
    DatagramDispatcher, Dispatcher, LingeringConnection, LoopCx, NewConnection, StreamDispatcher,
};
use crate::limits::{GRACE, WhenFull};
use crate::server_state::{ServerState, StopOutcome, StopRequester};
use crate::sync::AtomicU8;
use crate::sys::{RecvMeta, SignalWatch};
use crate::token::Token;

/// The mode that serves one request at a time to its end, while all others wait: Python's
/// `TCPServer` without a mix-in.
///
/// While another client waits, a connection that has been open for half a second without a whole
/// message is closed, as [`WhenFull::CloseSilent`] says; with another
/// [`Limits::when_full`](crate::Limits::when_full) it is not.
///
/// In the guide: [`choosing_a_mode`](crate::guide::choosing_a_mode),
/// [`embedding`](crate::guide::embedding), [`reaching_others`](crate::guide::reaching_others),
/// [`shared_state`](crate::guide::shared_state).
///
/// ```
/// use socketserver::{Inline, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Inline) // one client after the other
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # let _ = server;
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Inline;

/// The state of a service between runs: its requests are served one at a time, on the loop's thread.
struct InlineRunner<T, S> {
    start: Box<dyn MakeFactory<T>>,
    serve: S,
}

pub(super) fn inline<T: 'static, S: SessionFactory<T>>(
    start: Box<dyn MakeFactory<T>>,
    serve: S,
) -> ServiceRunner {
    ServiceRunner(Box::new(InlineRunner { start, serve }))
}

impl<T: 'static, S: SessionFactory<T>> ModeRunner for InlineRunner<T, S> {
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
        Ok(Box::new(InlineDispatcher::new(self, run_cx)?))
    }
}

struct InlineDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    listener_handle: ListenerHandle,
    listener: Token,
    /// Whether a silent connection is closed in favor of a client that waits.
    closes_silent: bool,
    driver: InlineDriver,
    /// How the last request ended, if a stop began while it was served.
    stop_outcome: Option<StopOutcome>,
}

impl<'a, T: 'static, S: SessionFactory<T>> InlineDispatcher<'a, T, S> {
    fn new(runner: &'a mut InlineRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        Ok(InlineDispatcher {
            make: runner.start.start(run_cx)?,
            serve: &runner.serve,
            listener_handle: run_cx.listener_handle.clone(),
            listener: run_cx.listener,
            closes_silent: run_cx.listens
                && runner.serve.limits().when_full == WhenFull::CloseSilent,
            driver: InlineDriver {
                control: run_cx.control.clone(),
                stop: run_cx.stop.clone(),
                signals: run_cx.signals.clone(),
                drain: run_cx.drain,
            },
            stop_outcome: None,
        })
    }

    fn serve(&mut self, session: impl Session, others: Option<OtherClients<'_>>, cx: &mut LoopCx) {
        let (served, stop_outcome) = self.driver.serve(Box::new(session), others, &mut cx.scratch);
        let Served { origin, reason, lingering, .. } = served;
        if let Some(lingering) = lingering {
            // The loop lingers, since lingering here would delay the next request.
            match LingeringConnection::new(lingering) {
                Ok(lingers) => cx.register(NewConnection {
                    descriptor: lingers.descriptor(),
                    source: Box::new(lingers),
                    parent: self.listener,
                }),
                Err(_) => cx.scratch.tally.closed += 1,
            }
        }
        cx.end(origin.id, &origin.peer, reason);
        self.stop_outcome = stop_outcome;
        if self.driver.is_stopping() {
            // Nothing more is accepted, not even in this turn.
            self.driver.stop.request();
        }
    }
}

impl<T, S> Dispatcher for InlineDispatcher<'_, T, S> {
    fn burst(&self) -> usize {
        1
    }

    fn stop_outcome(&self) -> Option<StopOutcome> {
        self.stop_outcome
    }
}

impl<T: 'static, S: SessionFactory<T>> StreamDispatcher for InlineDispatcher<'_, T, S> {
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx) {
        let Some(made) = make_handler(&mut self.make, &stream.accepted(), cx) else {
            cx.scratch.tally.closed += 1;
            return;
        };
        let AcceptedStream { socket, peer, id, permit } = stream;
        let (socket, now) = (Arc::new(socket), cx.turn.now);
        let session = self.serve.stream(made, &self.listener_handle, socket, peer, id, now);
        let listener = self.listener_handle.reply_socket.socket.clone();
        let others = OtherClients { listener: &listener, from: now + GRACE };
        self.serve(session, self.closes_silent.then_some(others), cx);
        drop(permit);
    }
}

impl<T: 'static, S: SessionFactory<T>> DatagramDispatcher for InlineDispatcher<'_, T, S> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let reply_socket = &self.listener_handle.reply_socket;
        let accepted = Accepted::datagram(&peer, reply_socket, received.info);
        let Some(made) = make_handler(&mut self.make, &accepted, cx) else { return };
        let id = accepted.known_id();
        let datagram = Datagram::new(bytes, peer, id, received);
        let session = self.serve.datagram(made, &self.listener_handle, datagram);
        self.serve(session, None, cx);
    }
}

/// Serves sessions on the loop's thread.
struct InlineDriver {
    control: Arc<ServerState>,
    stop: StopRequester,
    /// The watch for signals that request a stop, if there is one.
    signals: Option<SignalWatch>,
    drain: Duration,
}

impl InlineDriver {
    /// Whether the server must stop.
    fn is_stopping(&self) -> bool {
        self.control.stop_requested() || self.signals.as_ref().is_some_and(SignalWatch::is_due)
    }

    /// Serves a session to its end. Also returns how it ended, if a stop began during it.
    fn serve(
        &self,
        session: Box<dyn Session + '_>,
        others: Option<OtherClients<'_>>,
        scratch: &mut Scratch,
    ) -> (Served, Option<StopOutcome>) {
        let mailbox = &self.control.mailbox;
        // A thread that posts a stop request wakes this thread only if the mailbox knows that it waits.
        let mut prepare_and_ask = || {
            mailbox.prepare_park_elsewhere();
            self.is_stopping()
        };
        let mut wakeups = vec![mailbox.wakeup()];
        wakeups.extend(self.signals.as_ref().map(SignalWatch::wakeup));
        let standing = AtomicU8::default();
        let mut cx = SessionCx {
            scratch,
            leaves_lingering: true,
            wait: WaitStrategy::Interruptible(InterruptibleWait {
                wakeups: &wakeups,
                child_stop_request: self.control.child_stop_request().map(|request| &**request),
                is_stopping: &mut prepare_and_ask,
                drain: self.drain,
                deadline: None,
                stop_outcome: None,
                standing: Standing::new(&standing),
                others,
            }),
            no_sender: UnsupportedError::InlineSender,
            stop: &self.stop,
        };
        let served = session.run(&mut cx);
        let stop_outcome = match &mut cx.wait {
            WaitStrategy::Interruptible(wait) => wait.stop_outcome(),
            _ => None,
        };
        mailbox.wake_up();
        (served, stop_outcome)
    }
}
