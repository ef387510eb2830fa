//! The mode `pool`: a bounded number of worker threads serves the requests.

use super::service::{MakeFactory, ServiceRunner, SessionFactory};
use super::thread_pool::PoolConfig;
use super::threading::{Overflow, ThreadRunner, Threads};

/// The mode that serves requests with a bounded thread pool and a bounded queue in front of it; one
/// worker thread serves a request from its first byte to its last.
///
/// A connected client occupies a thread until it disconnects; for many clients that are mostly
/// idle, see [`Offload`](crate::Offload).
///
/// If the system cannot start more threads (`RLIMIT_NPROC`, a control group's limit on pids,
/// memory), requests wait in the queue for the existing ones, and a warning is logged at most once
/// in ten seconds. If there is no thread at all, requests are rejected and counted in
/// [`Counters::rejected_full`](crate::Counters::rejected_full).
///
/// In the guide: [`blocking_work`](crate::guide::blocking_work),
/// [`choosing_a_mode`](crate::guide::choosing_a_mode), [`embedding`](crate::guide::embedding),
/// [`reaching_others`](crate::guide::reaching_others),
/// [`several_cpus`](crate::guide::several_cpus), [`shared_state`](crate::guide::shared_state).
///
/// ```
/// use socketserver::{Pool, Server, handler_fn};
///
/// let server = Server::tcp("127.0.0.1:0")?
///     .mode(Pool::new(8).queue(100)) // 8 connections are served, 100 wait
///     .serve(|_| handler_fn(|message, cx| cx.send(message)))?;
/// # drop(server);
/// # Ok::<(), socketserver::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool {
    threads: usize,
    queue: usize,
    reject: bool,
    stack_size: Option<usize>,
}

impl Pool {
    pub(super) const DEFAULT: Pool =
        Pool { threads: 16, queue: 128, reject: false, stack_size: None };

    /// A pool with this number of threads, or with one if it is 0. A thread is started when there
    /// is work for it.
    pub fn new(threads: usize) -> Self {
        Pool::DEFAULT.threads(threads)
    }

    /// Sets the number of threads, 16 by default.
    ///
    /// ```
    /// use socketserver::Pool;
    ///
    /// let pool = Pool::default().threads(32);
    /// # let _ = pool;
    /// ```
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets how many accepted requests may wait for a thread, 128 by default.
    #[must_use]
    pub fn queue(mut self, requests: usize) -> Self {
        self.queue = requests;
        self
    }

    /// Sets whether a request is rejected at once when the queue is full, and not left in the
    /// kernel's queue. Off by default.
    ///
    /// ```
    /// use socketserver::Pool;
    ///
    /// let pool = Pool::new(8).queue(100).reject_when_full(true); // and not: clients wait
    /// # let _ = pool;
    /// ```
    #[must_use]
    pub fn reject_when_full(mut self, reject: bool) -> Self {
        self.reject = reject;
        self
    }

    /// Sets the size of a thread's stack, in bytes; the standard library's 2 MiB by default.
    ///
    /// ```
    /// use socketserver::Pool;
    ///
    /// let pool = Pool::new(1000).stack_size(256 * 1024);
    /// # let _ = pool;
    /// ```
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool::DEFAULT
    }
}

pub(super) fn pool<T, S>(mode: Pool, start: Box<dyn MakeFactory<T>>, serve: S) -> ServiceRunner
where
    T: Send + 'static,
    S: SessionFactory<T, Stream: Send, Datagram: Send>,
{
    ServiceRunner(Box::new(ThreadRunner::new(Threads::pooled(mode), start, serve)))
}

impl Threads {
    fn pooled(mode: Pool) -> Self {
        let stack_size = mode.stack_size;
        let config = PoolConfig {
            name: "pool",
            max_threads: mode.threads,
            waits: true,
            keep_alive: None,
            stack_size,
        };
        let when_full = if mode.reject { Overflow::Reject } else { Overflow::Wait };
        Threads::new(config, mode.threads.saturating_add(mode.queue), when_full, false)
    }
}
