//! The jobs of workers: a worker gets a conversation for the events that call the handler, and returns
//! it with the output. The loop does all reading and writing, and submits a job when a complete message
//! has arrived.
//!
//! Each job wakes a worker and then the loop, so events that come together share one job: `on_open` and
//! the messages that have arrived by then, the last messages and `on_eof`, and `on_close` after the event
//! that ends the conversation, unless much output is left to be sent.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use super::OffloadWorkers;
use crate::address::LogPeer;
use crate::conversation::{
    Conversation, ConversationCore, DatagramDriver, Driver, Framing, Handler, PeekedFrame, Scratch,
    StepCx, serve_datagram,
};
use crate::datagram::{Datagram, ReplySocket};
use crate::error::{CloseReason, Limit, UnsupportedError};
use crate::event_loop::{ConversationEvent, ConversationSlot, EntryRef, LoopCx};
use crate::guard;
use crate::mailbox::{Ended, Job, Notification};
use crate::memory::MemoryCharge;
use crate::sender::{Recipient, SendQueue};
use crate::server_state::StopRequester;
use crate::sys::{CatchDrop, Destination};

/// The maximum number of finished jobs that are kept for reuse.
const SPARE_JOBS: usize = 16;

/// The workers of one listener's connections.
pub(super) struct OffloadTarget<H, F> {
    workers: Arc<OffloadWorkers>,
    /// The number of the service in the server. It is notified when a conversation has ended.
    service: usize,
    /// How many conversations the workers still have to close.
    closing: Arc<AtomicUsize>,
    /// Finished jobs, with their allocated memory, for reuse.
    #[allow(clippy::vec_box)] // the boxes themselves are reused
    spare_jobs: RefCell<Vec<Box<ConversationJob<H, F>>>>,
}

impl<H, F> OffloadTarget<H, F> {
    pub(super) fn new(workers: Arc<OffloadWorkers>, service: usize) -> Self {
        OffloadTarget { workers, service, closing: Arc::default(), spare_jobs: RefCell::default() }
    }

    /// How many conversations the workers still have to close. A worker posts the result to the mailbox
    /// of the loop before it decrements this number.
    pub(super) fn closing(&self) -> usize {
        self.closing.load(SeqCst)
    }

    /// Boxes a job; reuses the box of a finished job if there is one.
    fn boxed(&self, job: ConversationJob<H, F>) -> Box<ConversationJob<H, F>> {
        let Some(mut spare) = self.spare_jobs.borrow_mut().pop() else {
            return Box::new(job);
        };
        let scratch = std::mem::take(&mut spare.scratch);
        *spare = ConversationJob { scratch, ..job };
        spare
    }

    /// Keeps a finished job for reuse, unless it owns much memory.
    fn keep(&self, job: Box<ConversationJob<H, F>>) {
        let mut spare_jobs = self.spare_jobs.borrow_mut();
        if spare_jobs.len() < SPARE_JOBS && job.scratch.output_buffer.is_small() {
            spare_jobs.push(job);
        }
    }
}

/// A conversation that is either on the loop or with a worker.
pub(super) struct OffloadSlot<H, F> {
    target: Rc<OffloadTarget<H, F>>,
    /// `None` while a worker has it.
    conversation: Option<Box<OffloadConversation<H, F>>>,
}

/// A conversation, or its core after `on_close`.
enum OffloadConversation<H, F> {
    /// The handler can be called.
    Open(Conversation<H, F>),
    /// A worker has called `on_close` and dropped the handler and the framing; output may still wait.
    Closed(Box<ConversationCore>),
}

impl<H, F> OffloadConversation<H, F> {
    fn core(&self) -> &ConversationCore {
        match self {
            OffloadConversation::Open(conversation) => conversation,
            OffloadConversation::Closed(core) => core,
        }
    }

    fn core_mut(&mut self) -> &mut ConversationCore {
        match self {
            OffloadConversation::Open(conversation) => conversation,
            OffloadConversation::Closed(core) => core,
        }
    }
}

/// The job of a worker: the conversation, and what it needs there. Only the thread that owns the job can
/// use the conversation, so the order of messages is kept without a lock.
struct ConversationJob<H, F> {
    /// `None` after the final close, or after it has returned to the loop.
    conversation: Option<Box<OffloadConversation<H, F>>>,
    kind: JobKind,
    /// The memory of the undecoded input, which the loop does not count meanwhile.
    charge: Option<MemoryCharge>,
    /// Its read buffer stays empty, because a worker does not read.
    scratch: Scratch,
    entry: EntryRef,
    room: usize,
    /// No earlier output waits, so a close waits only for the output of this job.
    may_close: bool,
    /// The handler has asked for a stop of the server, which begins after the job is posted back.
    stop_requested: bool,
    service: usize,
}

/// The kind of a job. If it ends the conversation and little output is left, the worker also calls
/// `on_close`.
enum JobKind {
    /// Call `on_open` if it has not been called. Deliver the complete messages of the buffered input, and
    /// its end if it has `ended`.
    Receive {
        peeked: PeekedFrame,
        ended: bool,
    },
    /// Take the messages and events from the send queue, which has at least one event.
    SendQueue,
    Writable,
    Timer,
    /// Deliver the buffered input and its end.
    Eof,
    IdleTimeout,
    Limit(Limit),
    Stop,
    StopIfIdle,
    /// Close the conversation; it does not return to the loop.
    Close {
        closing: Arc<AtomicUsize>,
    },
}

impl JobKind {
    /// The kind of job for new input, if one is needed; `ended` says that the end follows.
    fn of_input<H: Handler, F: Framing>(
        conversation: &mut Conversation<H, F>,
        fresh: &[u8],
        ended: bool,
    ) -> Option<Self> {
        conversation.buffer(fresh);
        if !conversation.is_open() {
            // The first message is decoded after `on_open`, which may change the framing.
            return Some(JobKind::Receive { peeked: PeekedFrame::default(), ended });
        }
        if conversation.input_ended() {
            return Some(JobKind::Eof);
        }
        match conversation.peek_frame() {
            Some(peeked) => Some(JobKind::Receive { peeked, ended }),
            None => ended.then_some(JobKind::Eof),
        }
    }

    /// Calls the handler.
    fn run<H: Handler, F: Framing>(
        &mut self,
        conversation: &mut Conversation<H, F>,
        step_cx: &mut StepCx<'_>,
    ) {
        match self {
            JobKind::Receive { peeked, ended } => {
                if !conversation.is_open() {
                    conversation.open(step_cx);
                }
                conversation.receive_buffered(peeked, step_cx);
                if *ended {
                    conversation.eof_if_next(step_cx);
                }
            }
            // The input was paused before the end.
            JobKind::Eof if conversation.input_ended() => conversation.receive(&[], step_cx),
            JobKind::Eof => conversation.eof(step_cx),
            JobKind::SendQueue => conversation.drain_send_queue(SendQueue::take, step_cx),
            JobKind::Writable => conversation.writable(step_cx),
            JobKind::Timer => conversation.timer_expired(step_cx),
            JobKind::IdleTimeout => conversation.idle_timed_out(step_cx),
            JobKind::Limit(limit) => conversation.exceed(*limit, step_cx),
            JobKind::Stop => conversation.stop(step_cx),
            JobKind::StopIfIdle => conversation.stop_if_idle(step_cx),
            JobKind::Close { .. } => {}
        }
    }
}

impl<H, F> OffloadSlot<H, F> {
    pub(super) fn new(conversation: Conversation<H, F>, target: Rc<OffloadTarget<H, F>>) -> Self {
        let conversation = Box::new(OffloadConversation::Open(conversation));
        OffloadSlot { target, conversation: Some(conversation) }
    }
}

impl<H, F> OffloadSlot<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn submit(&mut self, kind: JobKind, room: usize, may_close: bool, entry: &EntryRef) {
        let OffloadTarget { workers, service, .. } = &*self.target;
        let held =
            self.conversation.as_deref().map_or(0, |conversation| conversation.core().held());
        let charge = (held > 0).then(|| MemoryCharge::new(entry.stop.memory().clone(), held));
        let job = ConversationJob {
            conversation: self.conversation.take(),
            kind,
            charge,
            scratch: Scratch::default(),
            entry: entry.clone(),
            room,
            may_close,
            stop_requested: false,
            service: *service,
        };
        workers.submit(entry.mailbox(), entry.token, self.target.boxed(job));
    }
}

impl<H, F> ConversationSlot for OffloadSlot<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    const OFFLOADED: bool = true;

    fn run(
        &mut self,
        step: ConversationEvent<'_>,
        room: usize,
        output_waits: bool,
        cx: &mut LoopCx,
    ) -> bool {
        let Some(OffloadConversation::Open(conversation)) = self.conversation.as_deref_mut() else {
            return false;
        };
        let kind = match step {
            // `on_open` shares the job of the input that follows.
            ConversationEvent::Open => None,
            // Without a complete message there is no job, and no output.
            ConversationEvent::Receive(fresh) => JobKind::of_input(conversation, fresh, false),
            ConversationEvent::ReceiveLast(fresh) => JobKind::of_input(conversation, fresh, true),
            ConversationEvent::Eof => Some(JobKind::Eof),
            ConversationEvent::SendQueue => {
                if !conversation.send_queue().is_some_and(|queue| queue.has_event()) {
                    // Messages are framed here; only an event needs the handler.
                    let mut step_cx = cx.scratch.step_cx(&cx.call.entry, room);
                    // An event that is posted meanwhile waits for the next call.
                    conversation.drain_send_queue(SendQueue::take_message, &mut step_cx);
                    return true;
                }
                Some(JobKind::SendQueue)
            }
            ConversationEvent::Writable => Some(JobKind::Writable),
            ConversationEvent::Timer => Some(JobKind::Timer),
            ConversationEvent::IdleTimeout => Some(JobKind::IdleTimeout),
            ConversationEvent::Limit(limit) => Some(JobKind::Limit(limit)),
            ConversationEvent::Stop => Some(JobKind::Stop),
            ConversationEvent::StopIfIdle => Some(JobKind::StopIfIdle),
        };
        if let Some(kind) = kind {
            self.submit(kind, room, !output_waits, &cx.call.entry);
        }
        false
    }

    fn local(&mut self) -> Option<&mut ConversationCore> {
        Some(self.conversation.as_deref_mut()?.core_mut())
    }

    fn local_ref(&self) -> Option<&ConversationCore> {
        Some(self.conversation.as_deref()?.core())
    }

    fn put_back(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) {
        let Ok(mut job) = work.into_any().downcast::<ConversationJob<H, F>>() else {
            return;
        };
        cx.scratch.take_over(&mut job.scratch);
        self.conversation = job.conversation.take();
        job.charge = None;
        self.target.keep(job);
    }

    fn close(&mut self, cx: &mut LoopCx) {
        match self.conversation.as_deref_mut() {
            None => {}
            Some(OffloadConversation::Open(_)) => {
                let closing = self.target.closing.clone();
                closing.fetch_add(1, SeqCst);
                self.submit(JobKind::Close { closing }, 0, true, &cx.call.entry);
            }
            Some(OffloadConversation::Closed(core)) => {
                let reason = core.take_close_reason();
                cx.end(core.id(), core.peer(), reason);
                self.conversation = None;
            }
        }
    }
}

/// The driver of a conversation in a job.
struct JobDriver<'a> {
    entry: &'a EntryRef,
    stop_requested: Cell<bool>,
}

impl Driver for JobDriver<'_> {
    fn send_queue(&self, recipient: Recipient) -> Result<Arc<SendQueue>, UnsupportedError> {
        self.entry.send_queue(recipient)
    }

    fn now(&self) -> Instant {
        self.entry.now()
    }

    /// The stop waits for the job: a connection that a worker has does not count as idle.
    fn request_stop(&self) {
        self.stop_requested.set(true);
    }

    fn is_overloaded(&self) -> bool {
        self.entry.is_overloaded()
    }
}

impl<H: Handler, F: Framing> ConversationJob<H, F> {
    /// Calls `on_close`, drops the handler and the framing, and leaves what the loop needs to send the
    /// output.
    fn notify_close(&mut self) {
        let Some(mut boxed) = self.conversation.take() else { return };
        let core = match *boxed {
            OffloadConversation::Open(mut conversation) => {
                conversation.notify_close(&mut self.scratch.tally);
                Box::new(conversation.into_core())
            }
            OffloadConversation::Closed(core) => core,
        };
        *boxed = OffloadConversation::Closed(core);
        self.conversation = Some(boxed);
    }

    /// Closes the conversation and posts its close reason to the mailbox of the loop.
    fn close(&mut self) {
        self.notify_close();
        let mut tally = std::mem::take(&mut self.scratch.tally);
        tally.panics += guard::take_caught();
        let Some(mut conversation) = self.conversation.take() else { return };
        let core = conversation.core_mut();
        let origin = LogPeer { id: core.id(), peer: core.peer().clone() };
        let reason = core.take_close_reason();
        let ended = Ended { service: self.service, origin, reason, tally };
        self.entry.mailbox().post(Notification::Ended(Box::new(ended)));
    }
}

impl<H, F> Job for ConversationJob<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn taken(&mut self) -> (Instant, Instant) {
        let queued = self.entry.now();
        // The turn that submitted the job may have ended long ago.
        self.entry.renew_now();
        let taken = self.entry.now();
        self.scratch.tally.wait(taken.saturating_duration_since(queued));
        (queued, taken)
    }

    fn run(&mut self) -> bool {
        if let JobKind::Close { closing } = &self.kind {
            let closing = closing.clone();
            self.close();
            closing.fetch_sub(1, SeqCst);
            return false;
        }
        let Some(OffloadConversation::Open(conversation)) = self.conversation.as_deref_mut() else {
            return false;
        };
        let driver = JobDriver { entry: &self.entry, stop_requested: Cell::new(false) };
        let mut step_cx = self.scratch.step_cx(&driver, self.room);
        self.kind.run(conversation, &mut step_cx);
        // Much output may take long to send: `on_close` is then called after the loop has sent it.
        let is_short = step_cx.output_buffer.len() <= self.room;
        self.stop_requested = driver.stop_requested.get();
        if conversation.is_closing() && self.may_close && is_short {
            self.notify_close();
        }
        self.scratch.tally.panics += guard::take_caught();
        true
    }

    fn take_follow_up(&mut self) -> Option<Box<dyn FnOnce()>> {
        let entry = self.stop_requested.then(|| self.entry.clone())?;
        Some(Box::new(move || entry.request_stop()))
    }

    fn abandoned(&mut self) {
        if let Some(conversation) = self.conversation.as_deref_mut() {
            conversation.core_mut().end(CloseReason::Shutdown);
        }
        self.close();
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
    /// Its read buffer stays empty, because a worker does not read.
    scratch: Scratch,
    reason: Option<CatchDrop<CloseReason>>,
    stop: StopRequester,
    queued: Instant,
}

impl<H: Handler + Send + 'static> DatagramJob<H> {
    pub(super) fn new(
        handler: CatchDrop<H>,
        datagram: Datagram,
        reply_socket: Arc<ReplySocket>,
        stop: StopRequester,
        queued: Instant,
    ) -> Self {
        DatagramJob {
            handler: Some(handler),
            datagram,
            reply_socket,
            scratch: Scratch::default(),
            reason: None,
            stop,
            queued,
        }
    }

    /// Takes the job back from a worker. Returns the destination of the replies, and the bytes to which
    /// the output in `cx` refers.
    pub(super) fn take_back(work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        let mut job = *work.into_any().downcast::<Self>().ok()?;
        cx.scratch.take_over(&mut job.scratch);
        let Datagram { bytes, peer, from, .. } = job.datagram;
        if let Some(reason) = job.reason {
            cx.end(None, &peer, reason);
        }
        Some((from, bytes))
    }
}

impl<H: Handler + Send + 'static> Job for DatagramJob<H> {
    fn taken(&mut self) -> (Instant, Instant) {
        let taken = self.stop.clock().now();
        self.scratch.tally.wait(taken.saturating_duration_since(self.queued));
        (self.queued, taken)
    }

    fn run(&mut self) -> bool {
        let Some(handler) = self.handler.take() else { return true };
        let Datagram { bytes, peer, id, from, truncated, .. } = &self.datagram;
        let (reply_socket, stop) = (&*self.reply_socket, &self.stop);
        let driver = DatagramDriver { reply_socket, from, stop };
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
