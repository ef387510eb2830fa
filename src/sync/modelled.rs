//! The types of the model checker [loom](https://docs.rs/loom), under the names of the standard
//! library's.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::{self, AcqRel};
use std::time::Duration;

pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
pub(crate) use loom::thread;

/// A mutex, of the model or of the standard library.
pub(crate) trait Lockable {
    type Guard<'a>
    where
        Self: 'a;

    fn guard(&self) -> Self::Guard<'_>;
}

impl<T> Lockable for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn guard(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Lockable for std::sync::Mutex<T> {
    type Guard<'a>
        = std::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn guard(&self) -> std::sync::MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn lock<M: Lockable>(mutex: &M) -> M::Guard<'_> {
    mutex.guard()
}

pub(crate) fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// The time passes at once: the model checker tries everything that other threads can do before this
/// thread has the lock again.
pub(crate) fn wait_timeout<'a, T>(
    _changed: &Condvar,
    guard: MutexGuard<'a, T>,
    mutex: &'a Mutex<T>,
    _time: Duration,
) -> (MutexGuard<'a, T>, bool) {
    drop(guard);
    (lock(mutex), true)
}

/// An atomic whose accesses are sequentially consistent. The model checker takes a load or a store with
/// SeqCst for one with AcqRel; a read-modify-write is exact.
#[derive(Debug, Default)]
pub(crate) struct Sequential<A>(A);

pub(crate) type AtomicBool = Sequential<atomic::AtomicBool>;
pub(crate) type AtomicU8 = Sequential<atomic::AtomicU8>;
pub(crate) type AtomicUsize = Sequential<atomic::AtomicUsize>;

/// Implements the accesses to an atomic; `$none` changes nothing in `fetch_or`.
macro_rules! sequential {
    ($name:ident, $value:ty, $none:expr) => {
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Sequential(atomic::$name::new(value))
            }

            pub(crate) fn load(&self, _: Ordering) -> $value {
                self.0.fetch_or($none, AcqRel)
            }

            pub(crate) fn store(&self, value: $value, _: Ordering) {
                self.0.swap(value, AcqRel);
            }
        }
    };
}

sequential!(AtomicBool, bool, false);
sequential!(AtomicU8, u8, 0);
sequential!(AtomicUsize, usize, 0);

impl AtomicUsize {
    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_add(value, order)
    }
}

impl AtomicU8 {
    pub(crate) fn compare_exchange(
        &self,
        current: u8,
        new: u8,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u8, u8> {
        self.0.compare_exchange(current, new, success, failure)
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        change: impl FnMut(u8) -> Option<u8>,
    ) -> Result<u8, u8> {
        self.0.fetch_update(set, fetch, change)
    }
}

/// A value that is set once. The model checker sees when it is set and when it is read.
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        OnceLock { is_set: AtomicBool::default(), value: std::sync::OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.is_set.load(AcqRel) { self.value.get() } else { None }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let result = self.value.set(value);
        self.is_set.store(true, AcqRel);
        result
    }

    pub(crate) fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
        let value = self.value.get_or_init(value);
        self.is_set.store(true, AcqRel);
        value
    }
}
