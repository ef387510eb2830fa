//! The state of a conversation that its handler can change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::output::OutputBuffer;
use crate::address::Peer;
use crate::connection_id::ConnectionId;
use crate::error::CloseReason;
use crate::sender::SendQueue;
use crate::sys::CatchDrop;

/// No idle timeout, as [`State::idle_timeout`] stores it.
const NO_TIMEOUT: u64 = u64::MAX;

/// The state that a handler changes through its [`Context`](super::Context).
#[derive(Debug)]
pub(super) struct State {
    pub(super) peer: Peer,
    /// The id of a connection; a datagram has none until its handler asks for it.
    pub(super) id: Option<ConnectionId>,
    /// In nanoseconds; [`NO_TIMEOUT`] for none.
    idle_timeout: u64,
    rare: Option<Box<RareState>>,
    /// The conversation has a close reason.
    closing: bool,
    /// No message is delivered: the conversation is closing, or its input is paused.
    halted: bool,
    /// The idle timeout or the timer has changed, and the driver has not taken the change yet.
    pub(super) deadline_changed: bool,
    pub(super) aborted: bool,
    pub(super) datagram: bool,
    /// `on_open` has been called and `on_close` has not.
    pub(super) open: bool,
    /// The end of the input has been read.
    pub(super) input_ended: bool,
    /// `on_eof` has been called.
    pub(super) eof_notified: bool,
    /// Complete messages may be left: the output reached its mark, or the budget was used up.
    pub(super) blocked: bool,
    /// Complete messages may be left: the input was paused, or the framing has changed.
    pub(super) resumed: bool,
    /// The handler may have changed the framing.
    pub(super) framing_used: bool,
    /// `room` has returned 0: `on_writable` is called when there is room again.
    pub(super) wants_writable: bool,
    pub(super) output_end: OutputEnd,
    /// `on_stop` has been called.
    pub(super) stop_notified: bool,
    /// The driver counts the messages, which its fast path does not.
    pub(super) always_slow: bool,
    /// Set if anything keeps the driver from its fast path.
    pub(super) needs_slow_path: bool,
}

/// The stages of [`finish_output`](super::Context::finish_output).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputEnd {
    /// The handler has not called it.
    Open,
    /// The sending side is to be shut down when all output has been sent.
    Requested,
    /// The driver has shut the sending side down, or is about to.
    Shut,
}

/// State that few conversations have.
#[derive(Debug, Default)]
pub(super) struct RareState {
    /// The reason to close.
    pub(super) close_reason: Option<CatchDrop<CloseReason>>,
    /// The send queue, created with the first sender.
    pub(super) send_queue: Option<Arc<SendQueue>>,
    /// The deadline for `on_timer`.
    pub(super) timer: Option<Instant>,
    /// The datagram was truncated.
    pub(super) truncated: bool,
    /// `on_eof` asks for a close as soon as no answer is being made.
    pub(super) closes_when_answered: bool,
    /// The close does not linger.
    no_linger: bool,
    /// The handler is in the middle of a request.
    busy: bool,
    /// The length of the frame at the start of the buffered input, if the framing knows it.
    pub(super) frame_len: usize,
    /// Collects output that is dropped, because the conversation sends nothing more.
    discarded: Option<Box<OutputBuffer>>,
}

impl State {
    pub(super) fn new(peer: Peer, id: Option<ConnectionId>) -> Self {
        State {
            peer,
            id,
            idle_timeout: NO_TIMEOUT,
            rare: None,
            closing: false,
            halted: false,
            framing_used: false,
            deadline_changed: false,
            aborted: false,
            datagram: false,
            open: false,
            input_ended: false,
            eof_notified: false,
            blocked: false,
            resumed: false,
            wants_writable: false,
            output_end: OutputEnd::Open,
            stop_notified: false,
            always_slow: false,
            needs_slow_path: false,
        }
    }

    #[inline]
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether the handler has paused the input.
    pub(super) fn is_paused(&self) -> bool {
        self.halted && !self.closing
    }

    /// Whether an answer is still being made: `on_writable` is pending, or the input is paused.
    pub(super) fn is_answering(&self) -> bool {
        self.wants_writable || self.is_paused()
    }

    pub(super) fn set_busy(&mut self, busy: bool) {
        if busy || self.rare.is_some() {
            self.rare_mut().busy = busy;
        }
    }

    /// Whether the handler is in the middle of a request, as it has said.
    pub(super) fn is_busy(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.busy)
    }

    /// Whether the conversation closes as soon as no answer is being made.
    pub(super) fn closes_when_answered(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.closes_when_answered)
    }

    /// Whether no message may be delivered now.
    #[inline(always)]
    pub(super) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Whether what the handler sends is dropped.
    pub(super) fn drops_output(&self) -> bool {
        self.closing || self.output_end != OutputEnd::Open
    }

    pub(super) fn rare_mut(&mut self) -> &mut RareState {
        self.rare.get_or_insert_default()
    }

    /// Takes the length of the frame that has arrived in part, if the framing knows it.
    pub(super) fn take_frame_len(&mut self) -> usize {
        self.rare.as_mut().map_or(0, |rare| std::mem::take(&mut rare.frame_len))
    }

    pub(super) fn take_rare(&mut self) -> Option<Box<RareState>> {
        self.rare.take()
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.truncated)
    }

    pub(super) fn send_queue(&self) -> Option<&Arc<SendQueue>> {
        self.rare.as_ref()?.send_queue.as_ref()
    }

    pub(super) fn close_reason(&self) -> Option<&CloseReason> {
        self.rare.as_ref()?.close_reason.as_deref()
    }

    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        (self.idle_timeout != NO_TIMEOUT).then(|| Duration::from_nanos(self.idle_timeout))
    }

    pub(super) fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        let nanos = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok());
        self.idle_timeout = nanos.unwrap_or(NO_TIMEOUT);
        self.deadline_has_changed();
    }

    pub(super) fn timer(&self) -> Option<Instant> {
        self.rare.as_ref()?.timer
    }

    pub(super) fn set_timer(&mut self, at: Option<Instant>) {
        if at.is_none() && self.rare.is_none() {
            return;
        }
        self.rare_mut().timer = at;
        self.deadline_has_changed();
    }

    fn deadline_has_changed(&mut self) {
        self.deadline_changed = true;
        self.needs_slow_path = true;
    }

    /// Records that complete messages may be left in the input.
    #[cold]
    pub(super) fn block(&mut self) {
        self.blocked = true;
        self.needs_slow_path = true;
    }

    /// Clears the flags for left messages: they are about to be delivered.
    #[inline(never)]
    pub(super) fn clear_blocked(&mut self) {
        self.blocked = false;
        self.resumed = false;
        self.needs_slow_path = self.halted
            || self.always_slow
            || self.input_ended
            || self.deadline_changed
            || self.wants_writable
            || self.output_end != OutputEnd::Open;
    }

    #[cold]
    pub(super) fn pause(&mut self) {
        self.halted = true;
        self.needs_slow_path = true;
    }

    #[cold]
    pub(super) fn resume(&mut self) {
        if self.is_paused() {
            self.halted = false;
            self.redeliver();
        }
    }

    /// Records that complete messages may be left in the undelivered input.
    #[cold]
    pub(super) fn redeliver(&mut self) {
        self.resumed = true;
        self.needs_slow_path = true;
    }

    /// Records the close reason. The first reason stays, but a fault replaces a reason that is not
    /// a fault.
    #[cold]
    pub(super) fn end(&mut self, reason: CloseReason) {
        if !self.closing || reason.is_fault() {
            self.end_for(reason);
        }
    }

    /// Records a close that does not linger, unless the conversation is closing already.
    #[cold]
    pub(super) fn end_without_lingering(&mut self) {
        if !self.closing {
            self.rare_mut().no_linger = true;
            self.end_for(CloseReason::Handler);
        }
    }

    /// Whether the connection lingers when it is closed.
    pub(super) fn lingers(&self) -> bool {
        !self.rare.as_ref().is_some_and(|rare| rare.no_linger)
    }

    /// Records the close reason in place of an earlier one.
    #[cold]
    pub(super) fn end_for(&mut self, reason: CloseReason) {
        self.rare_mut().close_reason = Some(reason.into());
        self.closing = true;
        self.halted = true;
        self.needs_slow_path = true;
    }

    /// Records a close by a reset: no more output is sent.
    #[cold]
    pub(super) fn abort(&mut self) {
        self.end(CloseReason::Handler);
        self.aborted = true;
    }

    /// Replaces the reason of a close that the handler has requested.
    pub(super) fn relabel(&mut self, reason: CloseReason) {
        if matches!(self.close_reason(), Some(CloseReason::Handler)) {
            self.end_for(reason);
        }
    }

    /// An empty buffer for output that is dropped.
    #[cold]
    pub(super) fn discarded(&mut self) -> &mut OutputBuffer {
        let discarded = self.rare_mut().discarded.get_or_insert_default();
        discarded.clear();
        discarded
    }
}
