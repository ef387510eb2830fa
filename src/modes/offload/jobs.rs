//! The jobs of workers: a worker gets a conversation for each event that runs the handler, and returns
//! it with the output. The loop does all the reading and writing, and finds out whether a whole message
//! is there to submit a job for.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::OffloadWorkers;
use crate::address::Origin;
use crate::conversation::{
    Conversation, DatagramCx, Framing, Handler, PeekedFrame, Scratch, serve_datagram,
};
use crate::counters::Tally;
use crate::datagram::{Datagram, ReplySocket};
use crate::error::CloseReason;
use crate::event_loop::{ConversationEvent, ConversationSlot, EntryRef, LoopCx};
use crate::guard;
use crate::mailbox::{Ended, Job, Mail};
use crate::sender::SendQueue;
use crate::server_state::StopRequester;
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
    /// Without a read buffer: a worker does not read.
    scratch: Scratch,
    entry: EntryRef,
    room: usize,
}

/// What a worker is to do with it.
enum JobKind {
    Open,
    /// Deliver the whole messages of the buffered input.
    Receive(PeekedFrame),
    /// Take what senders have queued: there is an event among it.
    SendQueue,
    Writable,
    Timer,
    Eof,
    IdleTimeout,
    Stop,
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
            scratch: Scratch::default(),
            entry: entry.clone(),
            room,
        };
        self.target.workers.submit(entry.mailbox(), entry.token, Box::new(job));
    }
}

impl<H, F> ConversationSlot for OffloadSlot<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    type Handler = H;
    type Framing = F;

    fn run(&mut self, step: ConversationEvent<'_>, room: usize, cx: &mut LoopCx) -> bool {
        let Some(conversation) = &mut self.conversation else {
            return false;
        };
        let kind = match step {
            ConversationEvent::Open => JobKind::Open,
            ConversationEvent::Eof => JobKind::Eof,
            ConversationEvent::SendQueue => {
                if !conversation.send_queue().is_some_and(|queue| queue.has_event()) {
                    // Messages are framed here; only an event needs the handler.
                    let mut step_cx = cx.scratch.step_cx(&cx.call.entry, room);
                    // An event that comes just now is left for the next call.
                    conversation.drain_send_queue(SendQueue::take_message, &mut step_cx);
                    return true;
                }
                JobKind::SendQueue
            }
            ConversationEvent::Writable => JobKind::Writable,
            ConversationEvent::Timer => JobKind::Timer,
            ConversationEvent::IdleTimeout => JobKind::IdleTimeout,
            ConversationEvent::Stop => JobKind::Stop,
            ConversationEvent::Receive(fresh) => {
                conversation.buffer(fresh);
                // Without a whole message nothing has been delivered that would have to be settled.
                let Some(peeked) = conversation.peek_frame() else {
                    return false;
                };
                JobKind::Receive(peeked)
            }
        };
        self.submit(kind, room, &cx.call.entry);
        false
    }

    fn local(&mut self) -> Option<&mut Conversation<H, F>> {
        self.conversation.as_deref_mut()
    }

    fn local_ref(&self) -> Option<&Conversation<H, F>> {
        self.conversation.as_deref()
    }

    fn put_back(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) {
        let Ok(job) = work.into_any().downcast::<ConversationJob<H, F>>() else {
            return;
        };
        let ConversationJob { conversation, scratch, .. } = *job;
        cx.scratch.take_over(scratch);
        self.conversation = conversation;
    }

    fn close(&mut self, cx: &mut LoopCx) {
        if self.conversation.is_none() {
            return;
        }
        let OffloadTarget { service, closing, .. } = &*self.target;
        closing.fetch_add(1, SeqCst);
        let kind = JobKind::Close { service: *service, closing: closing.clone() };
        self.submit(kind, 0, &cx.call.entry);
    }
}

impl<H, F> Job for ConversationJob<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn run(&mut self) -> bool {
        let Some(conversation) = &mut self.conversation else { return false };
        // The turn in which it was submitted may be long over.
        self.entry.renew_now();
        let mut step_cx = self.scratch.step_cx(&self.entry, self.room);
        match &mut self.kind {
            JobKind::Open => conversation.open(&mut step_cx),
            JobKind::Receive(peeked) => conversation.receive_buffered(peeked, &mut step_cx),
            JobKind::Eof => conversation.eof(&mut step_cx),
            JobKind::SendQueue => {
                conversation.drain_send_queue(SendQueue::take, &mut step_cx);
            }
            JobKind::Writable => conversation.writable(&mut step_cx),
            JobKind::Timer => conversation.timer_expired(&mut step_cx),
            JobKind::IdleTimeout => conversation.idle_timed_out(&mut step_cx),
            JobKind::Stop => conversation.stop(&mut step_cx),
            JobKind::Close { service, closing } => {
                let reason = conversation.closed(step_cx.tally);
                let origin = Origin { id: conversation.id(), peer: conversation.peer().clone() };
                self.conversation = None;
                let mut tally = std::mem::take(&mut self.scratch.tally);
                tally.panics += guard::take_caught();
                let ended = Ended { service: *service, origin, reason, tally };
                self.entry.mailbox().post(Mail::Ended(Box::new(ended)));
                closing.fetch_sub(1, SeqCst);
                return false;
            }
        }
        self.scratch.tally.panics += guard::take_caught();
        true
    }

    fn abandoned(&mut self) {
        if let Some(conversation) = &mut self.conversation {
            conversation.end(CloseReason::Shutdown);
            conversation.closed(&mut Tally::default());
        }
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
    /// Without a read buffer: a worker does not read.
    scratch: Scratch,
    reason: Option<CatchDrop<CloseReason>>,
    stop: StopRequester,
}

impl<H: Handler + Send + 'static> DatagramJob<H> {
    pub(super) fn new(
        handler: CatchDrop<H>,
        datagram: Datagram,
        reply_socket: Arc<ReplySocket>,
        stop: StopRequester,
    ) -> Self {
        DatagramJob {
            handler: Some(handler),
            datagram,
            reply_socket,
            scratch: Scratch::default(),
            reason: None,
            stop,
        }
    }

    /// Takes it back from a worker. Returns where its replies go, and the bytes that the output in `cx`
    /// refers to.
    pub(super) fn take_back(work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        let lent = *work.into_any().downcast::<Self>().ok()?;
        cx.scratch.take_over(lent.scratch);
        let Datagram { bytes, peer, from, .. } = lent.datagram;
        if let Some(reason) = lent.reason {
            cx.end(None, &peer, reason);
        }
        Some((from, bytes))
    }
}

impl<H: Handler + Send + 'static> Job for DatagramJob<H> {
    fn run(&mut self) -> bool {
        let Some(handler) = self.handler.take() else { return true };
        let Datagram { bytes, peer, id, from, truncated, .. } = &self.datagram;
        let (reply_socket, stop) = (&*self.reply_socket, &self.stop);
        let driver = DatagramCx { reply_socket, from, stop };
        let mut step_cx = self.scratch.step_cx(&driver, usize::MAX);
        self.reason =
            Some(serve_datagram(handler, peer.clone(), *id, bytes, *truncated, &mut step_cx));
        self.scratch.tally.panics += guard::take_caught();
        true
    }

    fn abandoned(&mut self) {}

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
