//! The loop does the reading and writing, workers run the handlers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::thread_pool::{PoolConfig, RunJob, ThreadPool};
use crate::blocking::Workers;
use crate::counters::Published;
use crate::mailbox::{Job, Mail, Mailbox, abandon};
use crate::token::Token;

/// Handlers on a bounded pool of workers, everything else on the loop; a handler may block.
///
/// The loop reads, finds out whether a message is whole, and writes. For the messages that one read
/// brought, a connection is lent to one worker, so a peer's messages are handled in order, one after
/// the other; while it is lent its socket is not read, and the peer's own send buffer is the
/// back-pressure. An idle connection costs no thread.
///
/// Where the system starts no more workers (`RLIMIT_NPROC`, a control group's limit on pids, memory)
/// messages wait for those that there are, and a warning is logged, once in ten seconds; where there
/// is none, the loop runs the handlers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offload {
    workers: NonZeroUsize,
}

impl Offload {
    pub(super) const DEFAULT: Offload = Offload { workers: NonZeroUsize::new(16).unwrap() };

    /// As many workers, or one where that is 0. Threads are started when there is work for them.
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

struct QueuedJob {
    mailbox: Arc<Mailbox>,
    /// The run of the loop that lent it.
    run: usize,
    token: Token,
    work: Box<dyn Job>,
}

struct RunOffloadJob;

impl RunJob<QueuedJob> for RunOffloadJob {
    /// The loop that may wait for the last job, of one that has not come home.
    type After = Option<Arc<Mailbox>>;

    fn run(&self, job: QueuedJob) -> Option<Arc<Mailbox>> {
        let QueuedJob { mailbox, run, token, mut work } = job;
        if work.run() {
            mailbox.return_job(run, token, work);
            return None;
        }
        abandon(work);
        Some(mailbox)
    }

    fn after(&self, mailbox: Option<Arc<Mailbox>>) {
        if let Some(mailbox) = mailbox {
            mailbox.post(Mail::Wake);
        }
    }

    /// Not one worker can be had: done here and now, slowly, rather than never.
    fn refuse(&self, job: QueuedJob) {
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

    /// Has wakes counted there from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.pool.count_into(published);
    }

    /// Sees to it that someone comes for what was queued: once per turn, however much it was.
    pub(crate) fn call(&self) {
        self.pool.call();
    }
}

impl Workers for OffloadWorkers {
    fn submit(&self, mailbox: &Arc<Mailbox>, token: Token, work: Box<dyn Job>) {
        self.pool.push(QueuedJob { mailbox: mailbox.clone(), run: mailbox.run(), token, work });
    }
}
