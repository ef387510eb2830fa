//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. A panic while it was held does not matter: no panic can leave the data half changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
