//! On the loop's own thread, by blocking: one request at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::blocking::{
    InterruptibleWait, READ_SIZE, Served, Session, SessionCx, StopOutcome, WaitStrategy,
};
use crate::conversation::OutputBuffer;
use crate::counters::Tally;
use crate::error::UnsupportedError;
use crate::mailbox::Mailbox;
use crate::sys::Wakeup;

/// One request at a time, to its end, while all others wait: Python's `TCPServer` without a mix-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Inline;

/// What a session is served with beside the loop, on its thread.
pub(crate) struct InlineRunner<'a> {
    mailbox: Arc<Mailbox>,
    /// Readable when a signal says stop, if that is wanted.
    signals: Option<&'static Wakeup>,
    /// Readable when a child process says stop, if there may be one.
    child_stop_request: Option<Arc<Wakeup>>,
    /// Whether the server is to stop.
    is_stopping: Box<dyn FnMut() -> bool + 'a>,
    on_shutdown: Box<dyn Fn() + 'a>,
    drain: Duration,
    buffer: Box<[u8]>,
    output_buffer: OutputBuffer,
}

impl<'a> InlineRunner<'a> {
    pub(crate) fn new(
        mailbox: Arc<Mailbox>,
        signals: Option<&'static Wakeup>,
        child_stop_request: Option<Arc<Wakeup>>,
        is_stopping: impl FnMut() -> bool + 'a,
        on_shutdown: impl Fn() + 'a,
        drain: Duration,
    ) -> Self {
        InlineRunner {
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
    pub(crate) fn is_stopping(&mut self) -> bool {
        (self.is_stopping)()
    }

    /// Serves a session to its end, here and now; and what became of it, if a stop has overtaken it.
    pub(crate) fn serve(
        &mut self,
        session: Box<dyn Session + '_>,
        tally: &mut Tally,
    ) -> (Served, Option<StopOutcome>) {
        let mailbox = self.mailbox.clone();
        let is_stopping = &mut self.is_stopping;
        // Whoever posts a reason to stop wakes this thread only if it is known to wait.
        let mut doze_and_ask = || {
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
                is_stopping: &mut doze_and_ask,
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
