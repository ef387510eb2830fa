//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. It ignores poisoning: no panic can leave the data half changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
