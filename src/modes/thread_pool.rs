//! A thread pool: worker threads that take jobs from one queue. `offload`, `threading` and `pool`
//! use it.
//!
//! **Invariant:** only a sleeping thread is woken, and only one at a time: a woken thread wakes the
//! next one if there are more jobs than its own. A thread is started only when no thread sleeps.
//!
//! **If no thread can be started.** The system may refuse to start a thread: RLIMIT_NPROC, a limit
//! on the pids of a control group, memory. Then the jobs wait for the existing threads. They are
//! [refused](RunJob::refuse) if the pool has no thread at all, or if [`PoolConfig::waits`] is
//! false. This is logged once per period.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::queue_waits::{QueueWait, QueueWaits};
use crate::counters::Published;
use crate::guard::log;
use crate::log_limiter::LogLimiter;
use crate::server_state::OverloadFlag;
use crate::sync::{Condvar, Mutex, MutexGuard, lock, thread, wait, wait_timeout};

/// How many threads all pools have started. So the name of a thread is unique in the process.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// The function that a worker thread runs for each job.
pub(crate) trait RunJob<J>: Send + Sync + 'static {
    /// The value that [`run`](RunJob::run) passes to [`after`](RunJob::after).
    type After;

    /// A thread has taken the job; returns how long the job has waited, if that is known. Called
    /// before [`run`](RunJob::run).
    fn taken(&self, job: &mut J) -> Option<QueueWait> {
        let _ = job;
        None
    }

    /// Runs the job. It must not panic; if it does, another thread replaces this one.
    fn run(&self, job: J) -> Self::After;

    /// Called when the job no longer counts in the pool's [`load`](ThreadPool::load).
    fn after(&self, after: Self::After);

    /// Handles a job for which there is no worker thread, on another thread, which should not be
    /// blocked for long. The job no longer counts. It must not panic.
    fn refuse(&self, job: J);
}

/// The settings of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolConfig {
    /// The name of the threads; a number is appended.
    pub(crate) name: &'static str,
    /// The maximum number of threads.
    pub(crate) max_threads: usize,
    /// Whether a job waits for an existing thread if no more threads can be started.
    pub(crate) waits: bool,
    /// How long a thread without work is kept; without limit if `None`.
    pub(crate) keep_alive: Option<Duration>,
    /// The size of a thread's stack, in bytes; the standard library's default if `None`.
    pub(crate) stack_size: Option<usize>,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    threads: usize,
    /// Threads that sleep and have not been woken.
    asleep: usize,
    /// Threads that have been woken and have not taken a job yet. A thread that is about to sleep
    /// may take the job of one of them.
    woken: usize,
    /// Threads that have been started and do not run yet.
    starting: usize,
    /// Jobs that are being run.
    busy: usize,
    closed: bool,
    /// Counts the wakes; set when a server first runs.
    published: Option<Arc<Published>>,
    waits: QueueWaits,
    /// Limits the warnings about threads that cannot be started.
    log_limiter: LogLimiter,
}

/// A thread pool with its job queue. After a drop, the threads end when the queue is empty.
pub(crate) struct ThreadPool<J: Send + 'static, L: RunJob<J>> {
    shared: Arc<PoolShared<J, L>>,
}

struct PoolShared<J, L> {
    queue: Mutex<Queue<J>>,
    work: Condvar,
    config: PoolConfig,
    run_job: L,
}

impl<J: Send + 'static, L: RunJob<J>> ThreadPool<J, L> {
    /// Makes a pool; no thread is started yet.
    pub(crate) fn new(config: PoolConfig, run_job: L) -> Self {
        let queue = Mutex::new(Queue {
            jobs: VecDeque::new(),
            threads: 0,
            asleep: 0,
            woken: 0,
            starting: 0,
            busy: 0,
            closed: false,
            published: None,
            waits: QueueWaits::default(),
            log_limiter: LogLimiter::default(),
        });
        ThreadPool { shared: Arc::new(PoolShared { queue, work: Condvar::new(), config, run_job }) }
    }

    /// Begins a run: counts wakes in `published`, and shows by `flag` whether the pool is overloaded,
    /// from now on.
    pub(crate) fn begin_run(&self, published: &Arc<Published>, flag: OverloadFlag) {
        let mut queue = lock(&self.shared.queue);
        queue.published = Some(published.clone());
        queue.waits.set_flag(flag);
    }

    /// Queues a job; [`call`](ThreadPool::call) then wakes a thread for it.
    pub(crate) fn push(&self, job: J) {
        lock(&self.shared.queue).jobs.push_back(job);
    }

    /// Wakes or starts a thread for the queued jobs, or refuses them.
    pub(crate) fn call(&self) {
        let mut queue = lock(&self.shared.queue);
        let refused = self.shared.wake_or_start_one(&mut queue);
        drop(queue);
        self.shared.refuse(refused);
    }

    /// How many jobs are not finished.
    pub(crate) fn load(&self) -> usize {
        let queue = lock(&self.shared.queue);
        queue.jobs.len() + queue.busy
    }

    /// How many jobs have to wait until others are finished: those for which there is no thread.
    pub(crate) fn waiting(&self) -> usize {
        self.load().saturating_sub(self.shared.config.max_threads)
    }

    /// Removes the jobs that no thread has begun.
    pub(crate) fn take_waiting(&self) -> VecDeque<J> {
        let mut queue = lock(&self.shared.queue);
        queue.waits.not_overloaded();
        std::mem::take(&mut queue.jobs)
    }

    /// Removes the first job that no thread has begun and `matches` accepts.
    pub(crate) fn take_waiting_if(&self, matches: impl Fn(&J) -> bool) -> Option<J> {
        let mut queue = lock(&self.shared.queue);
        let number = queue.jobs.iter().position(matches)?;
        queue.jobs.remove(number)
    }
}

impl<J: Send + 'static, L: RunJob<J>> PoolShared<J, L> {
    /// Wakes or starts one thread for the next job. Returns the jobs that no thread will take: the
    /// caller must refuse them after it has unlocked the queue.
    #[must_use]
    fn wake_or_start_one(self: &Arc<Self>, queue: &mut Queue<J>) -> VecDeque<J> {
        // The thread that is being woken or started wakes the next one itself.
        if queue.jobs.is_empty() || queue.woken + queue.starting > 0 {
            return VecDeque::new();
        }
        if queue.asleep > 0 {
            queue.asleep -= 1;
            queue.woken += 1;
            if let Some(published) = &queue.published {
                published.worker_woken();
            }
            self.work.notify_one();
        } else if queue.threads < self.config.max_threads {
            match self.start_one() {
                Ok(()) => {
                    queue.threads += 1;
                    queue.starting += 1;
                }
                Err(error) => return self.on_start_failure(queue, &error),
            }
        }
        VecDeque::new()
    }

    fn start_one(self: &Arc<Self>) -> io::Result<()> {
        let shared = self.clone();
        let number = STARTED.fetch_add(1, Relaxed) + 1;
        let mut builder = thread::Builder::new().name(format!("{}-{number}", self.config.name));
        if let Some(size) = self.config.stack_size {
            builder = builder.stack_size(size);
        }
        builder.spawn(move || shared.work()).map(drop)
    }

    /// Handles a failed start of a thread. Returns the jobs that the caller must refuse.
    fn on_start_failure(&self, queue: &mut Queue<J>, error: &io::Error) -> VecDeque<J> {
        let waits = self.config.waits && queue.threads > 0;
        if let Some(times) = queue.log_limiter.record(Instant::now()) {
            log::warn!(
                "cannot start another thread ({}) beside the existing {} ({times} times so far), {}: {error}",
                self.config.name,
                queue.threads,
                if waits { "so jobs wait for them" } else { "so requests are rejected" },
            );
        }
        if waits { VecDeque::new() } else { std::mem::take(&mut queue.jobs) }
    }

    fn refuse(&self, jobs: VecDeque<J>) {
        jobs.into_iter().for_each(|job| self.run_job.refuse(job));
    }

    /// Runs jobs until the thread is no longer needed.
    fn work(self: Arc<Self>) {
        let guard = RespawnGuard(&self);
        let mut queue = lock(&self.queue);
        queue.starting -= 1;
        loop {
            if let Some(mut job) = queue.jobs.pop_front() {
                queue.busy += 1;
                if let Some(wait) = self.run_job.taken(&mut job) {
                    let is_last = queue.jobs.is_empty();
                    queue.waits.job_taken(wait, is_last);
                }
                let refused = self.wake_or_start_one(&mut queue);
                drop(queue);
                self.refuse(refused);
                let after = self.run_job.run(job);
                lock(&self.queue).busy -= 1;
                self.run_job.after(after);
                queue = lock(&self.queue);
            } else if queue.closed {
                break;
            } else {
                queue.asleep += 1;
                let (woken, waited) = self.sleep(queue);
                queue = waited;
                if woken {
                    queue.woken -= 1;
                } else if !queue.closed {
                    queue.asleep -= 1;
                    break;
                }
            }
        }
        queue.threads -= 1;
        drop(queue);
        std::mem::forget(guard);
    }

    /// Sleeps until the thread is woken (true), or until [`PoolConfig::keep_alive`] has passed.
    fn sleep<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue<J>>,
    ) -> (bool, MutexGuard<'a, Queue<J>>) {
        while queue.woken == 0 && !queue.closed {
            let Some(keep_alive) = self.config.keep_alive else {
                queue = wait(&self.work, queue);
                continue;
            };
            let timed_out;
            (queue, timed_out) = wait_timeout(&self.work, queue, &self.queue, keep_alive);
            if timed_out && queue.woken == 0 {
                return (false, queue);
            }
        }
        (queue.woken > 0, queue)
    }
}

/// A guard that starts another thread if its thread ends by a panic.
struct RespawnGuard<'a, J: Send + 'static, L: RunJob<J>>(&'a Arc<PoolShared<J, L>>);

impl<J: Send + 'static, L: RunJob<J>> Drop for RespawnGuard<'_, J, L> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.threads -= 1;
        queue.busy -= 1;
        let refused = self.0.wake_or_start_one(&mut queue);
        drop(queue);
        self.0.refuse(refused);
    }
}

impl<J: Send + 'static, L: RunJob<J>> Drop for ThreadPool<J, L> {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
    }
}

#[cfg(all(test, socketserver_loom))]
mod models;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// A job that is a function of its input.
    struct Do<F>(F);

    impl<J, F: Fn(J) + Send + Sync + 'static> RunJob<J> for Do<F> {
        type After = ();

        fn run(&self, job: J) {
            (self.0)(job);
        }

        fn after(&self, (): ()) {}

        /// Runs the job on the calling thread.
        fn refuse(&self, job: J) {
            (self.0)(job);
        }
    }

    fn config(max_threads: usize) -> PoolConfig {
        PoolConfig { name: "test", max_threads, waits: true, keep_alive: None, stack_size: None }
    }

    #[test]
    fn a_job_is_refused_if_no_thread_can_be_started() {
        for stack_size in [usize::MAX, usize::MAX / 8] {
            for waits in [true, false] {
                let (done, results) = mpsc::channel();
                let pool = ThreadPool::new(
                    PoolConfig { stack_size: Some(stack_size), waits, ..config(3) },
                    Do(move |()| done.send(thread::current().id()).unwrap()),
                );
                pool.push(());
                pool.call();
                assert_eq!(results.try_recv(), Ok(thread::current().id()));
                assert_eq!(pool.load(), 0);
            }
        }
    }

    #[test]
    fn as_many_jobs_run_at_a_time_as_the_thread_limit_allows() {
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = ThreadPool::new(
            config(3),
            Do(move |number: usize| {
                started.send(number).unwrap();
                let _ = lock(&gate).recv_timeout(TEST_TIMEOUT);
            }),
        );
        for number in 0..5 {
            pool.push(number);
        }
        pool.call();
        let first: Vec<_> = (0..3).map(|_| starts.recv_timeout(TEST_TIMEOUT).unwrap()).collect();
        assert_eq!(first, [0, 1, 2]);
        assert_eq!(pool.load(), 5);
        for _ in 0..5 {
            release.send(()).unwrap();
        }
        assert_eq!(starts.recv_timeout(TEST_TIMEOUT), Ok(3));
        assert_eq!(starts.recv_timeout(TEST_TIMEOUT), Ok(4));
    }

    #[test]
    fn a_thread_that_panics_is_replaced() {
        let (done, results) = mpsc::channel();
        let pool = ThreadPool::new(
            config(1),
            Do(move |number: usize| {
                assert_ne!(number, 0, "a job that panics on purpose");
                done.send(number).unwrap();
            }),
        );
        pool.push(0);
        pool.push(1);
        pool.call();
        assert_eq!(results.recv_timeout(TEST_TIMEOUT), Ok(1));
    }

    #[test]
    fn an_idle_thread_is_reused_before_another_is_started() {
        let (done, results) = mpsc::channel();
        let pool = ThreadPool::new(
            config(8),
            Do(move |()| done.send(thread::current().name().map(str::to_owned)).unwrap()),
        );
        pool.push(());
        pool.call();
        let first = results.recv_timeout(TEST_TIMEOUT).unwrap();
        // Wait until the thread sleeps.
        while lock(&pool.shared.queue).asleep == 0 {
            thread::yield_now();
        }
        pool.push(());
        pool.call();
        assert_eq!(results.recv_timeout(TEST_TIMEOUT).unwrap(), first);
    }
}
