//! A conversation of a connection: on the loop, or with a worker for the length of a job.

use super::source::LoopState;
use crate::conversation::{Conversation, Framing, Handler, StepCx};
use crate::mailbox::Job;
use crate::sender::SendQueue;

/// What happens to a conversation: the input of its state machine.
pub(crate) enum ConversationEvent<'a> {
    Open,
    Receive(&'a [u8]),
    Eof,
    TimedOut,
}

/// A conversation that runs on the loop, or on a worker while a job is under way.
pub(crate) trait ConversationSlot: 'static {
    type Handler: Handler;
    type Framing: Framing;

    /// Delivers an event; at most `room` bytes of output are collected. Returns false when there is no
    /// output to send yet: a worker has the conversation now, or the input was only buffered.
    fn run(&mut self, step: ConversationEvent<'_>, room: usize, state: &mut LoopState) -> bool;

    /// Deals with what waits in the send queue, as far as there is room for its output; how many
    /// commands that were. Nothing when a worker has the conversation now.
    fn drain_send_queue(&mut self, room: usize, state: &mut LoopState) -> Option<usize>;

    /// The conversation, unless a worker has it.
    fn local(&mut self) -> Option<&mut Conversation<Self::Handler, Self::Framing>>;

    /// The conversation, for reading, unless a worker has it.
    fn local_ref(&self) -> Option<&Conversation<Self::Handler, Self::Framing>>;

    /// Takes the conversation back from a worker; its output goes to `state`.
    fn put_back(&mut self, work: Box<dyn Job>, state: &mut LoopState);

    /// Closes the conversation: `on_close` is called, here or on a worker.
    fn close(&mut self, state: &mut LoopState);
}

/// A conversation that always runs on the loop.
impl<H: Handler + 'static, F: Framing + 'static> ConversationSlot for Conversation<H, F> {
    type Handler = H;
    type Framing = F;

    #[inline(always)]
    fn run(&mut self, step: ConversationEvent<'_>, room: usize, state: &mut LoopState) -> bool {
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &state.entry, room);
        match step {
            ConversationEvent::Open => self.open(&mut step_cx),
            ConversationEvent::Receive(fresh) => self.receive(fresh, &mut step_cx),
            ConversationEvent::Eof => self.eof(&mut step_cx),
            ConversationEvent::TimedOut => self.timed_out(&mut step_cx),
        }
        state.shutdown |= step_cx.shutdown;
        true
    }

    fn drain_send_queue(&mut self, room: usize, state: &mut LoopState) -> Option<usize> {
        let mut step_cx =
            StepCx::new(&mut state.output_buffer, &mut state.tally, &state.entry, room);
        let commands = Conversation::drain_send_queue(self, SendQueue::take, &mut step_cx);
        state.shutdown |= step_cx.shutdown;
        Some(commands)
    }

    #[inline]
    fn local(&mut self) -> Option<&mut Conversation<H, F>> {
        Some(self)
    }

    #[inline]
    fn local_ref(&self) -> Option<&Conversation<H, F>> {
        Some(self)
    }

    fn put_back(&mut self, _work: Box<dyn Job>, _state: &mut LoopState) {}

    fn close(&mut self, state: &mut LoopState) {
        let reason = self.closed(&mut state.tally);
        state.end(self.id(), self.peer(), reason);
    }
}
