//! The number of a connection, which identifies it in logs and in maps of the user.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The number of one connection: see [`Sender::id`](crate::Sender::id).
///
/// A connection gets it when it is accepted or handed over. No other connection of the same process
/// has the same number, also not one of another server. Later connections have greater numbers; the
/// first has 1. It takes 8 bytes, and [`u64::from`] returns the number.
///
/// ```
/// use std::collections::HashMap;
/// use socketserver::{ConnectionId, Sender};
///
/// /// The members of a chat room, in the order in which they connected.
/// fn ids(members: &HashMap<ConnectionId, Sender>) -> Vec<u64> {
///     let mut ids: Vec<ConnectionId> = members.keys().copied().collect();
///     ids.sort();
///     ids.into_iter().map(u64::from).collect()
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(NonZeroU64);

/// How many numbers have been assigned.
static ASSIGNED: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "testing")]
thread_local! {
    /// How many numbers have been assigned in the simulated world of this thread, in which each run has the
    /// same ones.
    static SIMULATED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Sets how many numbers have been assigned in the simulated world of this thread; `None` is outside of
/// one. Returns what it was before.
#[cfg(feature = "testing")]
pub(crate) fn simulate(assigned: Option<u64>) -> Option<u64> {
    SIMULATED.replace(assigned)
}

impl ConnectionId {
    /// The number of the next connection.
    pub(crate) fn next() -> Self {
        #[cfg(feature = "testing")]
        if let Some(assigned) = SIMULATED.get() {
            SIMULATED.set(Some(assigned + 1));
            return ConnectionId(NonZeroU64::MIN.saturating_add(assigned));
        }
        // 64 bits do not overflow for centuries.
        ConnectionId(NonZeroU64::MIN.saturating_add(ASSIGNED.fetch_add(1, Relaxed)))
    }

    /// The number that the next connection will have, or a smaller one.
    pub(crate) fn upcoming() -> u64 {
        #[cfg(feature = "testing")]
        if let Some(assigned) = SIMULATED.get() {
            return assigned + 1;
        }
        ASSIGNED.load(Relaxed) + 1
    }
}

impl From<ConnectionId> for u64 {
    fn from(id: ConnectionId) -> Self {
        id.0.get()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    #[test]
    fn concurrent_threads_get_different_ids_that_increase() {
        let given: Vec<Vec<ConnectionId>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).map(|_| ConnectionId::next()).collect()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(given.iter().all(|ids| ids.is_sorted_by(|one, next| one < next)));
        assert_eq!(given.concat().into_iter().collect::<HashSet<_>>().len(), 4000);
    }

    #[test]
    fn an_id_is_printed_as_its_number_and_is_not_0() {
        let id = ConnectionId::next();
        assert!(u64::from(id) > 0);
        assert_eq!(id.to_string(), u64::from(id).to_string());
        assert_eq!(format!("{id:?}"), format!("ConnectionId({id})"));
        assert_eq!(size_of::<Option<ConnectionId>>(), 8);
    }
}
