//! The jobs of workers: a worker gets a conversation for each event that runs the handler, and returns
//! it with the output. The loop does all the reading and writing, and finds out whether a whole message
//! is there to submit a job for.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::OffloadWorkers;
use crate::conversation::{
    Conversation, DatagramCx, Framing, Handler, OutputBuffer, PeekedFrame, StepCx, serve_datagram,
};
use crate::counters::Tally;
use crate::datagram::{Datagram, ReplySocket};
use crate::error::CloseReason;
use crate::event_loop::{ConversationEvent, ConversationSlot, EntryRef, LoopCx, LoopState};
use crate::guard;
use crate::mailbox::{Ended, Job, Mail};
use crate::sys::{CatchDrop, Destination};

/// The workers of one listener's connections.
pub(super) struct OffloadTarget {
    workers: Arc<OffloadWorkers>,
    /// The number in the server of the service that is told when a conversation has ended.
    service: usize,
    /// How many conversations workers have yet to close.
    closing: Arc<AtomicUsize>,
}

impl OffloadTarget {
    pub(super) fn new(workers: Arc<OffloadWorkers>, service: usize) -> Self {
        OffloadTarget { workers, service, closing: Arc::default() }
    }

    /// How many conversations workers have yet to close. When this number falls, what they leave for the
    /// loop is in its mailbox, and the loop is about to be woken.
    pub(super) fn closing(&self) -> usize {
        self.closing.load(SeqCst)
    }
}

/// A conversation that is either on the loop or with a worker.
pub(super) struct OffloadSlot<H, F> {
    target: Arc<OffloadTarget>,
    /// `None` while a worker has it.
    conversation: Option<Box<Conversation<H, F>>>,
}

/// What goes to the worker: the conversation itself, and what it needs there. Only the thread that owns
/// the job can use the conversation, so the order of messages is kept without a lock.
struct ConversationJob<H, F> {
    /// `None` when it has been closed.
    conversation: Option<Box<Conversation<H, F>>>,
    kind: JobKind,
    output_buffer: OutputBuffer,
    tally: Tally,
    entry: EntryRef,
    room: usize,
    shutdown: bool,
}

/// What a worker is to do with it.
enum JobKind {
    Open,
    /// Deliver the whole messages of the buffered input.
    Receive(PeekedFrame),
    Eof,
    TimedOut,
    /// Close the conversation; it does not return to the loop.
    Close {
        service: usize,
        closing: Arc<AtomicUsize>,
    },
}

impl<H, F> OffloadSlot<H, F> {
    pub(super) fn new(conversation: Conversation<H, F>, target: Arc<OffloadTarget>) -> Self {
        OffloadSlot { target, conversation: Some(Box::new(conversation)) }
    }
}

impl<H, F> OffloadSlot<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn submit(&mut self, kind: JobKind, room: usize, entry: &EntryRef) {
        let Some(conversation) = self.conversation.take() else {
            return;
        };
        let job = ConversationJob {
            conversation: Some(conversation),
            kind,
            output_buffer: OutputBuffer::default(),
            tally: Tally::default(),
            entry: entry.clone(),
            room,
            shutdown: false,
        };
        self.target.workers.submit(&entry.mailbox, entry.token, Box::new(job));
    }
}

impl<H, F> ConversationSlot for OffloadSlot<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    type Handler = H;
    type Framing = F;

    fn run(&mut self, step: ConversationEvent<'_>, room: usize, state: &mut LoopState) -> bool {
        let Some(conversation) = &mut self.conversation else {
            return false;
        };
        let kind = match step {
            ConversationEvent::Open => JobKind::Open,
            ConversationEvent::Eof => JobKind::Eof,
            ConversationEvent::TimedOut => JobKind::TimedOut,
            ConversationEvent::Receive(fresh) => {
                conversation.buffer(fresh);
                // Without a whole message nothing has been delivered that would have to be settled.
                let Some(peeked) = conversation.peek_frame() else {
                    return false;
                };
                JobKind::Receive(peeked)
            }
        };
        self.submit(kind, room, &state.entry);
        false
    }

    fn local(&mut self) -> Option<&mut Conversation<H, F>> {
        self.conversation.as_deref_mut()
    }

    fn local_ref(&self) -> Option<&Conversation<H, F>> {
        self.conversation.as_deref()
    }

    fn put_back(&mut self, work: Box<dyn Job>, state: &mut LoopState) {
        let Ok(job) = work.into_any().downcast::<ConversationJob<H, F>>() else {
            return;
        };
        let ConversationJob { conversation, output_buffer, mut tally, shutdown, .. } = *job;
        state.output_buffer = output_buffer;
        state.tally.absorb(&mut tally);
        state.shutdown |= shutdown;
        self.conversation = conversation;
    }

    fn close(&mut self, state: &mut LoopState) {
        if self.conversation.is_none() {
            return;
        }
        let OffloadTarget { service, closing, .. } = &*self.target;
        closing.fetch_add(1, SeqCst);
        let kind = JobKind::Close { service: *service, closing: closing.clone() };
        self.submit(kind, 0, &state.entry);
    }
}

impl<H, F> Job for ConversationJob<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn run(&mut self) -> bool {
        let Some(conversation) = &mut self.conversation else { return false };
        let mut step_cx =
            StepCx::new(&mut self.output_buffer, &mut self.tally, &self.entry, self.room);
        match &mut self.kind {
            JobKind::Open => conversation.open(&mut step_cx),
            JobKind::Receive(peeked) => conversation.receive_buffered(peeked, &mut step_cx),
            JobKind::Eof => conversation.eof(&mut step_cx),
            JobKind::TimedOut => conversation.timed_out(&mut step_cx),
            JobKind::Close { service, closing } => {
                let reason = conversation.closed(step_cx.tally);
                let peer = conversation.peer().clone();
                self.conversation = None;
                let mut tally = std::mem::take(&mut self.tally);
                tally.panics += guard::take_caught();
                let ended = Ended { service: *service, peer, reason, tally };
                self.entry.mailbox.post(Mail::Ended(Box::new(ended)));
                closing.fetch_sub(1, SeqCst);
                return false;
            }
        }
        self.shutdown |= step_cx.shutdown;
        self.tally.panics += guard::take_caught();
        true
    }

    fn abandoned(&mut self) {
        if let Some(conversation) = &mut self.conversation {
            conversation.end(CloseReason::Shutdown);
            conversation.closed(&mut Tally::default());
        }
    }

    fn asks_shutdown(&self) -> bool {
        self.shutdown
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A datagram, and the handler that a worker runs for it.
pub(super) struct DatagramJob<H> {
    /// `None` when it has been served.
    handler: Option<CatchDrop<H>>,
    datagram: Datagram,
    reply_socket: Arc<ReplySocket>,
    output_buffer: OutputBuffer,
    tally: Tally,
    reason: Option<CatchDrop<CloseReason>>,
    shutdown: bool,
}

impl<H: Handler + Send + 'static> DatagramJob<H> {
    pub(super) fn new(
        handler: CatchDrop<H>,
        datagram: Datagram,
        reply_socket: Arc<ReplySocket>,
    ) -> Self {
        DatagramJob {
            handler: Some(handler),
            datagram,
            reply_socket,
            output_buffer: OutputBuffer::default(),
            tally: Tally::default(),
            reason: None,
            shutdown: false,
        }
    }

    /// Takes it back from a worker. Returns where its replies go, and the bytes that the output in `cx`
    /// refers to.
    pub(super) fn take_back(work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        let mut lent = work.into_any().downcast::<Self>().ok()?;
        std::mem::swap(&mut cx.output_buffer, &mut lent.output_buffer);
        cx.tally.absorb(&mut lent.tally);
        cx.shutdown |= lent.shutdown;
        let Datagram { bytes, peer, from, .. } = lent.datagram;
        if let Some(reason) = lent.reason {
            cx.end(&peer, reason);
        }
        Some((from, bytes))
    }
}

impl<H: Handler + Send + 'static> Job for DatagramJob<H> {
    fn run(&mut self) -> bool {
        let Some(handler) = self.handler.take() else { return true };
        let Datagram { bytes, peer, from, truncated, info } = &self.datagram;
        let datagram_cx = DatagramCx { reply_socket: &self.reply_socket, from, info: *info };
        let mut step_cx =
            StepCx::new(&mut self.output_buffer, &mut self.tally, &datagram_cx, usize::MAX);
        self.reason = Some(serve_datagram(handler, peer.clone(), bytes, *truncated, &mut step_cx));
        self.shutdown = step_cx.shutdown;
        self.tally.panics += guard::take_caught();
        true
    }

    fn abandoned(&mut self) {}

    fn asks_shutdown(&self) -> bool {
        self.shutdown
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
