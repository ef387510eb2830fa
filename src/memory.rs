//! The memory that connections hold: undecoded input, write buffers and send queues of a server,
//! in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The default limit, in bytes.
const LIMIT: usize = 256 << 20;

/// The memory of all connections of a server, and its limit. Any thread changes it.
#[derive(Debug)]
pub(crate) struct MemoryGauge {
    held: AtomicUsize,
    limit: AtomicUsize,
}

impl Default for MemoryGauge {
    fn default() -> Self {
        MemoryGauge { held: AtomicUsize::new(0), limit: AtomicUsize::new(LIMIT) }
    }
}

impl MemoryGauge {
    /// Sets the limit; `usize::MAX` for none.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// How many bytes are held.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn subtract(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// Begins at 0 in a forked child, which counts by itself.
    pub(crate) fn enter_child(&self) {
        self.held.store(0, Relaxed);
    }

    /// Replaces the part of one holder, who held `before` bytes, by `after`.
    pub(crate) fn replace(&self, before: usize, after: usize) {
        if after > before {
            self.add(after - before);
        } else if after < before {
            self.subtract(before - after);
        }
    }

    /// Whether the limit is reached: the connections that hold most are closed.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.held() >= self.limit.load(Relaxed)
    }

    /// Whether three quarters of the limit are held: connections above their share are not read.
    #[inline]
    pub(crate) fn is_tight(&self) -> bool {
        let limit = self.limit.load(Relaxed);
        self.held() >= limit - limit / 4
    }

    /// How much has to be freed until nine tenths of the limit are held.
    pub(crate) fn excess(&self) -> usize {
        let limit = self.limit.load(Relaxed);
        self.held().saturating_sub(limit - limit / 10)
    }

    /// How much has to be freed until memory is no longer tight, with a tenth of the limit to spare.
    pub(crate) fn surplus(&self) -> usize {
        let limit = self.limit.load(Relaxed);
        self.held().saturating_sub(limit - limit / 4 - limit / 10)
    }

    /// The share of one of so many connections.
    pub(crate) fn share(&self, connections: usize) -> usize {
        self.limit.load(Relaxed) / connections.max(1)
    }
}

/// Memory that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct MemoryCharge {
    gauge: Arc<MemoryGauge>,
    bytes: usize,
}

impl MemoryCharge {
    pub(crate) fn new(gauge: Arc<MemoryGauge>, bytes: usize) -> Self {
        gauge.add(bytes);
        MemoryCharge { gauge, bytes }
    }

    /// Replaces the number of bytes.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.gauge.replace(std::mem::replace(&mut self.bytes, bytes), bytes);
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        self.gauge.subtract(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_tight_at_three_quarters_and_full_at_the_limit() {
        let gauge = Arc::new(MemoryGauge::default());
        gauge.set_limit(1000);
        let mut charge = MemoryCharge::new(gauge.clone(), 749);
        assert!(!gauge.is_tight());
        charge.set(750);
        assert!(gauge.is_tight() && !gauge.is_full());
        assert_eq!((gauge.excess(), gauge.surplus()), (0, 100));
        let rest = MemoryCharge::new(gauge.clone(), 250);
        assert!(gauge.is_full());
        assert_eq!((gauge.excess(), gauge.share(10)), (100, 100));
        drop((charge, rest));
        assert_eq!(gauge.held(), 0);
    }

    #[test]
    fn a_limit_of_the_largest_number_is_never_reached() {
        let gauge = MemoryGauge::default();
        gauge.set_limit(usize::MAX);
        gauge.add(1 << 40);
        assert!(!gauge.is_tight() && !gauge.is_full());
    }
}
