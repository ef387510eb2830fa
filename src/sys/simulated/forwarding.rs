//! The types of `sys::edge` with the feature `testing`: each forwards its calls to the
//! system, or to the simulated kernel that it belongs to.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;

use super::super::edge::simulated;
use super::{Simulated, SimulatedEvent};

/// A socket of the system. One of a simulated kernel also has a socket of the system, which is not
/// connected: options can be set on it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Dropped before the descriptor can be used again.
    pub(in crate::sys) simulated: Option<Box<Simulated>>,
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
    pub(in crate::sys) fn send_with_flags(
        &self,
        bytes: &[u8],
        flags: libc::c_int,
    ) -> io::Result<usize> {
        simulated!(self, send(&[IoSlice::new(bytes)]));
        self.system.send_with_flags(bytes, flags)
    }

    pub(in crate::sys) fn send_vectored_with_flags(
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
        Socket { simulated: None, system: descriptor.into().into() }
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
    simulated: Option<Simulated>,
    system: mio::Poll,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        let system = mio::Poll::new()?;
        Ok(Poll { simulated: Simulated::new(&system), system })
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
    simulated: Vec<SimulatedEvent>,
    system: mio::Events,
}

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Events { simulated: Vec::new(), system: mio::Events::with_capacity(capacity) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(crate) fn clear(&mut self) {
        self.simulated.clear();
        self.system.clear();
    }

    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Event<'_>> {
        self.system.iter().map(Event::System).chain(self.simulated.iter().map(Event::Simulated))
    }
}

/// One event of the poller.
#[derive(Clone, Copy)]
pub(crate) enum Event<'a> {
    System(&'a mio::event::Event),
    Simulated(&'a SimulatedEvent),
}

macro_rules! event_methods {
    ($($name:ident -> $result:ty),*) => {
        impl Event<'_> {
            $(#[inline(always)]
            pub(crate) fn $name(self) -> $result {
                match self {
                    Event::System(event) => event.$name(),
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
