//! The state machine of one peer, without I/O.
//!
//! **Invariant:** this module uses no socket, no thread and no clock. Bytes go in; bytes and
//! effects come out. Each [`Handler`] method is called from exactly one place in this module. Both
//! the event loop and the blocking sessions drive a [`Conversation`], so the same handler behaves
//! the same under every mode.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::Peer;
use crate::closing::CLOSING_TIMEOUT;
use crate::connection_id::ConnectionId;
use crate::counters::Tally;
use crate::error::{CloseReason, FramingError};
use crate::guard::panic_message;
use crate::sender::{Ending, SendQueue};
use crate::sys::CatchDrop;

mod context;
mod datagram;
mod delivery;
mod events;
mod framing;
mod handler;
mod output;
mod scratch;
mod state;
#[cfg(test)]
mod tests;
mod work;

pub use context::Context;
pub(crate) use context::Driver;
pub(crate) use datagram::DatagramDriver;
pub use framing::{
    Decoded, Delimited, Endian, FixedSize, Framing, LengthPrefixed, Lines, Overlong, Raw, Width,
};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use output::Output;
pub(crate) use output::{OutputBuffer, Unsent};
pub(crate) use scratch::Scratch;
use state::{OutputEnd, State};
pub(crate) use work::Work;

/// The size of one read, and with [`Raw`] framing of the longest message, in bytes.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How many messages one step delivers at most, and how many steps of the framing it takes at most.
/// The driver continues with the rest after it has served others.
pub(crate) const MESSAGE_BUDGET: usize = 256;

/// Read buffers with less capacity than this are not shrunk, in bytes.
const SHRINK_FROM: usize = 64 * 1024;

/// The context that a driver passes to a conversation for one step.
pub(crate) struct StepCx<'a> {
    /// Collects output, which is sent before the next step.
    pub(crate) output_buffer: &'a mut OutputBuffer,
    pub(crate) tally: &'a mut Tally,
    pub(crate) driver: &'a dyn Driver,
    /// How many bytes of output may be collected before input is left for later.
    pub(crate) room: usize,
}

impl<'a> StepCx<'a> {
    pub(crate) fn new(
        output_buffer: &'a mut OutputBuffer,
        tally: &'a mut Tally,
        driver: &'a dyn Driver,
        room: usize,
    ) -> Self {
        StepCx { output_buffer, tally, driver, room }
    }
}

/// One peer's conversation: its handler, its framing, and its core.
#[derive(Debug)]
pub(crate) struct Conversation<H, F> {
    handler: CatchDrop<H>,
    framing: CatchDrop<F>,
    core: ConversationCore,
}

/// The state of a conversation and its undecoded input: what its driver looks at between the steps. It is
/// what is left when the handler has been told of the close and its output has yet to be sent.
#[derive(Debug)]
pub(crate) struct ConversationCore {
    state: State,
    /// Input that is not a complete message yet; during a step, all input.
    read_buffer: Vec<u8>,
    /// How many bytes of the current input have been delivered.
    consumed: usize,
}

/// The result of decoding the first buffered frame on the loop, before a worker gets the conversation.
/// `None`, the default, if the worker is to call `decode`: it has not been called, or it panicked, which
/// is then counted there.
#[derive(Default)]
pub(crate) struct PeekedFrame(Option<Result<Decoded, FramingError>>);

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// A conversation on a stream.
    pub(crate) fn new(
        handler: CatchDrop<H>,
        framing: CatchDrop<F>,
        peer: Peer,
        id: ConnectionId,
    ) -> Self {
        Conversation { handler, framing, core: ConversationCore::new(State::new(peer, Some(id))) }
    }

    /// Drops the handler and the framing, after the close: the output can still be sent.
    pub(crate) fn into_core(self) -> ConversationCore {
        self.core
    }
}

impl<H, F> Deref for Conversation<H, F> {
    type Target = ConversationCore;

    #[inline(always)]
    fn deref(&self) -> &ConversationCore {
        &self.core
    }
}

impl<H, F> DerefMut for Conversation<H, F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut ConversationCore {
        &mut self.core
    }
}

impl ConversationCore {
    fn new(state: State) -> Self {
        ConversationCore { state, read_buffer: Vec::new(), consumed: 0 }
    }

    /// The bytes to which the output of the last step refers.
    #[inline(always)]
    pub(crate) fn input<'a>(&'a self, fresh: &'a [u8]) -> &'a [u8] {
        if self.read_buffer.is_empty() { fresh } else { &self.read_buffer }
    }

    /// Whether `on_open` has been called and `on_close` has not.
    pub(crate) fn is_open(&self) -> bool {
        self.state.open
    }

    /// Ends the conversation for a reason of the driver: the peer is gone, or the server stops.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.state.end(reason);
    }

    /// Ends the conversation by a reset that a sender has requested.
    pub(crate) fn abort(&mut self) {
        self.state.abort();
    }

    /// Ends the conversation if no further event can come: no input, no sender, no deadline, no
    /// pending `on_writable`. If a sender is left, the driver is notified when the last one is
    /// dropped.
    pub(crate) fn end_if_nothing_follows(&mut self) {
        let state = &self.state;
        let reason = match state {
            State { eof_notified: true, .. } => CloseReason::Eof,
            state if state.is_paused() => CloseReason::Handler,
            _ => return,
        };
        if state.idle_timeout().is_none()
            && state.timer().is_none()
            && !state.wants_writable
            && state.send_queue().is_none_or(|send_queue| send_queue.is_abandoned())
        {
            self.state.end(reason);
        }
    }

    /// The driver has taken the notification of the send queue: the next one may be posted.
    pub(crate) fn enable_notification(&self) {
        if let Some(send_queue) = self.state.send_queue() {
            send_queue.enable_notification();
        }
    }

    /// The stage of the close, as its senders have requested.
    pub(crate) fn ending(&self) -> Ending {
        self.state.send_queue().map_or(Ending::Open, |send_queue| send_queue.ending())
    }

    /// Whether the conversation is to be closed when its output has been sent.
    #[inline]
    pub(crate) fn is_closing(&self) -> bool {
        self.state.is_closing()
    }

    /// Whether the conversation is to be closed without waiting for its output.
    pub(crate) fn is_aborted(&self) -> bool {
        self.state.aborted
    }

    /// Whether the connection lingers when it is closed.
    pub(crate) fn lingers(&self) -> bool {
        self.state.lingers()
    }

    /// Whether the end of the input has been read.
    pub(crate) fn input_ended(&self) -> bool {
        self.state.input_ended
    }

    /// Whether the handler has paused the input.
    pub(crate) fn is_paused(&self) -> bool {
        self.state.is_paused()
    }

    /// Whether a step may deliver messages from the input that was left: the output was at its
    /// mark, the budget was used up, or the input was paused and is resumed.
    #[inline]
    pub(crate) fn has_blocked_input(&self) -> bool {
        (self.state.blocked || self.state.resumed) && !self.state.is_paused()
    }

    /// Whether the last step left messages at one of its limits: the room for output, or the budget.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.state.blocked
    }

    /// Whether [`writable`](Conversation::writable) is to be called when there is room for output.
    pub(crate) fn wants_writable(&self) -> bool {
        self.state.wants_writable && !self.state.is_closing()
    }

    /// Whether `on_stop` has been called.
    pub(crate) fn is_stop_notified(&self) -> bool {
        self.state.stop_notified
    }

    /// Whether the driver can read without a check of the state: there is no rare state.
    #[inline(always)]
    pub(crate) fn is_fast(&self) -> bool {
        !self.state.needs_slow_path
    }

    /// Whether the conversation only waits for its peer: no message has arrived in part, no
    /// `on_writable` is pending, the input is not paused, which means that a reply comes from
    /// another thread, and the handler is not in the middle of a request.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_undelivered_input()
            && !self.state.wants_writable
            && !self.is_paused()
            && !self.state.is_busy()
    }

    /// How many bytes of undecoded input there are.
    pub(crate) fn buffered(&self) -> usize {
        self.read_buffer.len()
    }

    /// How much memory the undecoded input takes, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.read_buffer.capacity()
    }

    /// Whether a message has arrived in part, and only the peer can complete it.
    pub(crate) fn waits_for_rest(&self) -> bool {
        !self.read_buffer.is_empty()
            && !self.has_blocked_input()
            && !self.is_paused()
            && !self.is_closing()
    }

    /// Why it is closing.
    pub(crate) fn close_reason(&self) -> Option<&CloseReason> {
        self.state.close_reason()
    }

    /// Keeps the driver from its fast path from now on.
    pub(crate) fn keep_slow(&mut self) {
        self.state.always_slow = true;
        self.state.needs_slow_path = true;
    }

    /// Sets the idle timeout with which it begins.
    pub(crate) fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        if timeout.is_some() {
            self.state.set_idle_timeout(timeout);
        }
    }

    /// Whether there is input that has not been delivered.
    pub(crate) fn has_undelivered_input(&self) -> bool {
        !self.read_buffer.is_empty() || self.state.blocked || self.state.resumed
    }

    /// The idle timeout.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.state.idle_timeout()
    }

    /// When [`timer_expired`](Conversation::timer_expired) is due.
    pub(crate) fn timer(&self) -> Option<Instant> {
        if self.state.is_closing() { None } else { self.state.timer() }
    }

    /// Whether [`timer_expired`](Conversation::timer_expired) is due at this time.
    pub(crate) fn is_timer_due(&self, now: Instant) -> bool {
        self.timer().is_some_and(|timer| timer <= now)
    }

    /// How long its peer may take no output: the idle timeout. While the conversation is closing,
    /// it is at least [`CLOSING_TIMEOUT`], unless it closes because of that idle timeout.
    pub(crate) fn output_timeout(&self) -> Option<Duration> {
        match (self.state.close_reason(), self.state.idle_timeout()) {
            (None | Some(CloseReason::Timeout), timeout @ Some(_)) | (None, timeout) => timeout,
            (_, timeout) => Some(timeout.map_or(CLOSING_TIMEOUT, |time| time.max(CLOSING_TIMEOUT))),
        }
    }

    /// Whether the handler has changed the idle timeout or the timer since the last call.
    #[inline]
    pub(crate) fn take_deadline_changed(&mut self) -> bool {
        std::mem::take(&mut self.state.deadline_changed)
    }

    /// Whether the handler has ended the output.
    pub(crate) fn is_output_ended(&self) -> bool {
        self.state.output_end != OutputEnd::Open
    }

    /// Whether the sending side is to be shut down now that all output has been sent. True once.
    pub(crate) fn take_output_end(&mut self) -> bool {
        let requested = self.state.output_end == OutputEnd::Requested;
        if requested {
            self.state.output_end = OutputEnd::Shut;
        }
        requested
    }

    /// The send queue, if there has been a sender.
    pub(crate) fn send_queue(&self) -> Option<&Arc<SendQueue>> {
        self.state.send_queue()
    }

    /// The number of the connection; a datagram may have none.
    pub(crate) fn id(&self) -> Option<ConnectionId> {
        self.state.id
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.state.peer
    }
}

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// The handler and a context for it.
    #[inline(always)]
    fn parts<'a>(
        &'a mut self,
        input: &'a [u8],
        step_cx: &'a mut StepCx<'_>,
    ) -> (&'a mut H, Context<'a>) {
        let cx = Context {
            state: &mut self.core.state,
            framing: &mut *self.framing,
            output: Output::new(input, step_cx.output_buffer),
            driver: step_cx.driver,
            room: step_cx.room,
        };
        (&mut self.handler, cx)
    }

    /// Calls `call` with the read buffer, which stays in place for [`input`](ConversationCore::input).
    fn with_read_buffer(
        &mut self,
        step_cx: &mut StepCx<'_>,
        call: impl FnOnce(&mut Self, &[u8], &mut StepCx<'_>),
    ) {
        let read_buffer = std::mem::take(&mut self.read_buffer);
        self.guarded(step_cx, |this, step_cx| call(this, &read_buffer, step_cx));
        self.read_buffer = read_buffer;
    }

    /// Runs code that calls user code; a panic ends only this conversation.
    #[inline(always)]
    fn guarded(&mut self, step_cx: &mut StepCx<'_>, call: impl FnOnce(&mut Self, &mut StepCx<'_>)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| call(self, step_cx))) {
            step_cx.tally.panics += 1;
            self.state.end(CloseReason::Panic(panic_message(panic)));
        }
    }
}

/// Serves one datagram: a conversation of one message. Returns the close reason. The output is the
/// reply, and refers to `packet`.
pub(crate) fn serve_datagram<H: Handler>(
    handler: CatchDrop<H>,
    peer: Peer,
    id: Option<ConnectionId>,
    packet: &[u8],
    truncated: bool,
    step_cx: &mut StepCx<'_>,
) -> CatchDrop<CloseReason> {
    let mut state = State::new(peer, id);
    state.datagram = true;
    if truncated {
        state.rare_mut().truncated = true;
    }
    let framing = CatchDrop::new(Raw);
    let mut conversation = Conversation { handler, framing, core: ConversationCore::new(state) };
    conversation.open(step_cx);
    if !conversation.is_closing() {
        conversation
            .guarded(step_cx, |this, step_cx| this.message(packet, 0..packet.len(), step_cx));
    }
    conversation.end(CloseReason::Handler);
    conversation.closed(step_cx.tally)
}
