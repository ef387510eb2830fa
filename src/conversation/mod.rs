//! The heart: one peer's state machine, sans I/O.
//!
//! **Invariant:** nothing here knows a socket or a thread, or reads a clock. Bytes come in, bytes
//! and effects go out. Each [`Handler`] method is called from exactly one place, in this file; the
//! reactor's pump and the blocking one both drive a [`Conversation`], and so the same handler
//! behaves the same under every mode.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Peer;
use crate::closing::CLOSING_PATIENCE;
use crate::counters::Tally;
use crate::error::{CloseReason, FramingError};
use crate::guard::log;
use crate::guard::{self, panic_message};
use crate::sender::{Command, Ending, SendQueue};
use crate::sys::CatchDrop;

mod context;
mod datagram;
mod framing;
mod handler;
mod output;
#[cfg(test)]
mod tests;

pub use context::Context;
pub(crate) use context::SenderSource;
pub(crate) use datagram::DatagramCx;
pub use framing::{
    BoxFraming, Decoded, Delimited, Endian, FixedSize, Framing, LengthPrefixed, Lines, Overlong,
    Raw, Width,
};
pub use handler::{Handler, HandlerFn, handler_fn};
pub use output::Output;
pub(crate) use output::{OutputBuffer, Unsent};

/// How much one read takes in at most, and with [`Raw`] framing the longest message, in bytes.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How many steps of the framing, and so how many messages, are taken before others come first: who
/// drives the conversation goes on with the rest later.
pub(crate) const MESSAGE_BUDGET: usize = 256;

/// Memory of less than this is kept for the input that follows.
const SHRINK_FROM: usize = 64 * 1024;

/// What a conversation works with for one turn: it belongs to whoever drives it.
pub(crate) struct StepCx<'a> {
    /// Where output is collected, to be sent before the next call.
    pub(crate) output_buffer: &'a mut OutputBuffer,
    /// What has happened, counted.
    pub(crate) tally: &'a mut Tally,
    /// How the conversation is reached from elsewhere.
    pub(crate) senders: &'a dyn SenderSource,
    /// How much output may be collected before input is left for later.
    pub(crate) room: usize,
    /// Set when the handler has asked the server to stop.
    pub(crate) shutdown: bool,
}

impl<'a> StepCx<'a> {
    pub(crate) fn new(
        output_buffer: &'a mut OutputBuffer,
        tally: &'a mut Tally,
        senders: &'a dyn SenderSource,
        room: usize,
    ) -> Self {
        StepCx { output_buffer, tally, senders, room, shutdown: false }
    }
}

/// What a handler can change through its [`Context`].
#[derive(Debug)]
struct State {
    peer: Peer,
    /// The way in from other threads, made when first asked for.
    send_queue: Option<Arc<SendQueue>>,
    timeout: Option<Duration>,
    /// Why the conversation is ending, once it is.
    close_reason: Option<Box<CatchDrop<CloseReason>>>,
    timeout_changed: bool,
    aborted: bool,
    datagram: bool,
    truncated: bool,
    /// `on_open` has been called and `on_close` has not.
    open: bool,
    input_ended: bool,
    /// Input was left undelivered because the output was at its mark, or the budget was used up.
    blocked_on_output: bool,
    /// It may be ending, ended, blocked_on_output, or reached from elsewhere: one look instead of four.
    needs_slow_path: bool,
}

impl State {
    fn new(peer: Peer, datagram: bool) -> Self {
        State {
            peer,
            send_queue: None,
            timeout: None,
            close_reason: None,
            timeout_changed: false,
            aborted: false,
            datagram,
            truncated: false,
            open: false,
            input_ended: false,
            blocked_on_output: false,
            needs_slow_path: false,
        }
    }

    #[inline]
    fn is_closing(&self) -> bool {
        self.close_reason.is_some()
    }

    /// Forgets that input was left: it is about to be delivered.
    #[inline(never)]
    fn clear_blocked(&mut self) {
        self.blocked_on_output = false;
        self.needs_slow_path = self.is_closing()
            || self.input_ended
            || self.timeout_changed
            || self.send_queue.is_some();
    }

    /// Notes why it ends: the first reason stands, but for a fault, which is what must be told.
    #[cold]
    fn end(&mut self, reason: CloseReason) {
        if self.close_reason.is_none() || reason.is_fault() {
            self.close_reason = Some(Box::new(reason.into()));
        }
        self.needs_slow_path = true;
    }

    /// Notes that it ends by a reset, and that no output goes out any more.
    #[cold]
    fn abort(&mut self) {
        self.end(CloseReason::Handler);
        self.aborted = true;
    }
}

/// One peer's conversation: its handler, its framing, its leftover input, and how it stands.
#[derive(Debug)]
pub(crate) struct Conversation<H, F> {
    handler: CatchDrop<H>,
    framing: CatchDrop<F>,
    state: State,
    /// Input that is not a whole message yet, and, while a turn lasts, all of it.
    read_buffer: Vec<u8>,
    /// How much of the current input has been delivered.
    consumed: usize,
}

/// What the framing has said of the start of the input kept, where it was asked ahead of a delivery;
/// nothing where it panicked: it is asked again where panics are counted.
pub(crate) struct PeekedFrame(Option<Result<Decoded, FramingError>>);

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// A conversation on a stream.
    pub(crate) fn new(handler: CatchDrop<H>, framing: CatchDrop<F>, peer: Peer) -> Self {
        let state = State::new(peer, false);
        Conversation { handler, framing, state, read_buffer: Vec::new(), consumed: 0 }
    }

    /// Begins: the connection is open.
    pub(crate) fn open(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            this.state.open = true;
            let (handler, mut cx) = this.parts(&[], step_cx);
            if let Err(error) = handler.on_open(&mut cx) {
                this.state.end(CloseReason::Error(error));
            }
        });
    }

    /// Takes in `fresh` bytes and delivers the messages that are whole now, or, with none, goes on
    /// with what was left for want of room or because the budget was used up.
    ///
    /// The output refers to the input, so the caller sends it, with [`input`](Self::input), and then
    /// calls [`consume_delivered`](Self::consume_delivered) with the same bytes before anything else.
    #[inline(always)] // the hot path: one call less per layer is a tenth of all instructions
    pub(crate) fn receive(&mut self, fresh: &[u8], step_cx: &mut StepCx<'_>) {
        if self.state.needs_slow_path {
            self.state.clear_blocked();
        }
        if self.read_buffer.is_empty() {
            self.guarded(step_cx, |this, step_cx| this.deliver(fresh, step_cx));
        } else {
            self.receive_more(fresh, step_cx);
        }
    }

    #[inline(never)]
    fn receive_more(&mut self, fresh: &[u8], step_cx: &mut StepCx<'_>) {
        self.read_buffer.extend_from_slice(fresh);
        self.with_read_buffer(step_cx, |this, input, step_cx| this.deliver(input, step_cx));
    }

    /// Keeps `fresh` bytes to be delivered later, by [`receive_buffered`](Self::receive_buffered).
    pub(crate) fn buffer(&mut self, fresh: &[u8]) {
        self.read_buffer.extend_from_slice(fresh);
    }

    /// What is whole among the bytes kept, a message or an error in place of one, if anything is.
    ///
    /// The framing is asked about no message twice: what it says of one is for
    /// [`receive_buffered`](Self::receive_buffered).
    pub(crate) fn peek_frame(&mut self) -> Option<PeekedFrame> {
        let mut skipped = 0;
        let mut peeked = None;
        while peeked.is_none() && skipped < self.read_buffer.len() {
            let input = &self.read_buffer[skipped..];
            match guard::call(|| self.framing.decode(input)) {
                Ok(Ok(Decoded::Incomplete)) => break,
                Ok(Ok(Decoded::Skip(count))) if (1..=input.len()).contains(&count) => {
                    skipped += count
                }
                Ok(step) => peeked = Some(PeekedFrame(Some(step))),
                Err(_) => peeked = Some(PeekedFrame(None)),
            }
        }
        if skipped > 0 {
            self.drop_first(skipped);
        }
        self.state.blocked_on_output = false;
        peeked
    }

    /// Delivers every message that is whole among the bytes kept, as [`receive`](Self::receive) does;
    /// of the first it is known what the framing says.
    pub(crate) fn receive_buffered(&mut self, peeked: &mut PeekedFrame, step_cx: &mut StepCx<'_>) {
        if self.state.needs_slow_path {
            self.state.clear_blocked();
        }
        self.with_read_buffer(step_cx, |this, input, step_cx| {
            if let Some(step) = peeked.0.take() {
                this.step(step, input, step_cx);
            }
            this.deliver(input, step_cx);
        });
    }

    /// What the output of the last [`receive`](Self::receive) refers to.
    #[inline(always)]
    pub(crate) fn input<'a>(&'a self, fresh: &'a [u8]) -> &'a [u8] {
        if self.read_buffer.is_empty() { fresh } else { &self.read_buffer }
    }

    /// Drops what was delivered and keeps the rest, now that the output has been dealt with.
    #[inline(always)]
    pub(crate) fn consume_delivered(&mut self, fresh: &[u8]) {
        // Nothing was kept and all was delivered: nearly always.
        if self.read_buffer.is_empty() && self.consumed == fresh.len() {
            self.consumed = 0;
        } else {
            self.consume_partial(fresh);
        }
    }

    #[inline(never)]
    fn consume_partial(&mut self, fresh: &[u8]) {
        let consumed = std::mem::take(&mut self.consumed);
        if self.state.is_closing() {
            self.read_buffer = Vec::new();
        } else if !self.read_buffer.is_empty() {
            self.drop_first(consumed);
        } else if consumed < fresh.len() {
            self.read_buffer.extend_from_slice(&fresh[consumed..]);
        }
    }

    /// Drops the first bytes of the input kept, and gives back memory that a long message had taken.
    fn drop_first(&mut self, count: usize) {
        self.read_buffer.drain(..count);
        if self.read_buffer.is_empty() {
            self.read_buffer = Vec::new();
        } else if self.read_buffer.capacity() > SHRINK_FROM
            && self.read_buffer.len() < self.read_buffer.capacity() / 4
        {
            self.read_buffer.shrink_to_fit();
        }
    }

    /// The peer has ended: its last bytes are settled, and the handler is told.
    pub(crate) fn eof(&mut self, step_cx: &mut StepCx<'_>) {
        self.state.input_ended = true;
        self.state.needs_slow_path = true;
        self.with_read_buffer(step_cx, |this, input, step_cx| {
            this.deliver_last(input, step_cx);
            if this.state.is_closing() {
                return;
            }
            let (handler, mut cx) = this.parts(input, step_cx);
            match handler.on_eof(&mut cx) {
                Err(error) => this.state.end(CloseReason::Error(error)),
                Ok(()) => this.relabel(CloseReason::Eof),
            }
            this.end_if_nothing_follows();
        });
    }

    /// Ends it where nothing could follow: no input, no sender, no timeout. It is told when its last
    /// sender goes, as it is of a parcel.
    pub(crate) fn end_if_nothing_follows(&mut self) {
        let State { input_ended, timeout, send_queue, .. } = &self.state;
        if *input_ended
            && timeout.is_none()
            && send_queue.as_ref().is_none_or(|send_queue| send_queue.is_abandoned())
        {
            self.state.end(CloseReason::Eof);
        }
    }

    /// Nothing has moved for the time the handler set.
    pub(crate) fn timed_out(&mut self, step_cx: &mut StepCx<'_>) {
        self.guarded(step_cx, |this, step_cx| {
            step_cx.tally.timeouts += 1;
            let (handler, mut cx) = this.parts(&[], step_cx);
            match handler.on_idle_timeout(&mut cx) {
                Err(error) => this.state.end(CloseReason::Error(error)),
                Ok(()) => this.relabel(CloseReason::Timeout),
            }
        });
    }

    /// Frames what came from elsewhere and puts it on the output, as far as there is room and the
    /// budget allows; returns how many parcels that were.
    pub(crate) fn drain_send_queue(&mut self, step_cx: &mut StepCx<'_>) -> usize {
        let mut taken = 0;
        self.guarded(step_cx, |this, step_cx| {
            while taken < MESSAGE_BUDGET
                && !this.state.is_closing()
                && step_cx.output_buffer.len() < step_cx.room
            {
                let Some(command) =
                    this.state.send_queue.as_ref().and_then(|send_queue| send_queue.take())
                else {
                    break;
                };
                taken += 1;
                match command {
                    Command::Close => this.state.end(CloseReason::Handler),
                    Command::Abort => this.state.abort(),
                    Command::Message(message) => {
                        let before = step_cx.output_buffer.position();
                        let mut output = Output::sharing(&message, step_cx.output_buffer);
                        if let Err(error) = this.framing.encode(&message, &mut output) {
                            // Its sender is elsewhere by now, and the peer has no part in it.
                            step_cx.output_buffer.cut_back(before);
                            step_cx.tally.unsent += 1;
                            let peer = &this.state.peer;
                            log::debug!("{peer}: a message of a sender is dropped: {error}");
                        }
                    }
                }
            }
        });
        taken
    }

    /// Ends it for a reason of the driver's: the peer is gone, the server stops.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.state.end(reason);
    }

    /// Ends it by a reset: a sender has asked for that.
    pub(crate) fn abort(&mut self) {
        self.state.abort();
    }

    /// The mail that told of its outlet has been taken: it is told of what comes from now on.
    pub(crate) fn listen(&self) {
        if let Some(send_queue) = &self.state.send_queue {
            send_queue.listen();
        }
    }

    /// How far its senders have brought its end.
    pub(crate) fn ending(&self) -> Ending {
        self.state.send_queue.as_ref().map_or(Ending::Open, |send_queue| send_queue.ending())
    }

    /// Tells the handler that it is over, and why; returns the reason. Nothing follows.
    pub(crate) fn closed(&mut self, tally: &mut Tally) -> CatchDrop<CloseReason> {
        let close_reason = self.state.close_reason.take();
        let mut reason =
            close_reason.map_or_else(|| CloseReason::Shutdown.into(), |reason| *reason);
        if let Some(send_queue) = self.state.send_queue.take() {
            send_queue.close();
        }
        if std::mem::take(&mut self.state.open)
            && let Err(message) = guard::call(|| self.handler.on_close(&reason))
        {
            tally.panics += 1;
            reason = CloseReason::Panic(message).into();
        }
        match *reason {
            CloseReason::Error(_) => tally.handler_errors += 1,
            CloseReason::Framing(_) => tally.framing_errors += 1,
            CloseReason::Disconnected(_) => tally.disconnects += 1,
            _ => {}
        }
        reason
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

    /// Whether the peer has ended.
    pub(crate) fn input_ended(&self) -> bool {
        self.state.input_ended
    }

    /// Whether whole messages may wait, left for want of room in the output or for others' sake.
    #[inline]
    pub(crate) fn is_blocked_on_output(&self) -> bool {
        self.state.blocked_on_output
    }

    /// Whether there is nothing to remember of it but its leftover input.
    #[inline(always)]
    pub(crate) fn is_fast(&self) -> bool {
        !self.state.needs_slow_path
    }

    /// Whether it waits for its peer with nothing begun.
    pub(crate) fn is_idle(&self) -> bool {
        self.read_buffer.is_empty() && !self.state.blocked_on_output
    }

    /// How long nothing may move before [`timed_out`](Self::timed_out) is due.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.state.timeout
    }

    /// How long its peer may take no output: as long as the handler says, and once it is over no less
    /// than [`CLOSING_PATIENCE`], unless it is for such a wait that it ends.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match (self.state.close_reason.as_ref().map(|reason| &***reason), self.state.timeout) {
            (None | Some(CloseReason::Timeout), timeout @ Some(_)) | (None, timeout) => timeout,
            (_, timeout) => {
                Some(timeout.map_or(CLOSING_PATIENCE, |time| time.max(CLOSING_PATIENCE)))
            }
        }
    }

    /// Whether the handler has set another timeout since the last call.
    #[inline]
    pub(crate) fn take_timeout_changed(&mut self) -> bool {
        std::mem::take(&mut self.state.timeout_changed)
    }

    /// The way in from elsewhere, if one was handed out.
    pub(crate) fn send_queue(&self) -> Option<&Arc<SendQueue>> {
        self.state.send_queue.as_ref()
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.state.peer
    }

    /// Delivers the whole messages of `input` for which there is room, up to the budget.
    ///
    /// Nearly always there is one: it is counted by being the first.
    #[inline(always)]
    fn deliver(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) {
        if self.deliver_one(input, step_cx) && self.consumed < input.len() {
            self.deliver_more(input, step_cx);
        }
    }

    #[inline(never)]
    fn deliver_more(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) {
        for _ in 1..MESSAGE_BUDGET {
            if !self.deliver_one(input, step_cx) {
                return;
            }
        }
        if self.consumed < input.len() && !self.state.is_closing() {
            self.stuff();
        }
    }

    /// Delivers one message; false when there is none, or none may be.
    #[inline(always)]
    fn deliver_one(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) -> bool {
        if self.consumed >= input.len() || self.state.is_closing() {
            return false;
        }
        if step_cx.output_buffer.len() >= step_cx.room {
            self.stuff();
            return false;
        }
        let step = self.framing.decode(&input[self.consumed..]);
        self.step(step, input, step_cx)
    }

    /// Notes that input is left.
    #[cold]
    fn stuff(&mut self) {
        self.state.blocked_on_output = true;
        self.state.needs_slow_path = true;
    }

    /// Asks the framing what the bytes are that the peer left behind.
    fn deliver_last(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) {
        while self.consumed < input.len() && !self.state.is_closing() {
            let step = self.framing.decode_eof(&input[self.consumed..]);
            let left = input.len() - self.consumed;
            let step = match step {
                Ok(Decoded::Incomplete) => Err(FramingError::UnexpectedEof { buffered: left }),
                other => other,
            };
            self.step(step, input, step_cx);
        }
    }

    /// Takes one step of the framing; false when it wants more input.
    #[inline(always)]
    fn step(
        &mut self,
        step: Result<Decoded, FramingError>,
        input: &[u8],
        step_cx: &mut StepCx<'_>,
    ) -> bool {
        let start = self.consumed;
        let left = input.len() - start;
        match step {
            Ok(Decoded::Frame { body, consumed })
                if (1..=left).contains(&consumed) && body.start <= body.end && body.end <= left =>
            {
                self.consumed += consumed;
                self.message(input, start + body.start..start + body.end, step_cx);
            }
            Ok(Decoded::Skip(count)) if (1..=left).contains(&count) => self.consumed += count,
            Ok(Decoded::Incomplete) => return false,
            Ok(_) => self.state.end(CloseReason::Framing(FramingError::Other(
                "the framing names bytes that are not there".into(),
            ))),
            Err(error) => self.state.end(CloseReason::Framing(error)),
        }
        true
    }

    #[inline(always)]
    fn message(&mut self, input: &[u8], body: Range<usize>, step_cx: &mut StepCx<'_>) {
        step_cx.tally.messages += 1;
        let (handler, mut cx) = self.parts(input, step_cx);
        if let Err(error) = handler.on_message(&input[body], &mut cx) {
            self.state.end(CloseReason::Error(error));
        }
    }

    /// The handler, and a context for it, side by side.
    #[inline(always)]
    fn parts<'a>(
        &'a mut self,
        input: &'a [u8],
        step_cx: &'a mut StepCx<'_>,
    ) -> (&'a mut H, Context<'a>) {
        let cx = Context {
            state: &mut self.state,
            framing: &mut *self.framing,
            output: Output::new(input, step_cx.output_buffer),
            senders: step_cx.senders,
            shutdown: &mut step_cx.shutdown,
        };
        (&mut self.handler, cx)
    }

    /// Gives the reason its proper name, where the handler has just closed without one.
    fn relabel(&mut self, reason: CloseReason) {
        if let Some(close_reason) = &mut self.state.close_reason
            && matches!(***close_reason, CloseReason::Handler)
        {
            ***close_reason = reason;
        }
    }

    /// Runs `call` over the read_buffer, which stays in place for [`input`](Self::input).
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

/// Serves one datagram to its end: a conversation of one message. Returns why it ended, and the
/// output is what to answer; it refers to `packet`.
pub(crate) fn serve_datagram<H: Handler>(
    handler: CatchDrop<H>,
    peer: Peer,
    packet: &[u8],
    truncated: bool,
    step_cx: &mut StepCx<'_>,
) -> CatchDrop<CloseReason> {
    let mut state = State::new(peer, true);
    state.truncated = truncated;
    let mut conversation =
        Conversation { handler, framing: Raw.into(), state, read_buffer: Vec::new(), consumed: 0 };
    conversation.open(step_cx);
    if !conversation.is_closing() {
        conversation
            .guarded(step_cx, |this, step_cx| this.message(packet, 0..packet.len(), step_cx));
    }
    conversation.end(CloseReason::Handler);
    conversation.closed(step_cx.tally)
}
