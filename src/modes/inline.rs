//! The mode `inline`: requests are served on the loop's own thread, by blocking, one at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::service::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, RunContext, ServiceRunner,
    SessionFactory, make_handler,
};
use crate::address::Peer;
use crate::blocking::{InterruptibleWait, Served, Session, SessionCx, WaitStrategy};
use crate::conversation::OutputBuffer;
use crate::conversation::READ_SIZE;
use crate::counters::Tally;
use crate::datagram::Datagram;
use crate::error::UnsupportedError;
use crate::event_loop::{
    DatagramDispatcher, Dispatcher, LingeringConnection, LoopCx, NewConnection, StreamDispatcher,
};
use crate::mailbox::Mailbox;
use crate::server_state::StopOutcome;
use crate::sys::{RecvMeta, Wakeup};
use crate::token::Token;

/// One request at a time, to its end, while all others wait: Python's `TCPServer` without a mix-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Inline;

/// What a service keeps between runs: its requests are served one at a time, on the loop's thread.
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
    driver: InlineDriver<'static>,
}

impl<'a, T: 'static, S: SessionFactory<T>> InlineDispatcher<'a, T, S> {
    fn new(runner: &'a mut InlineRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
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
            driver: InlineDriver::new(
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
        let (served, stop_outcome) = self.driver.serve(Box::new(session), &mut cx.tally);
        let Served { peer, reason, lingering, .. } = served;
        if let Some(lingering) = lingering {
            // On the loop, since here it would delay the next request.
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
        cx.shutdown |= self.driver.is_stopping();
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
}

/// Serves sessions on the loop's thread.
struct InlineDriver<'a> {
    mailbox: Arc<Mailbox>,
    /// Readable when a signal requests a stop, if signals do.
    signals: Option<&'static Wakeup>,
    /// Readable when a child process requests a stop, if the server forks.
    child_stop_request: Option<Arc<Wakeup>>,
    /// Whether the server is to stop.
    is_stopping: Box<dyn FnMut() -> bool + 'a>,
    on_shutdown: Box<dyn Fn() + 'a>,
    drain: Duration,
    buffer: Box<[u8]>,
    output_buffer: OutputBuffer,
}

impl<'a> InlineDriver<'a> {
    fn new(
        mailbox: Arc<Mailbox>,
        signals: Option<&'static Wakeup>,
        child_stop_request: Option<Arc<Wakeup>>,
        is_stopping: impl FnMut() -> bool + 'a,
        on_shutdown: impl Fn() + 'a,
        drain: Duration,
    ) -> Self {
        InlineDriver {
            mailbox,
            signals,
            child_stop_request,
            is_stopping: Box::new(is_stopping),
            on_shutdown: Box::new(on_shutdown),
            drain,
            buffer: vec![0; READ_SIZE].into_boxed_slice(),
            output_buffer: OutputBuffer::default(),
        }
    }

    /// Whether the server is to stop.
    fn is_stopping(&mut self) -> bool {
        (self.is_stopping)()
    }

    /// Serves a session to its end. Returns as well what became of it, if a stop began meanwhile.
    fn serve(
        &mut self,
        session: Box<dyn Session + '_>,
        tally: &mut Tally,
    ) -> (Served, Option<StopOutcome>) {
        let mailbox = self.mailbox.clone();
        let is_stopping = &mut self.is_stopping;
        // A thread that posts a reason to stop wakes this one only where the mailbox knows that it waits.
        let mut prepare_and_ask = || {
            mailbox.prepare_park_elsewhere();
            is_stopping()
        };
        let mut wakeups = vec![self.mailbox.wakeup()];
        wakeups.extend(self.signals);
        let mut cx = SessionCx {
            buffer: &mut self.buffer,
            output_buffer: &mut self.output_buffer,
            tally,
            leaves_lingering: true,
            wait: WaitStrategy::Interruptible(InterruptibleWait {
                wakeups: &wakeups,
                asked: self.child_stop_request.as_deref(),
                is_stopping: &mut prepare_and_ask,
                drain: self.drain,
                deadline: None,
                stop_outcome: None,
            }),
            no_sender: UnsupportedError::InlineSender,
            on_shutdown: &*self.on_shutdown,
        };
        let served = session.run(&mut cx);
        let stop_outcome = match &mut cx.wait {
            WaitStrategy::Interruptible(wait) => wait.stop_outcome(),
            _ => None,
        };
        self.mailbox.wake_up();
        (served, stop_outcome)
    }
}
