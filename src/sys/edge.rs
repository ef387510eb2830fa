//! The system as the event loop sees it. Sockets, the poller and its events are the types of socket2
//! and mio. With the feature `testing` they are types of `sys::simulated`, each of
//! which can belong to a simulated kernel, and so can the clock and the reserve descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::Wakeup;

#[cfg(not(feature = "testing"))]
pub(crate) use {
    mio::{Events, Poll},
    socket2::Socket,
};

#[cfg(feature = "testing")]
pub(crate) use super::simulated::{Event, Events, Poll, Socket};
#[cfg(feature = "testing")]
use super::simulated::{Kernel, Simulated};

/// One event of the poller.
#[cfg(not(feature = "testing"))]
pub(crate) type Event<'a> = &'a mio::event::Event;

/// Returns the answer of the simulated kernel, if `$of` belongs to one.
#[cfg(feature = "testing")]
macro_rules! simulated {
    ($of:expr, $call:ident($($argument:expr),*)) => {
        if let Some(simulated) = &$of.simulated {
            return simulated.kernel.$call(simulated.descriptor, $($argument),*);
        }
    };
}
#[cfg(not(feature = "testing"))]
macro_rules! simulated {
    ($($call:tt)*) => {};
}
pub(super) use simulated;

/// The clock of a server.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    #[cfg(feature = "testing")]
    kernel: Option<std::sync::Arc<dyn Kernel>>,
}

impl Clock {
    /// The clock of the system, or of the simulated kernel that this thread has entered.
    pub(crate) fn new() -> Self {
        Clock {
            #[cfg(feature = "testing")]
            kernel: super::simulated::current(),
        }
    }

    #[inline(always)]
    pub(crate) fn now(&self) -> Instant {
        #[cfg(feature = "testing")]
        if let Some(kernel) = &self.kernel {
            return kernel.now();
        }
        Instant::now()
    }
}

/// A descriptor that is kept so that it can be closed when no other is left.
pub(crate) struct Reserve {
    #[cfg(feature = "testing")]
    _simulated: Option<Simulated>,
    _system: OwnedFd,
}

impl Reserve {
    /// A duplicate of a descriptor that is open anyway, which needs no file.
    pub(crate) fn new(wakeup: &Wakeup) -> Option<Self> {
        let system = wakeup.as_fd().try_clone_to_owned().ok()?;
        Some(Reserve {
            #[cfg(feature = "testing")]
            _simulated: wakeup.duplicate(&system)?,
            _system: system,
        })
    }
}
