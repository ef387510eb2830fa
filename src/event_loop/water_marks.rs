//! The limits of a connection, and the water marks: how much output may wait before the loop stops
//! reading from its connection.

use std::sync::Arc;

use crate::limits::Limits;
use crate::sender::SenderLimit;

/// The maximum output that one step of a conversation collects before it is sent, in bytes.
const MOST_AT_ONCE: usize = 64 * 1024;

/// The water marks of the write buffer, in bytes. At `high` the loop stops reading from the peer;
/// at `low` it resumes. They are stored as `u32`: a mark above 4 GiB counts as 4 GiB.
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

    /// How many bytes of output one step may collect while the write buffer is empty.
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

/// The limits of all connections of one service. They are shared, so that a connection stores only
/// a pointer.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceLimits {
    pub(crate) marks: WaterMarks,
    pub(crate) sender: SenderLimit,
    pub(crate) peer: Arc<Limits>,
}
