//! The mode `threading`: a thread serves each request. `pool` uses the same code with other options.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::completion::CompletionNotifier;
use super::queue_waits::QueueWait;
use super::service::{
    HandlerFactory, ListenerHandle, MakeFactory, ModeRunner, Requirements, RunContext,
    ServiceRunner, SessionFactory, make_handler,
};
use super::thread_pool::{PoolConfig, RunJob, ThreadPool};
use crate::accepted::{Accepted, AcceptedStream};
use crate::address::Peer;
use crate::blocking::{ActiveConnections, Registration, Session, SessionCx, WaitStrategy};
use crate::conversation::Scratch;
use crate::counters::Tally;
use crate::datagram::Datagram;
use crate::error::UnsupportedError;
use crate::event_loop::{DatagramDispatcher, Dispatcher, LoopCx, Silent, StreamDispatcher};
use crate::permits::ConnectionPermit;
use crate::server_state::StopRequester;
use crate::sys::{self, RecvMeta};

/// How long a thread that has served its request waits for the next one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The mode that serves each request in its own thread: Python's `ThreadingMixIn`. A thread that
/// has served its request is reused for the next one, and ends after some seconds without a
/// request.
///
/// If the system cannot start more threads (`RLIMIT_NPROC`, a control group's limit on pids,
/// memory) and no thread is free, a request is rejected at once, as in Python. It is counted in
/// [`Counters::rejected_full`](crate::Counters::rejected_full), and a warning is logged at most
/// once in ten seconds. With a [`limit`](Threading::limit) below the system's limit, clients wait
/// instead.
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`embedding`](crate::guide::embedding),
/// [`limits`](crate::guide::limits), [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`shared_state`](crate::guide::shared_state).
///
/// ```
/// use socketserver::{Server, Threading, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Threading::default().limit(500)) // as many threads at most
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threading {
    limit: Option<usize>,
    stack_size: Option<usize>,
    daemon: bool,
    block_on_close: bool,
}

impl Threading {
    pub(super) const DEFAULT: Threading =
        Threading { limit: None, stack_size: None, daemon: false, block_on_close: true };

    /// Sets how many requests may be served at a time; at this limit the listener pauses and
    /// clients wait in the kernel's queue. By default as many as the process can have threads without
    /// running out of memory mappings: on Linux an eighth of `vm.max_map_count`, usually 8,191. Python
    /// has no limit.
    #[must_use]
    pub fn limit(mut self, requests: usize) -> Self {
        self.limit = Some(requests.max(1));
        self
    }

    /// Sets the size of a thread's stack, in bytes; the standard library's 2 MiB by default. Only
    /// the used part takes memory.
    ///
    /// ```
    /// use socketserver::Threading;
    ///
    /// let threads = Threading::default().stack_size(256 * 1024);
    /// # let _ = threads;
    /// ```
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Python's `daemon_threads`: a stop neither waits for the threads nor aborts their
    /// connections, and they end with the process. Off by default.
    ///
    /// ```
    /// use socketserver::Threading;
    ///
    /// let threads = Threading::default().daemon_threads(true);
    /// # let _ = threads;
    /// ```
    #[must_use]
    pub fn daemon_threads(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Python's `block_on_close`: a stop waits for the threads until the [drain
    /// deadline](crate::Server::drain_timeout). On by default; off has the same effect as
    /// [`daemon_threads`](Threading::daemon_threads).
    ///
    /// ```
    /// use socketserver::Threading;
    ///
    /// let threads = Threading::default().block_on_close(false);
    /// # let _ = threads;
    /// ```
    #[must_use]
    pub fn block_on_close(mut self, block: bool) -> Self {
        self.block_on_close = block;
        self
    }

    fn is_detached(&self) -> bool {
        self.daemon || !self.block_on_close
    }
}

impl Default for Threading {
    fn default() -> Self {
        Threading::DEFAULT
    }
}

/// The state of a service between runs: a thread serves each request.
pub(super) struct ThreadRunner<T, S> {
    start: Box<dyn MakeFactory<T>>,
    serve: S,
    threads: Threads,
    /// Made by the first run: a request may end in a later run than the one that accepted it.
    notifier: Option<Arc<CompletionNotifier>>,
}

pub(super) fn threading<T, S>(
    mode: Threading,
    start: Box<dyn MakeFactory<T>>,
    serve: S,
) -> ServiceRunner
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    ServiceRunner(Box::new(ThreadRunner::new(Threads::for_each_request(mode), start, serve)))
}

impl<T, S> ThreadRunner<T, S> {
    pub(super) fn new(threads: Threads, start: Box<dyn MakeFactory<T>>, serve: S) -> Self {
        ThreadRunner { start, serve, threads, notifier: None }
    }
}

impl<T, S> ModeRunner for ThreadRunner<T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn stream_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn StreamDispatcher + 'a>> {
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn datagram_dispatcher<'a>(
        &'a mut self,
        run_cx: &RunContext<'_>,
    ) -> io::Result<Box<dyn DatagramDispatcher + 'a>> {
        Ok(Box::new(ThreadDispatcher::new(self, run_cx)?))
    }

    fn requirements(&self) -> Requirements {
        Requirements { threads: true, ..Requirements::default() }
    }
}

struct ThreadDispatcher<'a, T, S> {
    make: HandlerFactory<'a, T>,
    serve: &'a S,
    threads: &'a Threads,
    listener_handle: ListenerHandle,
    notifier: Arc<CompletionNotifier>,
    stop: StopRequester,
}

impl<'a, T, S> ThreadDispatcher<'a, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn new(runner: &'a mut ThreadRunner<T, S>, run_cx: &RunContext<'_>) -> io::Result<Self> {
        let ThreadRunner { start, serve, threads, notifier } = runner;
        let notifier =
            notifier.get_or_insert_with(|| Arc::new(completion_notifier(run_cx))).clone();
        let stop = run_cx.stop.clone();
        threads.begin_run(run_cx);
        let listener_handle = run_cx.listener_handle.clone();
        Ok(ThreadDispatcher {
            make: start.start(run_cx)?,
            serve,
            threads,
            listener_handle,
            notifier,
            stop,
        })
    }

    /// Whether a request is rejected, and not left in the kernel's queue.
    fn rejects(&self, cx: &mut LoopCx) -> bool {
        let rejected =
            self.threads.when_full == Overflow::Reject && !self.threads.has_room(&self.notifier);
        cx.scratch.tally.rejected_full += u64::from(rejected);
        rejected
    }
}

fn completion_notifier(run_cx: &RunContext<'_>) -> CompletionNotifier {
    let RunContext { control, service, .. } = run_cx;
    CompletionNotifier::new(control.mailbox.clone(), control.published.clone(), *service)
}

impl<T, S> Dispatcher for ThreadDispatcher<'_, T, S> {
    fn has_room(&mut self) -> bool {
        self.threads.when_full == Overflow::Reject || self.threads.has_room(&self.notifier)
    }

    fn notify_ends(&mut self) {
        self.notifier.notify_on_completion();
    }

    fn has_waiting(&self) -> bool {
        self.threads.pool.waiting() > 0
    }

    fn close_silent(&mut self, mature: u64, for_waiting: bool) -> Silent {
        self.threads.close_silent(mature, for_waiting)
    }

    fn heaviest(&self) -> usize {
        self.threads.active.heaviest()
    }

    fn close_heaviest(&mut self) {
        self.threads.active.close_heaviest();
    }

    fn burst(&self) -> usize {
        self.threads.room()
    }

    fn stop(&mut self) {
        self.threads.stop(&self.notifier);
    }

    fn abort_all(&mut self, cx: &mut LoopCx) {
        cx.scratch.tally.closed += self.threads.abort_all() as u64;
    }

    fn in_flight(&self) -> usize {
        self.threads.load()
    }

    fn ended_idle(&self) -> usize {
        self.threads.ended_idle()
    }
}

impl<T, S> StreamDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn nonblocking(&self) -> bool {
        false
    }

    fn dispatch(&mut self, stream: AcceptedStream, cx: &mut LoopCx) {
        if self.rejects(cx) {
            cx.scratch.tally.closed += 1;
            return;
        }
        let Some(made) = make_handler(&mut self.make, &stream.accepted(), cx) else {
            cx.scratch.tally.closed += 1;
            return;
        };
        let AcceptedStream { socket, peer, id, permit } = stream;
        let socket = Arc::new(socket);
        let (handle, now) = (&self.listener_handle, cx.turn.now);
        let session = self.serve.stream(made, handle, socket.clone(), peer, id, now);
        let registration = Some(self.threads.active.register(socket, id));
        let session = Box::new(session);
        self.threads.assign(SessionJob {
            session,
            registration,
            permit,
            notifier: self.notifier.clone(),
            stop: self.stop.clone(),
            queued: now,
        });
    }
}

impl<T, S> DatagramDispatcher for ThreadDispatcher<'_, T, S>
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    fn dispatch(&mut self, bytes: &[u8], peer: Peer, received: &RecvMeta, cx: &mut LoopCx) {
        if self.rejects(cx) {
            return;
        }
        let reply_socket = &self.listener_handle.reply_socket;
        let accepted = Accepted::datagram(&peer, reply_socket, received.info);
        let Some(made) = make_handler(&mut self.make, &accepted, cx) else { return };
        let id = accepted.known_id();
        let datagram = Datagram::new(bytes, peer, id, received);
        let session = Box::new(self.serve.datagram(made, &self.listener_handle, datagram));
        let (notifier, stop) = (self.notifier.clone(), self.stop.clone());
        self.threads.assign(SessionJob {
            session,
            registration: None,
            permit: None,
            notifier,
            stop,
            queued: cx.turn.now,
        });
    }
}

/// A request that waits for a thread.
struct SessionJob {
    session: Box<dyn Session + Send>,
    /// Its entry in the active connections; `None` for a datagram, since it does not wait for a peer.
    registration: Option<Registration>,
    permit: Option<ConnectionPermit>,
    notifier: Arc<CompletionNotifier>,
    /// The handle by which its handler requests a stop of the run that accepted it.
    stop: StopRequester,
    queued: Instant,
}

/// What to do with a request when the limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overflow {
    /// Pause the listener, which leaves it in the kernel's queue.
    Wait,
    /// Reject it.
    Reject,
}

/// The threads of one service, and the requests that they serve.
pub(super) struct Threads {
    pool: ThreadPool<SessionJob, RunSession>,
    /// Closes the silent connections that no thread has begun to serve. Their handlers may block, so
    /// the event loop does not call them.
    rejections: ThreadPool<SessionJob, RunSession>,
    active: Arc<ActiveConnections>,
    /// The limit of requests, including those that wait for a thread.
    most: usize,
    when_full: Overflow,
    /// Whether a stop does not wait for the threads.
    detached: bool,
}

impl Threads {
    fn for_each_request(mode: Threading) -> Self {
        let most = mode.limit.unwrap_or_else(sys::threads_of_map_limit);
        let stack_size = mode.stack_size;
        let config = PoolConfig {
            name: "thread",
            max_threads: most,
            waits: false,
            keep_alive: Some(KEEP_ALIVE),
            stack_size,
        };
        Self::new(config, most, Overflow::Wait, mode.is_detached())
    }

    pub(super) fn new(
        config: PoolConfig,
        most: usize,
        when_full: Overflow,
        detached: bool,
    ) -> Self {
        let pool = ThreadPool::new(config, RunSession);
        let one =
            PoolConfig { max_threads: 1, waits: true, keep_alive: Some(KEEP_ALIVE), ..config };
        let rejections = ThreadPool::new(one, RunSession);
        Threads { pool, rejections, active: Arc::default(), most, when_full, detached }
    }

    fn begin_run(&self, run_cx: &RunContext<'_>) {
        self.active.reopen(run_cx.stop.memory());
        let published = &run_cx.control.published;
        self.pool.begin_run(published, run_cx.stop.pool_flag());
        self.rejections.begin_run(published, run_cx.stop.pool_flag());
    }

    /// Whether another request can be taken. If not, the loop is notified when a request ends.
    fn has_room(&self, notifier: &CompletionNotifier) -> bool {
        if self.most == usize::MAX || self.all() < self.most {
            return true;
        }
        notifier.notify_on_completion();
        // A request may have ended just before the notification was enabled.
        self.all() < self.most
    }

    /// How many requests there are.
    fn all(&self) -> usize {
        self.pool.load() + self.rejections.load()
    }

    /// Has silent connections closed whose numbers are below `mature`, the oldest first: one for each
    /// request that waits for a thread, and at least one. With `for_waiting`, only those that occupy
    /// a thread.
    fn close_silent(&self, mature: u64, for_waiting: bool) -> Silent {
        let most = self.pool.waiting().max(1);
        let found = match self.active.reject_served(mature, most) {
            None => Silent::None,
            Some(0) => Silent::Young,
            Some(_) => Silent::Closed,
        };
        if for_waiting || found == Silent::Closed {
            return found;
        }
        let rejected = match self.active.reject_waiting(mature) {
            Ok(rejected) => rejected,
            Err(true) => return Silent::Young,
            Err(false) => return found,
        };
        let is_it = |job: &SessionJob| {
            job.registration.as_ref().is_some_and(|registration| registration.id() == rejected)
        };
        // If it is not found, a thread has just begun to serve it, and closes it.
        if let Some(job) = self.pool.take_waiting_if(is_it) {
            self.rejections.push(job);
            self.rejections.call();
        }
        Silent::Closed
    }

    /// How many more requests can be taken at once; at least one, which
    /// [`has_room`](Threads::has_room) checks. Rejected requests do not count.
    fn room(&self) -> usize {
        if self.most == usize::MAX || self.when_full == Overflow::Reject {
            return usize::MAX;
        }
        self.most.saturating_sub(self.all()).max(1)
    }

    /// Hands a request to a thread; it is rejected if no thread can be started for it.
    fn assign(&self, job: SessionJob) {
        self.pool.push(job);
        self.pool.call();
    }

    /// How many requests a stop must wait for.
    fn load(&self) -> usize {
        if self.detached { 0 } else { self.all() }
    }

    /// How many requests have ended that were idle when the stop began.
    fn ended_idle(&self) -> usize {
        self.active.ended_idle()
    }

    /// Ends the idle connections.
    fn stop(&self, notifier: &CompletionNotifier) {
        if self.detached {
            return;
        }
        notifier.notify_on_completion();
        self.active.stop();
    }

    /// Aborts every remaining connection. Returns how many connections were dropped that no thread
    /// had begun to serve.
    fn abort_all(&self) -> usize {
        if self.detached {
            return 0;
        }
        let mut waiting = self.pool.take_waiting();
        waiting.extend(self.rejections.take_waiting());
        self.active.abort_all();
        waiting.iter().filter(|job| job.registration.is_some()).count()
    }
}

thread_local! {
    /// The buffers that a thread keeps between requests.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::with_read_buffer());
}

/// Serves a request to its end.
struct RunSession;

impl RunJob<SessionJob> for RunSession {
    type After = Arc<CompletionNotifier>;

    fn taken(&self, job: &mut SessionJob) -> Option<QueueWait> {
        let wait = QueueWait { queued: job.queued, taken: Instant::now() };
        SCRATCH.with_borrow_mut(|scratch| scratch.tally.wait(wait.time()));
        if let Some(registration) = &job.registration {
            registration.set_served(wait.taken);
        }
        Some(wait)
    }

    fn run(&self, job: SessionJob) -> Arc<CompletionNotifier> {
        let SessionJob { session, registration, permit, notifier, stop, queued: _ } = job;
        SCRATCH.with_borrow_mut(|scratch| {
            let wait = registration.as_ref().map_or(WaitStrategy::Never, WaitStrategy::Thread);
            let mut cx = SessionCx {
                scratch: &mut *scratch,
                leaves_lingering: false,
                wait,
                no_sender: UnsupportedError::DatagramSender,
                stop: &stop,
            };
            let served = session.run(&mut cx);
            debug_assert!(scratch.output_buffer.is_empty());
            // Whoever sees the end, or that it is counted, can connect.
            drop(permit);
            drop(registration);
            notifier.served(served, &mut scratch.tally);
        });
        notifier
    }

    fn after(&self, notifier: Arc<CompletionNotifier>) {
        notifier.freed();
    }

    /// Rejects the request.
    fn refuse(&self, job: SessionJob) {
        let SessionJob { session, registration, permit, notifier, stop: _, queued: _ } = job;
        let closed = u64::from(registration.is_some());
        drop(permit);
        drop((session, registration));
        let mut tally = Tally::default();
        (tally.rejected_full, tally.closed) = (1, closed);
        notifier.published.add(&mut tally);
        notifier.freed();
    }
}
