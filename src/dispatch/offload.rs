//! The loop does the reading and writing, workers run the handlers.

use std::num::NonZeroUsize;

/// Handlers on a bounded pool of workers, everything else on the loop; a handler may block.
///
/// The loop reads, finds whole messages and writes. For the messages that one read brought, a
/// connection is lent to one worker, so a peer's messages are handled in order, one after the other;
/// while it is lent its socket is not read, and the peer's own send buffer is the back-pressure.
/// An idle connection costs no thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    pub(crate) workers: NonZeroUsize,
}

impl Offload {
    /// As many workers, or one where that is 0. Threads are started when there is work for them.
    pub fn new(workers: usize) -> Self {
        Offload {
            workers: NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Default for Offload {
    /// 16 workers.
    fn default() -> Self {
        Offload::new(16)
    }
}
