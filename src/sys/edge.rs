//! The system as the event loop sees it: sockets, the poller, its events, the clock, the reserve
//! descriptor. With the feature `testing` each of them can belong to a simulated kernel.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;

use super::Wakeup;
#[cfg(feature = "testing")]
use super::simulated::{Kernel, Simulated, SimulatedEvent};

/// Returns the answer of the simulated kernel, if `$of` belongs to one.
macro_rules! simulated {
    ($of:expr, $call:ident($($argument:expr),*)) => {
        #[cfg(feature = "testing")]
        if let Some(simulated) = &$of.simulated {
            return simulated.kernel.$call(simulated.descriptor, $($argument),*);
        }
    };
}
pub(super) use simulated;

/// A socket of the system. One of a simulated kernel also has a socket of the system, which is not
/// connected: options can be set on it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Dropped before the descriptor can be used again.
    #[cfg(feature = "testing")]
    pub(super) simulated: Option<Box<Simulated>>,
    system: socket2::Socket,
}

impl Socket {
    pub(crate) fn new(
        domain: socket2::Domain,
        kind: socket2::Type,
        protocol: Option<socket2::Protocol>,
    ) -> io::Result<Self> {
        socket2::Socket::new(domain, kind, protocol).map(Socket::from)
    }

    #[inline(always)]
    pub(super) fn send_with_flags(&self, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
        simulated!(self, send(&[IoSlice::new(bytes)]));
        self.system.send_with_flags(bytes, flags)
    }

    pub(super) fn send_vectored_with_flags(
        &self,
        slices: &[IoSlice<'_>],
        flags: libc::c_int,
    ) -> io::Result<usize> {
        simulated!(self, send(slices));
        self.system.send_vectored_with_flags(slices, flags)
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        simulated!(self, listen(backlog));
        self.system.listen(backlog)
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        simulated!(self, shutdown(how));
        self.system.shutdown(how)
    }

    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        simulated!(self, take_error());
        self.system.take_error()
    }
}

impl Read for &Socket {
    #[inline(always)]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        simulated!(self, receive(buffer));
        (&self.system).read(buffer)
    }
}

impl Deref for Socket {
    type Target = socket2::Socket;

    #[inline(always)]
    fn deref(&self) -> &socket2::Socket {
        &self.system
    }
}

impl<T: Into<OwnedFd>> From<T> for Socket {
    fn from(descriptor: T) -> Self {
        Socket {
            #[cfg(feature = "testing")]
            simulated: None,
            system: descriptor.into().into(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.system.as_fd()
    }
}

impl AsRawFd for Socket {
    #[inline(always)]
    fn as_raw_fd(&self) -> RawFd {
        self.system.as_raw_fd()
    }
}

/// The poller of an event loop.
#[derive(Debug)]
pub(crate) struct Poll {
    #[cfg(feature = "testing")]
    simulated: Option<Simulated>,
    system: mio::Poll,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        let system = mio::Poll::new()?;
        Ok(Poll {
            #[cfg(feature = "testing")]
            simulated: Simulated::new(&system),
            system,
        })
    }

    pub(crate) fn poll(
        &mut self,
        events: &mut Events,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        simulated!(self, wait(&mut events.simulated, timeout));
        self.system.poll(&mut events.system, timeout)
    }

    /// Where descriptors are registered.
    pub(crate) fn registry(&self) -> &Self {
        self
    }

    pub(crate) fn register(
        &self,
        source: &mut SourceFd<'_>,
        token: mio::Token,
        interest: Interest,
    ) -> io::Result<()> {
        simulated!(self, register(*source.0, token, false));
        self.system.registry().register(source, token, interest)
    }

    pub(crate) fn reregister(
        &self,
        source: &mut SourceFd<'_>,
        token: mio::Token,
        interest: Interest,
    ) -> io::Result<()> {
        simulated!(self, register(*source.0, token, true));
        self.system.registry().reregister(source, token, interest)
    }

    pub(crate) fn deregister(&self, source: &mut SourceFd<'_>) -> io::Result<()> {
        self.system.registry().deregister(source)
    }
}

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.system.as_raw_fd()
    }
}

/// The events that the poller has returned.
#[derive(Debug)]
pub(crate) struct Events {
    #[cfg(feature = "testing")]
    simulated: Vec<SimulatedEvent>,
    system: mio::Events,
}

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Events {
            #[cfg(feature = "testing")]
            simulated: Vec::new(),
            system: mio::Events::with_capacity(capacity),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(crate) fn clear(&mut self) {
        #[cfg(feature = "testing")]
        self.simulated.clear();
        self.system.clear();
    }

    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Event<'_>> {
        let events = self.system.iter().map(Event::System);
        #[cfg(feature = "testing")]
        let events = events.chain(self.simulated.iter().map(Event::Simulated));
        events
    }
}

/// One event of the poller.
#[derive(Clone, Copy)]
pub(crate) enum Event<'a> {
    System(&'a mio::event::Event),
    #[cfg(feature = "testing")]
    Simulated(&'a SimulatedEvent),
}

macro_rules! event_methods {
    ($($name:ident -> $result:ty),*) => {
        impl Event<'_> {
            $(#[inline(always)]
            pub(crate) fn $name(self) -> $result {
                match self {
                    Event::System(event) => event.$name(),
                    #[cfg(feature = "testing")]
                    Event::Simulated(event) => event.$name(),
                }
            })*
        }
    };
}
event_methods! {
    token -> mio::Token, is_readable -> bool, is_writable -> bool, is_priority -> bool,
    is_read_closed -> bool, is_write_closed -> bool, is_error -> bool
}

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
