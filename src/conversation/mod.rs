//! One peer's state machine, without I/O.
//!
//! **Invariant:** nothing here knows a socket or a thread, or reads a clock. Bytes go in, bytes and
//! effects come out. Each [`Handler`] method is called from exactly one place, in this file. The event
//! loop and the blocking sessions both drive a [`Conversation`], so the same handler behaves the same
//! under every mode.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::Peer;
use crate::closing::CLOSING_PATIENCE;
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
pub(crate) use datagram::DatagramCx;
pub use framing::{
    Decoded, Delimited, Endian, FixedSize, Framing, LengthPrefixed, Lines, Overlong, Raw, Width,
};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use output::Output;
pub(crate) use output::{OutputBuffer, Unsent};
pub(crate) use scratch::Scratch;
use state::{OutputEnd, State};
pub(crate) use work::Work;

/// How much one read takes in at most, and with [`Raw`] framing the longest message, in bytes.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How many messages one step delivers at most, and how many steps of the framing it takes at most. The
/// driver goes on with the rest after it has served others.
pub(crate) const MESSAGE_BUDGET: usize = 256;

/// Memory of less than this is kept for the input that follows.
const SHRINK_FROM: usize = 64 * 1024;

/// What a driver lends to a conversation for one step.
pub(crate) struct StepCx<'a> {
    /// Collects output, which is sent before the next step.
    pub(crate) output_buffer: &'a mut OutputBuffer,
    pub(crate) tally: &'a mut Tally,
    pub(crate) driver: &'a dyn Driver,
    /// How much output may be collected, in bytes, before input is left for later.
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
    /// Input that is not a whole message yet, and during a step all input.
    read_buffer: Vec<u8>,
    /// How much of the current input has been delivered.
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

    /// What the output of the last step refers to.
    #[inline(always)]
    pub(crate) fn input<'a>(&'a self, fresh: &'a [u8]) -> &'a [u8] {
        if self.read_buffer.is_empty() { fresh } else { &self.read_buffer }
    }

    /// Whether `on_open` has been called and `on_close` has not.
    pub(crate) fn is_open(&self) -> bool {
        self.state.open
    }

    /// Ends it for a reason of the driver: the peer is gone, the server stops.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.state.end(reason);
    }

    /// Ends it by a reset, as a sender has asked.
    pub(crate) fn abort(&mut self) {
        self.state.abort();
    }

    /// Ends it where nothing can follow: no input, no sender, no deadline, no call when there is room.
    /// The driver is told when the last sender is dropped.
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

    /// The mail that told of its send queue has been taken: more mail may come from now on.
    pub(crate) fn listen(&self) {
        if let Some(send_queue) = self.state.send_queue() {
            send_queue.listen();
        }
    }

    /// How far its senders have brought its end.
    pub(crate) fn ending(&self) -> Ending {
        self.state.send_queue().map_or(Ending::Open, |send_queue| send_queue.ending())
    }

    /// Whether it is to be closed once its output has gone.
    #[inline]
    pub(crate) fn is_closing(&self) -> bool {
        self.state.is_closing()
    }

    /// Whether it is to be closed without waiting for its output.
    pub(crate) fn is_aborted(&self) -> bool {
        self.state.aborted
    }

    /// Whether the end of the input has been read.
    pub(crate) fn input_ended(&self) -> bool {
        self.state.input_ended
    }

    /// Whether the handler has paused the input.
    pub(crate) fn is_paused(&self) -> bool {
        self.state.is_paused()
    }

    /// Whether a step may deliver messages of the input that was left: the output was at its mark, the
    /// budget was used up, or the input was paused and is no longer.
    #[inline]
    pub(crate) fn has_blocked_input(&self) -> bool {
        (self.state.blocked || self.state.resumed) && !self.state.is_paused()
    }

    /// Whether the last step left messages at one of its limits: the room for output, or the budget.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.state.blocked
    }

    /// Whether [`writable`](Self::writable) is to be called when there is room for output.
    pub(crate) fn wants_writable(&self) -> bool {
        self.state.wants_writable && !self.state.is_closing()
    }

    /// Whether the handler has been told of the stop of the server.
    pub(crate) fn is_stop_notified(&self) -> bool {
        self.state.stop_notified
    }

    /// Whether the driver need not look at its state before it reads: nothing but input is to be
    /// expected.
    #[inline(always)]
    pub(crate) fn is_fast(&self) -> bool {
        !self.state.needs_slow_path
    }

    /// Whether it waits for its peer and nothing has begun: no message in part, no output to come, no
    /// paused input, which says that a reply is being made elsewhere.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_undelivered_input() && !self.state.wants_writable && !self.is_paused()
    }

    /// Whether input has been read that no message has been made of.
    pub(crate) fn has_undelivered_input(&self) -> bool {
        !self.read_buffer.is_empty() || self.state.blocked || self.state.resumed
    }

    /// The idle timeout.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.state.idle_timeout()
    }

    /// When [`timer_expired`](Self::timer_expired) is due.
    pub(crate) fn timer(&self) -> Option<Instant> {
        if self.state.is_closing() { None } else { self.state.timer() }
    }

    /// Whether [`timer_expired`](Self::timer_expired) is due at this time.
    pub(crate) fn is_timer_due(&self, now: Instant) -> bool {
        self.timer().is_some_and(|timer| timer <= now)
    }

    /// How long its peer may take no output: the idle timeout, and once it is closing at least
    /// [`CLOSING_PATIENCE`], unless it closes because of that timeout.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match (self.state.close_reason(), self.state.idle_timeout()) {
            (None | Some(CloseReason::Timeout), timeout @ Some(_)) | (None, timeout) => timeout,
            (_, timeout) => {
                Some(timeout.map_or(CLOSING_PATIENCE, |time| time.max(CLOSING_PATIENCE)))
            }
        }
    }

    /// Whether the handler has set another idle timeout or timer since the last call.
    #[inline]
    pub(crate) fn take_deadline_changed(&mut self) -> bool {
        std::mem::take(&mut self.state.deadline_changed)
    }

    /// Whether the handler has ended the output.
    pub(crate) fn is_output_ended(&self) -> bool {
        self.state.output_end != OutputEnd::Open
    }

    /// Whether the sending side is to be shut down now, all output having been sent. True once.
    pub(crate) fn take_output_end(&mut self) -> bool {
        let requested = self.state.output_end == OutputEnd::Requested;
        if requested {
            self.state.output_end = OutputEnd::Shut;
        }
        requested
    }

    /// The queue that its senders push to, if it has had one.
    pub(crate) fn send_queue(&self) -> Option<&Arc<SendQueue>> {
        self.state.send_queue()
    }

    /// Its number, if it is a connection's.
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

    /// Runs `call` over the read buffer, which stays in place for [`input`](Self::input).
    fn with_read_buffer(
        &mut self,
        step_cx: &mut StepCx<'_>,
        call: impl FnOnce(&mut Self, &[u8], &mut StepCx<'_>),
    ) {
        let read_buffer = std::mem::take(&mut self.read_buffer);
        self.guarded(step_cx, |this, step_cx| call(this, &read_buffer, step_cx));
        self.read_buffer = read_buffer;
    }

    /// Runs what calls the user's code; a panic there ends this conversation and no other.
    #[inline(always)]
    fn guarded(&mut self, step_cx: &mut StepCx<'_>, call: impl FnOnce(&mut Self, &mut StepCx<'_>)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| call(self, step_cx))) {
            step_cx.tally.panics += 1;
            self.state.end(CloseReason::Panic(panic_message(panic)));
        }
    }
}

/// Serves one datagram: a conversation of one message. Returns why it ended; the output is the reply, and
/// refers to `packet`.
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
    state.truncated = truncated;
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
