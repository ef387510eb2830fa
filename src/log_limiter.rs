//! A limit on how often a fault that goes on is logged.

use std::time::{Duration, Instant};

/// How often a fault that goes on is logged.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// A fault that goes on: it is counted each time, and logged once per period, 10 seconds.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    times: u64,
    logged: Option<Instant>,
}

impl LogLimiter {
    /// It happened again. Returns how often by now, if it is to be logged.
    pub(crate) fn record(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        let is_due = self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_PERIOD);
        is_due.then(|| {
            self.logged = Some(now);
            self.times
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_goes_on_is_logged_once_per_period() {
        let (mut log_limiter, start) = (LogLimiter::default(), Instant::now());
        assert_eq!(log_limiter.record(start), Some(1));
        assert_eq!(log_limiter.record(start + LOG_PERIOD / 2), None);
        assert_eq!(log_limiter.record(start + LOG_PERIOD), Some(3));
    }
}
