//! A conversation that is lent to a worker for each step that runs the handler, and comes home with
//! what was answered. The loop does all the reading and writing, and finds out whether there is a
//! whole message to lend it for.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::slot::{ConversationEvent, ConversationSlot};
use super::source::{EntryRef, LoopCx, LoopState};
use crate::blocking::{Datagram, NoSenders, Workers};
use crate::conversation::{
    Conversation, Framing, Handler, OutputBuffer, PeekedFrame, StepCx, serve_datagram,
};
use crate::counters::Tally;
use crate::error::CloseReason;
use crate::guard;
use crate::mailbox::{Ended, Job, Mail};
use crate::sys::{CatchDrop, Destination};

/// To whom the connections of one listener are lent.
pub(crate) struct OffloadTarget {
    workers: Arc<dyn Workers>,
    /// The service that is told when one fails, by its number in the server.
    service: usize,
    /// How many conversations are out to be told that they are over.
    closing: Arc<AtomicUsize>,
}

impl OffloadTarget {
    pub(crate) fn new(workers: Arc<dyn Workers>, service: usize) -> Self {
        OffloadTarget { workers, service, closing: Arc::default() }
    }

    /// How many conversations are out to be told that they are over. When it sinks, what they leave
    /// for the loop is in its mailbox, and it is about to be woken.
    pub(crate) fn closing(&self) -> usize {
        self.closing.load(SeqCst)
    }
}

/// A conversation that is either at home or out with a worker.
pub(crate) struct OffloadSlot<H, F> {
    target: Arc<OffloadTarget>,
    /// `None` while it is out.
    conversation: Option<Box<Conversation<H, F>>>,
}

/// What goes to the worker: the conversation itself, and what it needs on its way. Who has it may
/// use it, and nobody else can, so order is kept without a lock.
struct ConversationJob<H, F> {
    /// Gone when it has been told that it is over.
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
    /// Deliver what is whole among the input kept.
    Receive(PeekedFrame),
    Eof,
    TimedOut,
    /// Tell the handler that it is over; it does not come home.
    Close {
        service: usize,
        closing: Arc<AtomicUsize>,
    },
}

impl<H, F> OffloadSlot<H, F> {
    pub(crate) fn new(conversation: Conversation<H, F>, target: Arc<OffloadTarget>) -> Self {
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

/// A datagram that is lent with its handler.
pub(crate) struct DatagramJob<H> {
    /// Gone when it has been served.
    handler: Option<CatchDrop<H>>,
    datagram: Datagram,
    output_buffer: OutputBuffer,
    tally: Tally,
    reason: Option<CatchDrop<CloseReason>>,
    shutdown: bool,
}

impl<H: Handler + Send + 'static> DatagramJob<H> {
    pub(crate) fn new(handler: CatchDrop<H>, datagram: Datagram) -> Self {
        DatagramJob {
            handler: Some(handler),
            datagram,
            output_buffer: OutputBuffer::default(),
            tally: Tally::default(),
            reason: None,
            shutdown: false,
        }
    }

    /// Takes it back: where its replies go, and what the output in `turn` refers to.
    pub(crate) fn take_back(work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
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
        let Datagram { bytes, peer, truncated, .. } = &self.datagram;
        let mut step_cx =
            StepCx::new(&mut self.output_buffer, &mut self.tally, &NoSenders, usize::MAX);
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
