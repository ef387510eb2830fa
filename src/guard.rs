//! The guard around the user's code: a panic in it costs the request that it belongs to, and nothing
//! else. Where a call may end in a panic it goes through here; what holds a value of the user's holds
//! it in a [`CatchDrop`](crate::sys::CatchDrop), and what is logged goes through the macros in `log`.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::log;

thread_local! {
    /// Panics caught on this thread where there was nothing at hand to count them in.
    static CAUGHT: Cell<u64> = const { Cell::new(0) };
}

/// Calls the user's code; what it said, if it panicked.
pub(crate) fn call<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(panic_message)
}

/// Calls the user's code; `None` if it panicked, which is counted there and logged.
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

/// As [`guard`], where there is nothing to count in: whoever publishes what this thread has counted
/// [takes](take_caught) it.
pub(crate) fn contain<T>(name: &str, user: impl FnOnce() -> T) -> Option<T> {
    let mut panics = 0;
    let value = guard(name, &mut panics, user);
    note(panics);
    value
}

/// So many panics have been caught on this thread and counted nowhere.
pub(crate) fn note(panics: u64) {
    CAUGHT.set(CAUGHT.get() + panics);
}

/// How many panics have been caught on this thread and counted nowhere; from now on they are.
pub(crate) fn take_caught() -> u64 {
    CAUGHT.take()
}

/// What a panic said. A payload that is no text is leaked: its destructor is the user's and could
/// panic in turn.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<&'static str>() {
        Ok(text) => (*text).to_owned(),
        Err(other) => match other.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => {
                std::mem::forget(other);
                "a value that is no text".to_owned()
            }
        },
    }
}
