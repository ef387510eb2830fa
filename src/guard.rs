//! The guard around code of the user: a panic in it ends the request that it belongs to, and nothing
//! else. Every call that may run code of the user goes through this module: [`call`], [`guard`] and
//! [`contain`] catch a panic, the macros of [`log`] catch one of the logger, and a value of the user
//! is held in a [`CatchDrop`](crate::sys::CatchDrop).

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Panics caught on this thread that are not yet in a [`Tally`](crate::counters::Tally).
    static CAUGHT: Cell<u64> = const { Cell::new(0) };
}

/// Calls code of the user. Returns the panic message if it panics.
pub(crate) fn call<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(panic_message)
}

/// Calls code of the user. If it panics, adds 1 to `panics`, logs the message as an error and returns
/// `None`.
pub(crate) fn guard<T>(name: &str, panics: &mut u64, user: impl FnOnce() -> T) -> Option<T> {
    match call(user) {
        Ok(value) => Some(value),
        Err(message) => {
            *panics += 1;
            log::error!("{name} panicked: {message}");
            None
        }
    }
}

/// As [`guard`], for a caller without a counter: the panic is [noted](note) for this thread.
pub(crate) fn contain<T>(name: &str, user: impl FnOnce() -> T) -> Option<T> {
    let mut panics = 0;
    let value = guard(name, &mut panics, user);
    note(panics);
    value
}

/// Adds to the panics caught on this thread. [`take_caught`] takes them when the thread publishes its
/// counters.
pub(crate) fn note(panics: u64) {
    CAUGHT.set(CAUGHT.get() + panics);
}

/// Returns the panics [noted](note) on this thread and sets their number to 0.
pub(crate) fn take_caught() -> u64 {
    CAUGHT.take()
}

/// The message of a panic. The destructor of a payload that is not text is code of the user: a panic
/// of it belongs to the same fault, and its own payload is leaked, whose destructor could panic in turn.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<&'static str>() {
        Ok(text) => (*text).to_owned(),
        Err(other) => match other.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => {
                if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(other))) {
                    std::mem::forget(again);
                }
                "a value that is not text".to_owned()
            }
        },
    }
}

/// The macros of the `log` crate, guarded: the logger is code of the user, and so is the `Display` of
/// the errors that it formats. A panic in either is caught and counted.
pub(crate) mod log {
    macro_rules! error_ {
        ($($text:tt)+) => {
            $crate::guard::log::write(::log::Level::Error, || ::log::error!($($text)+))
        };
    }

    macro_rules! warn_ {
        ($($text:tt)+) => {
            $crate::guard::log::write(::log::Level::Warn, || ::log::warn!($($text)+))
        };
    }

    macro_rules! debug_ {
        ($($text:tt)+) => {
            $crate::guard::log::write(::log::Level::Debug, || ::log::debug!($($text)+))
        };
    }

    pub(crate) use {debug_ as debug, error_ as error, warn_ as warn};

    /// Whether the maximum levels of the `log` crate allow this level; it does not ask the logger.
    pub(crate) fn is_enabled(level: ::log::Level) -> bool {
        level <= ::log::STATIC_MAX_LEVEL && level <= ::log::max_level()
    }

    /// Calls `write`, which calls the logger, if this level is enabled.
    pub(crate) fn write(level: ::log::Level, write: impl FnOnce()) {
        // A panic here comes from the logger, so it is counted but not logged.
        if is_enabled(level) && super::call(write).is_err() {
            super::note(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;
    use std::sync::Arc;

    use super::*;

    struct PanicsOnDrop {
        _held: Arc<()>,
    }

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("a payload");
        }
    }

    #[test]
    fn a_payload_that_is_not_text_is_dropped() {
        let payload = Arc::new(());
        let held = payload.clone();
        assert_eq!(call(|| panic_any(held)), Err::<(), _>("a value that is not text".into()));
        assert_eq!((Arc::strong_count(&payload), take_caught()), (1, 0));
    }

    #[test]
    fn a_panic_of_the_destructor_of_a_payload_is_caught() {
        let payload = Arc::new(());
        let held = PanicsOnDrop { _held: payload.clone() };
        assert_eq!(call(|| panic_any(held)), Err::<(), _>("a value that is not text".into()));
        assert_eq!((Arc::strong_count(&payload), take_caught()), (1, 0));
    }
}
