//! The slot for a conversation in a connection: the conversation is on the loop, or with a worker
//! during a job.

use super::source::LoopCx;
use crate::conversation::{Conversation, ConversationCore, Framing, Handler};
use crate::error::Limit;
use crate::mailbox::Job;
use crate::sender::SendQueue;

/// An event for a conversation: the input of its state machine.
pub(crate) enum ConversationEvent<'a> {
    Open,
    Receive(&'a [u8]),
    /// As `Receive`, where the end of the input follows. It can be delivered too, once what precedes it
    /// has been; if it is not, the driver reads it again.
    ReceiveLast(&'a [u8]),
    /// Messages and events wait in the send queue.
    SendQueue,
    Writable,
    Timer,
    Eof,
    IdleTimeout,
    /// The peer has reached a limit.
    Limit(Limit),
    Stop,
    /// As `Stop`, where nothing is left to read or to send: a conversation that is idle after it can be
    /// ended; if it is not, the driver does that.
    StopIfIdle,
}

/// A conversation that runs on the loop, or on a worker during a job.
pub(crate) trait ConversationSlot: 'static {
    /// Whether workers run the handler. Each step is a job then, and the driver has those events share a
    /// step that come together. `Open` waits for the `Receive` that follows it at once.
    const OFFLOADED: bool = false;

    /// Delivers an event; at most `room` bytes of output are collected, and `output_waits` if there is some
    /// of earlier steps to be sent. Returns false when there is no output to send yet: a worker has the
    /// conversation now, or the input was only buffered.
    fn run(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        output_waits: bool,
        cx: &mut LoopCx,
    ) -> bool;

    /// The conversation, unless a worker has it.
    fn local(&mut self) -> Option<&mut ConversationCore>;

    /// The conversation, for reading, unless a worker has it.
    fn local_ref(&self) -> Option<&ConversationCore>;

    /// Puts the conversation back after a job; its output goes to `cx`.
    fn put_back(&mut self, work: Box<dyn Job>, cx: &mut LoopCx);

    /// Closes the conversation: calls `on_close`, here or on a worker.
    fn close(&mut self, cx: &mut LoopCx);
}

/// A conversation that always runs on the loop.
impl<H: Handler + 'static, F: Framing + 'static> ConversationSlot for Conversation<H, F> {
    #[inline(always)]
    fn run(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        _output_waits: bool,
        cx: &mut LoopCx,
    ) -> bool {
        let mut step_cx = cx.scratch.step_cx(&cx.call.entry, room);
        match step {
            ConversationEvent::Open => self.open(&mut step_cx),
            ConversationEvent::Receive(fresh) | ConversationEvent::ReceiveLast(fresh) => {
                self.receive(fresh, &mut step_cx);
            }
            ConversationEvent::SendQueue => self.drain_send_queue(SendQueue::take, &mut step_cx),
            ConversationEvent::Writable => self.writable(&mut step_cx),
            ConversationEvent::Timer => self.timer_expired(&mut step_cx),
            ConversationEvent::Eof => self.eof(&mut step_cx),
            ConversationEvent::IdleTimeout => self.idle_timed_out(&mut step_cx),
            ConversationEvent::Limit(limit) => self.exceed(limit, &mut step_cx),
            ConversationEvent::Stop | ConversationEvent::StopIfIdle => self.stop(&mut step_cx),
        }
        true
    }

    #[inline]
    fn local(&mut self) -> Option<&mut ConversationCore> {
        Some(self)
    }

    #[inline]
    fn local_ref(&self) -> Option<&ConversationCore> {
        Some(self)
    }

    fn put_back(&mut self, _work: Box<dyn Job>, _cx: &mut LoopCx) {}

    fn close(&mut self, cx: &mut LoopCx) {
        let reason = self.closed(&mut cx.scratch.tally);
        cx.end(self.id(), self.peer(), reason);
    }
}
