//! How long jobs wait for a thread, and whether a thread pool is overloaded.

use std::time::{Duration, Instant};

use crate::server_state::OverloadFlag;

/// The time over which it is decided whether a pool is overloaded.
const WINDOW: Duration = Duration::from_millis(200);

/// A pool in which all jobs wait longer is overloaded. The test is that of CoDel, see
/// [RFC 8289](https://www.rfc-editor.org/rfc/rfc8289): a short queue of jobs does no harm; what shows
/// an overload is a queue that never gets short.
const LONG_WAIT: Duration = Duration::from_millis(20);

/// When a thread took a job, and when the job was queued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueWait {
    pub(crate) queued: Instant,
    pub(crate) taken: Instant,
}

impl QueueWait {
    pub(crate) fn time(self) -> Duration {
        self.taken.saturating_duration_since(self.queued)
    }
}

/// The waits of the jobs of one pool.
#[derive(Debug, Default)]
pub(super) struct QueueWaits {
    window_began: Option<Instant>,
    is_overloaded: bool,
    flag: Option<OverloadFlag>,
}

impl QueueWaits {
    /// Sets the flag that shows whether the pool is overloaded.
    pub(super) fn set_flag(&mut self, mut flag: OverloadFlag) {
        flag.set(self.is_overloaded);
        self.flag = Some(flag);
    }

    /// A thread has taken a job; `is_last` says that no other job waits.
    pub(super) fn job_taken(&mut self, wait: QueueWait, is_last: bool) {
        if is_last || wait.time() <= LONG_WAIT {
            return self.not_overloaded();
        }
        let began = *self.window_began.get_or_insert(wait.taken);
        if wait.taken.saturating_duration_since(began) >= WINDOW {
            self.set(true);
        }
    }

    /// A job has waited only shortly, or none waits.
    pub(super) fn not_overloaded(&mut self) {
        self.window_began = None;
        self.set(false);
    }

    fn set(&mut self, is_overloaded: bool) {
        if std::mem::replace(&mut self.is_overloaded, is_overloaded) != is_overloaded
            && let Some(flag) = &mut self.flag
        {
            flag.set(is_overloaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the pool is overloaded after each job, which is taken at the first time, in
    /// milliseconds, and has waited for the second one.
    fn after(jobs: &[(u64, u64)]) -> Vec<bool> {
        let start = Instant::now();
        let mut waits = QueueWaits::default();
        let taken = |(at, waited): &(u64, u64)| {
            let taken = start + Duration::from_secs(9) + Duration::from_millis(*at);
            waits.job_taken(
                QueueWait { queued: taken - Duration::from_millis(*waited), taken },
                false,
            );
            waits.is_overloaded
        };
        jobs.iter().map(taken).collect()
    }

    #[test]
    fn a_pool_in_which_all_jobs_wait_long_is_overloaded_after_the_window() {
        assert_eq!(after(&[(0, 30), (100, 40), (199, 50), (200, 60)]), [false, false, false, true]);
    }

    #[test]
    fn one_short_wait_shows_that_it_is_not() {
        assert_eq!(
            after(&[(0, 30), (100, 20), (200, 30), (399, 30), (400, 21), (401, 1)]),
            [false, false, false, false, true, false]
        );
    }

    #[test]
    fn a_pool_whose_queue_is_empty_is_not_overloaded() {
        let now = Instant::now() + Duration::from_secs(9);
        let mut waits = QueueWaits { is_overloaded: true, ..QueueWaits::default() };
        waits.job_taken(QueueWait { queued: now - Duration::from_secs(5), taken: now }, true);
        assert!(!waits.is_overloaded);
    }
}
