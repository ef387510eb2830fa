//! The macros of the `log` crate, guarded: the logger is the user's, and so are the errors that it
//! is given to display. A panic in either is caught and counted.

use crate::guard;

macro_rules! error_ {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Error, || ::log::error!($($text)+)) };
}

macro_rules! warn_ {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Warn, || ::log::warn!($($text)+)) };
}

macro_rules! debug_ {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Debug, || ::log::debug!($($text)+)) };
}

pub(crate) use {debug_ as debug, error_ as error, warn_ as warn};

/// Whether anything may be logged at this level; the logger itself is not asked.
pub(crate) fn is_enabled(level: ::log::Level) -> bool {
    level <= ::log::STATIC_MAX_LEVEL && level <= ::log::max_level()
}

/// Has the logger called, if anything may be logged at this level.
pub(crate) fn write(level: ::log::Level, write: impl FnOnce()) {
    // Where the logger is what fails, it is of no use to log that.
    if is_enabled(level) && guard::call(write).is_err() {
        guard::note(1);
    }
}
