//! A thread per request, and what `pool` shares with it: sessions that a crew of threads serves.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::CompletionNotifier;
use super::thread_pool::{PoolConfig, RunJob, ThreadPool};
use crate::blocking::{
    ActiveConnections, READ_SIZE, Registration, Session, SessionCx, WaitStrategy,
};
use crate::conversation::OutputBuffer;
use crate::counters::{Published, Tally};
use crate::error::UnsupportedError;

/// How long a thread that has served its request waits for another one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A thread for each request: Python's `ThreadingMixIn`. A thread that has served its request is
/// used again for the next one, and ends after some seconds without any.
///
/// Where the system starts no more threads (`RLIMIT_NPROC`, a control group's limit on pids, memory) a
/// request for which none is free is turned away at once, as in Python: it is counted in
/// [`Counters::rejected_full`](crate::Counters::rejected_full), and a warning is logged, once in ten seconds. A
/// [`limit`](Threading::limit) below what the system allows lets clients wait instead.
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

    /// Sets how many requests may be served at a time; above it the listener pauses and clients
    /// wait in the kernel's queue. Without limit by default, as in Python.
    #[must_use]
    pub fn limit(mut self, requests: usize) -> Self {
        self.limit = Some(requests.max(1));
        self
    }

    /// Sets the size of a thread's stack, in bytes; the standard library's 2 MiB by default, of
    /// which only what is used takes memory.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Python's `daemon_threads`: a stop neither waits for the threads nor cuts them, and they end
    /// with the process. Off by default.
    #[must_use]
    pub fn daemon_threads(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Python's `block_on_close`: a stop waits for the threads, until the
    /// [`drain`](crate::Server::drain_timeout) deadline. On by default; off is as
    /// [`daemon_threads`](Threading::daemon_threads).
    #[must_use]
    pub fn block_on_close(mut self, block: bool) -> Self {
        self.block_on_close = block;
        self
    }

    fn is_left_alone(&self) -> bool {
        self.daemon || !self.block_on_close
    }
}

impl Default for Threading {
    fn default() -> Self {
        Threading::DEFAULT
    }
}

/// A request on its way to a thread.
pub(crate) struct SessionJob {
    pub(crate) session: Box<dyn Session + Send>,
    /// Its seat; a datagram has none, since it waits for nobody.
    pub(crate) registration: Option<Registration>,
    pub(crate) notifier: Arc<CompletionNotifier>,
    /// The run of the loop that it came in.
    pub(crate) run: usize,
}

/// What to do with a request when there is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Leave it in the kernel's queue.
    Pause,
    /// Turn it away.
    Reject,
}

/// The threads of one service, and the requests they are serving.
pub(crate) struct Threads {
    pool: ThreadPool<SessionJob, RunSession>,
    pub(crate) active: Arc<ActiveConnections>,
    /// How many requests there may be, those that wait for a thread included.
    most: usize,
    pub(crate) when_full: When,
    /// A stop lets them be.
    left_alone: bool,
}

impl Threads {
    pub(crate) fn for_each_request(mode: Threading) -> Self {
        let (most, stack_size) = (mode.limit.unwrap_or(usize::MAX), mode.stack_size);
        let config = PoolConfig {
            name: "thread",
            max_threads: most,
            waits: false,
            keep_alive: Some(KEEP_ALIVE),
            stack_size,
        };
        Self::new(config, most, When::Pause, mode.is_left_alone())
    }

    pub(super) fn new(config: PoolConfig, most: usize, when_full: When, left_alone: bool) -> Self {
        let pool = ThreadPool::new(config, RunSession);
        Threads { pool, active: Arc::default(), most, when_full, left_alone }
    }

    /// Has wakes counted there from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.pool.count_into(published);
    }

    /// Whether another request can be taken; if not, the loop is told when it can.
    pub(crate) fn has_room(&self, notifier: &CompletionNotifier) -> bool {
        if self.most == usize::MAX || self.pool.load() < self.most {
            return true;
        }
        notifier.notify_on_completion();
        // One may have ended just before it was known to be wanted.
        self.pool.load() < self.most
    }

    /// How many more requests can be taken at once; at least one, for which
    /// [`has_room`](Threads::has_room) answers. Those that are turned away take no room.
    pub(crate) fn room(&self) -> usize {
        if self.most == usize::MAX || self.when_full == When::Reject {
            return usize::MAX;
        }
        self.most.saturating_sub(self.pool.load()).max(1)
    }

    /// Hands a request to a thread; it may be turned away if there is none to be had.
    pub(crate) fn assign(&self, job: SessionJob) {
        self.pool.push(job);
        self.pool.call();
    }

    /// How many requests a stop has to wait for.
    pub(crate) fn load(&self) -> usize {
        if self.left_alone { 0 } else { self.pool.load() }
    }

    /// How many requests have ended that the stop found idle.
    pub(crate) fn ended_idle(&self) -> usize {
        self.active.ended_idle()
    }

    /// Ends who is idle.
    pub(crate) fn stop(&self, notifier: &CompletionNotifier) {
        if self.left_alone {
            return;
        }
        notifier.notify_on_completion();
        self.active.stop();
    }

    /// Ends everyone whose socket it can end; how many connections have ended that no thread had
    /// begun to serve.
    pub(crate) fn abort_all(&self) -> usize {
        if self.left_alone {
            return 0;
        }
        let wait = self.pool.take_waiting();
        self.active.abort_all();
        wait.iter().filter(|job| job.registration.is_some()).count()
    }
}

/// What a thread keeps from request to request.
struct ThreadScratch {
    buffer: Box<[u8]>,
    output_buffer: OutputBuffer,
    tally: Tally,
}

thread_local! {
    static SCRATCH: RefCell<ThreadScratch> = RefCell::new(ThreadScratch {
        buffer: vec![0; READ_SIZE].into_boxed_slice(),
        output_buffer: OutputBuffer::default(),
        tally: Tally::default(),
    });
}

/// RunSession requests to their ends.
struct RunSession;

impl RunJob<SessionJob> for RunSession {
    type After = Arc<CompletionNotifier>;

    fn run(&self, job: SessionJob) -> Arc<CompletionNotifier> {
        let SessionJob { session, registration, notifier, run } = job;
        SCRATCH.with_borrow_mut(|scratch| {
            let wait = registration.as_ref().map_or(WaitStrategy::Never, WaitStrategy::Thread);
            let mut cx = SessionCx {
                buffer: &mut scratch.buffer,
                output_buffer: &mut scratch.output_buffer,
                tally: &mut scratch.tally,
                leaves_lingering: false,
                wait,
                no_sender: UnsupportedError::DatagramSender,
                on_shutdown: &|| notifier.shutdown(run),
            };
            let served = session.run(&mut cx);
            debug_assert!(scratch.output_buffer.is_empty());
            notifier.served(served, &mut scratch.tally);
        });
        drop(registration);
        notifier
    }

    fn after(&self, notifier: Arc<CompletionNotifier>) {
        notifier.freed();
    }

    /// Turns it away.
    fn refuse(&self, job: SessionJob) {
        let SessionJob { session, registration, notifier, run: _ } = job;
        let closed = u64::from(registration.is_some());
        drop((session, registration));
        let mut tally = Tally { rejected_full: 1, closed, ..Tally::default() };
        notifier.published.add(&mut tally);
        notifier.freed();
    }
}
