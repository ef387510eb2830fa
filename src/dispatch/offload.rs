//! The loop does the reading and writing, workers run the handlers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::crew::{Crew, Labour, Manning};
use crate::counters::Published;
use crate::mailbox::{Job, Mail, Mailbox, abandon};
use crate::session::Workers;
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
    home: Arc<Mailbox>,
    /// The run of the loop that lent it.
    run: usize,
    token: Token,
    work: Box<dyn Job>,
}

struct Errands;

impl Labour<QueuedJob> for Errands {
    /// The loop that may wait for the last job, of one that has not come home.
    type After = Option<Arc<Mailbox>>;

    fn run(&self, job: QueuedJob) -> Option<Arc<Mailbox>> {
        let QueuedJob { home, run, token, mut work } = job;
        if work.run() {
            home.return_job(run, token, work);
            return None;
        }
        abandon(work);
        Some(home)
    }

    fn after(&self, home: Option<Arc<Mailbox>>) {
        if let Some(home) = home {
            home.post(Mail::Wake);
        }
    }

    /// Not one worker can be had: done here and now, slowly, rather than never.
    fn refuse(&self, job: QueuedJob) {
        self.after(self.run(job));
    }
}

/// The workers of one service.
pub(crate) struct OffloadWorkers {
    crew: Crew<QueuedJob, Errands>,
}

impl OffloadWorkers {
    pub(crate) fn new(mode: Offload) -> Self {
        let most = mode.workers.get();
        let manning = Manning { name: "worker", most, waits: true, stay: None, stack_size: None };
        OffloadWorkers { crew: Crew::new(manning, Errands) }
    }

    /// Has wakes counted there from now on.
    pub(crate) fn count_into(&self, published: &Arc<Published>) {
        self.crew.count_into(published);
    }

    /// Sees to it that someone comes for what was queued: once per turn, however much it was.
    pub(crate) fn call(&self) {
        self.crew.call();
    }
}

impl Workers for OffloadWorkers {
    fn submit(&self, home: &Arc<Mailbox>, token: Token, work: Box<dyn Job>) {
        self.crew.push(QueuedJob { home: home.clone(), run: home.run(), token, work });
    }
}
