//! The number of a connection.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The number of a connection: no other connection of the process has it, before or after. Log lines
/// about the connection contain it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The number of no connection.
    pub(crate) const NONE: Self = ConnectionId(0);

    /// The number for the next connection.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ConnectionId(NEXT.fetch_add(1, Relaxed))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<ConnectionId> for u64 {
    fn from(id: ConnectionId) -> u64 {
        id.0
    }
}
