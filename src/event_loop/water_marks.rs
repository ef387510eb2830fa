//! How much output may wait before the input of its connection is no longer read.

use crate::sender::SenderLimit;

/// The most output that one step of a conversation collects before it is sent, in bytes.
const MOST_AT_ONCE: usize = 64 * 1024;

/// The water marks of the write buffer, in bytes. At `high` the peer is no longer read; at `low` reading
/// resumes. They are stored as `u32`: a limit above 4 GiB counts as 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaterMarks {
    high: u32,
    low: u32,
}

impl WaterMarks {
    pub(crate) fn new(high: usize, low: usize) -> Self {
        let mark = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        WaterMarks { high: mark(high), low: mark(low) }
    }

    #[inline]
    pub(crate) fn high(self) -> usize {
        self.high as usize
    }

    #[inline]
    pub(super) fn low(self) -> usize {
        self.low as usize
    }

    /// How much output is collected at once while none waits.
    #[inline]
    pub(crate) fn room(self) -> usize {
        self.high().min(MOST_AT_ONCE)
    }
}

impl Default for WaterMarks {
    fn default() -> Self {
        WaterMarks::new(64 * 1024, 16 * 1024)
    }
}

/// How much output may wait in the connections of one service. They share it, so that each keeps no
/// more than a pointer to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OutputLimits {
    pub(crate) marks: WaterMarks,
    pub(crate) sender: SenderLimit,
}
