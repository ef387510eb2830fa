//! The idle timeout of a conversation, in 8 bytes.

use std::num::NonZeroU64;
use std::time::Duration;

/// A timeout, or none: nanoseconds and 1 more. One that is longer than 584 years is none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IdleTimeout(Option<NonZeroU64>);

impl IdleTimeout {
    pub(super) fn get(self) -> Option<Duration> {
        self.0.map(|nanoseconds| Duration::from_nanos(nanoseconds.get() - 1))
    }
}

impl From<Option<Duration>> for IdleTimeout {
    fn from(timeout: Option<Duration>) -> Self {
        let nanoseconds = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok());
        IdleTimeout(
            nanoseconds.and_then(|nanoseconds| NonZeroU64::new(nanoseconds.wrapping_add(1))),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_kept_to_the_nanosecond_and_one_of_more_than_584_years_is_none() {
        let kept = |timeout: Duration| IdleTimeout::from(Some(timeout)).get();
        for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::new(3600, 999_999_999)] {
            assert_eq!(kept(timeout), Some(timeout));
        }
        assert_eq!(kept(Duration::from_nanos(u64::MAX)), None);
        assert_eq!(kept(Duration::MAX), None);
        assert_eq!(IdleTimeout::from(None).get(), None);
        assert_eq!(size_of::<IdleTimeout>(), 8);
    }
}
