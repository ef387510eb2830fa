//! Delivery: input becomes messages.

use std::ops::Range;

use super::{
    Conversation, ConversationCore, Decoded, Framing, Handler, MESSAGE_BUDGET, PeekedFrame,
    SHRINK_FROM, StepCx,
};
use crate::error::{CloseReason, FramingError};
use crate::guard;

/// The least memory that is reserved for a frame of known length, in bytes. Beyond that, at most as
/// much as has arrived is reserved, so that a length alone takes no memory.
const RESERVE_AT_LEAST: usize = 64 * 1024;

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// Takes `fresh` bytes and delivers the messages that are complete. Without bytes, it continues
    /// with input that was left because there was no room, the budget was used up or the input was
    /// paused.
    ///
    /// The output refers to the input. So the caller first sends the output together with
    /// [`input`](super::ConversationCore::input), and then calls [`consume_delivered`](super::ConversationCore::consume_delivered) with
    /// the same bytes, before anything else.
    #[inline(always)] // the hot path: one call less per layer is a tenth of all instructions
    pub(crate) fn receive(&mut self, fresh: &[u8], step_cx: &mut StepCx<'_>) {
        if self.state.needs_slow_path {
            self.state.clear_blocked();
            if self.state.input_ended {
                return self.eof(step_cx);
            }
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

    /// Buffers `fresh` bytes for a later [`receive_buffered`](Self::receive_buffered).
    pub(crate) fn buffer(&mut self, fresh: &[u8]) {
        self.read_buffer.extend_from_slice(fresh);
        self.state.needs_slow_path = true;
    }

    /// Decodes the first complete message of the buffered bytes, or the error in its place.
    ///
    /// The framing does not decode the same message twice: the result is for
    /// [`receive_buffered`](Self::receive_buffered).
    pub(crate) fn peek_frame(&mut self) -> Option<PeekedFrame> {
        let mut skipped = 0;
        let mut peeked = None;
        let mut frame_len = 0;
        while peeked.is_none() && skipped < self.read_buffer.len() {
            let input = &self.core.read_buffer[skipped..];
            match guard::call(|| self.framing.decode(input)) {
                Ok(Ok(Decoded::Incomplete)) => break,
                Ok(Ok(Decoded::Need(length))) => {
                    frame_len = length;
                    break;
                }
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
        self.reserve(frame_len);
        self.state.blocked = false;
        self.state.resumed = false;
        peeked
    }

    /// Delivers every complete message of the buffered bytes, as [`receive`](Self::receive) does.
    /// `peeked` is the first one.
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
}

impl ConversationCore {
    /// Drops the delivered input and buffers the rest, after the output has been sent or kept.
    #[inline(always)]
    pub(crate) fn consume_delivered(&mut self, fresh: &[u8]) {
        // Nothing was buffered and all was delivered: the usual case.
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
        let frame_len = self.state.take_frame_len();
        self.reserve(frame_len);
        if !self.read_buffer.is_empty() {
            self.state.needs_slow_path = true;
        }
    }

    /// Drops the first bytes of the read buffer, and frees the memory of a long message.
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

    /// Reserves memory for a frame of this length that has arrived in part; 0 reserves none.
    fn reserve(&mut self, frame_len: usize) {
        let arrived = self.read_buffer.len();
        let wanted = frame_len.min(RESERVE_AT_LEAST.max(2 * arrived));
        if arrived > 0 && wanted > self.read_buffer.capacity() {
            self.read_buffer.reserve_exact(wanted - arrived);
        }
    }
}

impl<H: Handler, F: Framing> Conversation<H, F> {
    /// Delivers the complete messages of `input`, while there is room, up to the budget.
    ///
    /// The usual case is one message, so the first is delivered without the loop.
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
            self.state.block();
        }
    }

    /// Delivers one message; returns false when there is none, or none may be delivered.
    #[inline(always)]
    fn deliver_one(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) -> bool {
        if self.consumed >= input.len() || self.state.is_halted() {
            return false;
        }
        if step_cx.output_buffer.len() >= step_cx.room {
            self.state.block();
            return false;
        }
        let step = self.framing.decode(&input[self.core.consumed..]);
        self.step(step, input, step_cx)
    }

    /// Passes the last bytes of the peer to the framing. Returns false if bytes are left, because
    /// the handler has paused the input.
    pub(super) fn deliver_last(&mut self, input: &[u8], step_cx: &mut StepCx<'_>) -> bool {
        while self.consumed < input.len() && !self.state.is_closing() {
            if self.state.is_halted() {
                return false;
            }
            let step = self.framing.decode_eof(&input[self.core.consumed..]);
            let left = input.len() - self.consumed;
            let step = match step {
                Ok(Decoded::Incomplete | Decoded::Need(_)) => {
                    Err(FramingError::UnexpectedEof { buffered: left })
                }
                other => other,
            };
            self.step(step, input, step_cx);
        }
        true
    }

    /// Takes one step of the framing; returns false when it needs more input.
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
            Ok(Decoded::Need(length)) => {
                self.state.rare_mut().frame_len = length;
                return false;
            }
            Ok(_) => {
                let error = "the framing returned a range outside of the input";
                self.reject(CloseReason::Framing(FramingError::Other(error.into())), step_cx);
            }
            Err(error) => self.reject(CloseReason::Framing(error), step_cx),
        }
        true
    }

    #[inline(always)]
    pub(super) fn message(&mut self, input: &[u8], body: Range<usize>, step_cx: &mut StepCx<'_>) {
        step_cx.tally.messages += 1;
        let (handler, mut cx) = self.parts(input, step_cx);
        if let Err(error) = handler.on_message(&input[body], &mut cx) {
            self.state.end(CloseReason::Error(error));
        }
    }
}
