//! A value whose destructor may panic.

use std::mem::{ManuallyDrop, needs_drop};
use std::ops::{Deref, DerefMut};

use crate::guard;

/// A value of the user. A panic of its destructor is caught, counted and logged, also when the
/// value is dropped while another panic unwinds.
#[derive(Debug)]
pub(crate) struct CatchDrop<T>(ManuallyDrop<T>);

impl<T> CatchDrop<T> {
    #[inline]
    pub(crate) fn new(value: T) -> Self {
        CatchDrop(ManuallyDrop::new(value))
    }

    /// The value, whose destructor is no longer guarded.
    pub(crate) fn into_inner(mut this: Self) -> T {
        // SAFETY: the value is taken once, and `forget` keeps the destructor of `this` from running.
        let value = unsafe { ManuallyDrop::take(&mut this.0) };
        std::mem::forget(this);
        value
    }
}

impl<T> From<T> for CatchDrop<T> {
    fn from(value: T) -> Self {
        CatchDrop::new(value)
    }
}

impl<T> Deref for CatchDrop<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for CatchDrop<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for CatchDrop<T> {
    fn drop(&mut self) {
        if needs_drop::<T>() {
            // SAFETY: the value is dropped only here, and `self` is not used after this.
            guard::contain("a destructor", || unsafe { ManuallyDrop::drop(&mut self.0) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("in a destructor, on purpose");
        }
    }

    #[test]
    fn a_panic_in_a_destructor_is_caught_and_counted_once() {
        drop((CatchDrop::new(Panics), CatchDrop::new(Panics)));
        assert_eq!(guard::take_caught(), 2);
        assert_eq!(guard::take_caught(), 0);
    }

    #[test]
    fn a_destructor_that_panics_while_another_panic_unwinds_does_not_abort() {
        let outer = guard::call(|| {
            let _second = CatchDrop::new(Panics);
            panic!("the first");
        });
        assert_eq!(outer, Err("the first".to_owned()));
        assert_eq!(guard::take_caught(), 1);
    }
}
