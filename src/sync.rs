//! Locking, and the types by which threads communicate: those of the standard library, or those of
//! the model checker [loom](https://docs.rs/loom) in tests with `--cfg socketserver_loom`.

#[cfg(all(test, socketserver_loom))]
mod modelled;

#[cfg(all(test, socketserver_loom))]
pub(crate) use modelled::{
    AtomicBool, AtomicU8, AtomicUsize, Condvar, Mutex, MutexGuard, OnceLock, atomic, lock, thread,
    wait, wait_timeout,
};
#[cfg(not(all(test, socketserver_loom)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, atomic,
    atomic::{AtomicBool, AtomicU8, AtomicUsize},
};
#[cfg(not(all(test, socketserver_loom)))]
pub(crate) use std::thread;

#[cfg(not(all(test, socketserver_loom)))]
mod locking {
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    /// Takes a lock. It ignores poisoning: no panic can leave the data half changed.
    pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a notification.
    pub(crate) fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a notification, at most so long; returns whether the time has passed. `guard` locks
    /// `_mutex`.
    pub(crate) fn wait_timeout<'a, T>(
        changed: &Condvar,
        guard: MutexGuard<'a, T>,
        _mutex: &'a Mutex<T>,
        time: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let waited = changed.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner);
        (waited.0, waited.1.timed_out())
    }
}
#[cfg(not(all(test, socketserver_loom)))]
pub(crate) use locking::{lock, wait, wait_timeout};
