//! The mode `offload`: the event loop reads and writes, worker threads run the handlers.

use std::io;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use self::jobs::{DatagramJob, OffloadSlot, OffloadTarget};
use super::queue_waits::QueueWait;
use super::reactor::LoopConnections;
use super::service::{
    HandlerFactory, ModeRunner, Requirements, RunContext, ServiceConfig, ServiceRunner,
    make_handler,
};
use super::thread_pool::{PoolConfig, RunJob, ThreadPool};
use crate::accepted::{Accepted, AcceptedStream};
use crate::address::Peer;
use crate::conversation::{Framing, Handler};
use crate::datagram::{Datagram, ReplySocket};
use crate::event_loop::{DatagramDispatcher, Dispatcher, EntryRef, LoopCx, StreamDispatcher};
use crate::mailbox::{Job, Mailbox, Notification, abandon};
use crate::sys::{CatchDrop, Destination, RecvMeta};
use crate::token::Token;

mod jobs;

/// The mode that runs handlers on a bounded pool of worker threads and everything else on the event
/// loop; a handler may block.
///
/// The loop reads, checks whether a message is complete, and writes. One worker handles the
/// messages of one read as one job, so the messages of a peer are handled in order, one after the
/// other. During the job the socket is not read, which gives back-pressure to the peer. An idle
/// connection does not occupy a thread.
///
/// A job wakes a worker and then the loop. Events that come together share one job: `on_open` and the
/// messages that have arrived when the connection is accepted, the last messages and `on_eof`, and
/// [`on_close`](crate::Handler::on_close) with whatever ends the conversation. The loop sends the output
/// of a job after it, so `on_close` may be called before the last output has left; but not while output
/// of earlier jobs waits for the peer, or if the job has made more than 64 KiB (or more than the high
/// mark of [`write_watermarks`](crate::Builder::write_watermarks), if that is less).
///
/// If the system cannot start more workers (`RLIMIT_NPROC`, a control group's limit on pids,
/// memory), messages wait for the existing ones, and a warning is logged at most once in ten
/// seconds. If there is no worker at all, the loop runs the handlers itself.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`embedding`](crate::guide::embedding),
/// [`parsing_once`](crate::guide::parsing_once),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`shared_state`](crate::guide::shared_state).
///
/// ```
/// use socketserver::{Offload, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Offload::new(64)) // as many calls that block at once
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offload {
    workers: NonZeroUsize,
}

impl Offload {
    pub(super) const DEFAULT: Offload = Offload { workers: NonZeroUsize::new(16).unwrap() };

    /// A pool with this number of workers, or with one if it is 0. A thread is started when there
    /// is work for it.
    pub fn new(workers: usize) -> Self {
        Offload { workers: NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN) }
    }
}

impl Default for Offload {
    /// 16 workers.
    fn default() -> Self {
        Offload::DEFAULT
    }
}

/// The state of a service between runs: its handlers run on workers, its connections are on the loop.
struct OffloadRunner<H, F> {
    config: ServiceConfig<(F, H)>,
    workers: Arc<OffloadWorkers>,
}

pub(super) fn offload<H, F>(mode: Offload, config: ServiceConfig<(F, H)>) -> ServiceRunner
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    ServiceRunner(Box::new(OffloadRunner { config, workers: Arc::new(OffloadWorkers::new(mode)) }))
}

impl<H, F> ModeRunner for OffloadRunner<H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        let OffloadRunner { config, workers } = self;
        workers.begin_run(run_cx);
        let connections = LoopConnections::new(config, run_cx)?;
        let target = Rc::new(OffloadTarget::new(workers.clone(), run_cx.service));
        Ok(Box::new(OffloadStreamDispatcher { connections, workers, target }))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        self.workers.begin_run(run_cx);
        let make = self.config.start.start(run_cx)?;
        let reply_socket = run_cx.listener_handle.reply_socket.clone();
        let workers = &self.workers;
        Ok(Box::new(OffloadDatagramDispatcher { make, workers, reply_socket, datagram_jobs: 0 }))
    }

    fn requirements(&self) -> Requirements {
        Requirements { threads: true, ..Requirements::default() }
    }
}

struct OffloadStreamDispatcher<'a, H, F> {
    connections: LoopConnections<'a, H, F>,
    workers: &'a OffloadWorkers,
    target: Rc<OffloadTarget<H, F>>,
}

impl<H, F> Dispatcher for OffloadStreamDispatcher<'_, H, F> {
    fn jobs_with_workers(&self) -> usize {
        self.target.closing()
    }

    fn wants_turn_end(&self) -> bool {
        true
    }

    fn on_turn_end(&mut self) {
        self.workers.call();
    }
}

impl<H, F> StreamDispatcher for OffloadStreamDispatcher<'_, H, F>
where
    H: Handler + Send + 'static,
    F: Framing + Send + 'static,
{
    fn nonblocking(&self) -> bool {
        true
    }

    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx) {
        let target = &self.target;
        self.connections
            .open(stream, cx, |conversation| OffloadSlot::new(conversation, target.clone()));
    }
}

/// How many datagrams may be with workers or wait for one; more wait in the kernel.
const MAX_DATAGRAM_JOBS: usize = 1024;

struct OffloadDatagramDispatcher<'a, H, F> {
    make: HandlerFactory<'a, (F, H)>,
    workers: &'a Arc<OffloadWorkers>,
    reply_socket: Arc<ReplySocket>,
    datagram_jobs: usize,
}

impl<H, F> Dispatcher for OffloadDatagramDispatcher<'_, H, F> {
    fn jobs_with_workers(&self) -> usize {
        self.datagram_jobs
    }

    fn has_room(&mut self) -> bool {
        self.datagram_jobs < MAX_DATAGRAM_JOBS
    }

    fn burst(&self) -> usize {
        MAX_DATAGRAM_JOBS.saturating_sub(self.datagram_jobs).max(1)
    }

    fn wants_turn_end(&self) -> bool {
        true
    }

    fn on_turn_end(&mut self) {
        self.workers.call();
    }

    fn in_flight(&self) -> usize {
        self.datagram_jobs
    }
}

impl<H: Handler + Send + 'static, F> DatagramDispatcher for OffloadDatagramDispatcher<'_, H, F> {
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        let accepted = Accepted::datagram(&peer, &self.reply_socket, received.info);
        let Some((framing, handler)) = make_handler(&mut self.make, &accepted, cx) else { return };
        drop(CatchDrop::new(framing));
        let (handler, id) = (handler.into(), accepted.known_id());
        self.datagram_jobs += 1;
        let datagram = Datagram::new(bytes, peer, id, received);
        let EntryRef { stop, token, .. } = &cx.call.entry;
        let reply_socket = self.reply_socket.clone();
        let (stop, queued) = (stop.clone(), cx.turn.now);
        let work = Box::new(DatagramJob::new(handler, datagram, reply_socket, stop, queued));
        self.workers.submit(cx.call.entry.mailbox(), *token, work);
    }

    fn returned(&mut self, work: Box<dyn Job>, cx: &mut LoopCx) -> Option<(Destination, Vec<u8>)> {
        self.datagram_jobs -= 1;
        DatagramJob::<H>::take_back(work, cx)
    }
}

struct QueuedJob {
    mailbox: Arc<Mailbox>,
    /// The run of the loop that queued it.
    run: usize,
    token: Token,
    work: Box<dyn Job>,
}

struct RunOffloadJob;

impl RunJob<QueuedJob> for RunOffloadJob {
    /// For a job that does not return to the loop: the mailbox of the loop, which may wait for the
    /// last job.
    type After = Option<Arc<Mailbox>>;

    fn taken(&self, job: &mut QueuedJob) -> Option<QueueWait> {
        let (queued, taken) = job.work.taken();
        Some(QueueWait { queued, taken })
    }

    fn run(&self, job: QueuedJob) -> Option<Arc<Mailbox>> {
        let QueuedJob { mailbox, run, token, mut work } = job;
        if work.run() {
            let follow_up = work.take_follow_up();
            mailbox.return_job(run, token, work);
            if let Some(follow_up) = follow_up {
                follow_up();
            }
            return None;
        }
        abandon(work);
        Some(mailbox)
    }

    fn after(&self, mailbox: Option<Arc<Mailbox>>) {
        if let Some(mailbox) = mailbox {
            mailbox.post(Notification::Wake);
        }
    }

    /// No worker can be started, so the job runs on this thread.
    fn refuse(&self, mut job: QueuedJob) {
        self.taken(&mut job);
        self.after(self.run(job));
    }
}

/// The workers of one service.
pub(crate) struct OffloadWorkers {
    pool: ThreadPool<QueuedJob, RunOffloadJob>,
}

impl OffloadWorkers {
    pub(crate) fn new(mode: Offload) -> Self {
        let max_threads = mode.workers.get();
        let config = PoolConfig {
            name: "worker",
            max_threads,
            waits: true,
            keep_alive: None,
            stack_size: None,
        };
        OffloadWorkers { pool: ThreadPool::new(config, RunOffloadJob) }
    }

    /// Queues a job of a connection or a datagram socket; [`call`](OffloadWorkers::call) then wakes
    /// a worker for it. When the job has finished, it is posted to `mailbox` as
    /// [`Notification::JobDone`].
    ///
    /// [`Notification::JobDone`]: crate::mailbox::Notification::JobDone
    pub(super) fn submit(&self, mailbox: &Arc<Mailbox>, token: Token, work: Box<dyn Job>) {
        let job = QueuedJob { mailbox: mailbox.clone(), run: mailbox.run(), token, work };
        // A simulation has no threads: it runs the job at any later time.
        #[cfg(feature = "testing")]
        if let Some(simulated) = mailbox.wakeup().simulated() {
            return simulated.run_later(Box::new(move || RunOffloadJob.refuse(job)));
        }
        self.pool.push(job);
    }

    fn begin_run(&self, run_cx: &RunContext<'_>) {
        self.pool.begin_run(&run_cx.control.published, run_cx.stop.pool_flag());
    }

    /// Wakes or starts a worker for the queued jobs: called once per turn, for any number of jobs.
    pub(crate) fn call(&self) {
        self.pool.call();
    }
}
