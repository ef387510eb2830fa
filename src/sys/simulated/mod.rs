//! The interface of a simulated kernel. Sockets, pollers and the system calls on them call it in place
//! of the system.

mod forwarding;

pub(crate) use forwarding::{Event, Events, Poll, Socket};

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockAddr;

/// A simulated kernel. Each method is a system call, named by the number of a real descriptor.
pub(crate) trait Kernel: fmt::Debug + Send + Sync {
    fn now(&self) -> Instant;
    fn wait(
        &self,
        poller: RawFd,
        events: &mut Vec<SimulatedEvent>,
        timeout: Option<Duration>,
    ) -> io::Result<()>;
    fn register(
        &self,
        poller: RawFd,
        descriptor: RawFd,
        token: mio::Token,
        again: bool,
    ) -> io::Result<()>;
    fn wake(&self, wakeup: RawFd);
    /// Opens a duplicate of a descriptor; fails if no descriptor is free.
    fn duplicate(&self, descriptor: RawFd) -> io::Result<()>;
    /// Makes a stream socket that is bound: to a path, or to a port.
    fn bind(&self, unix: bool) -> io::Result<Socket>;
    fn listen(&self, listener: RawFd, backlog: i32) -> io::Result<()>;
    fn accept(&self, listener: RawFd) -> io::Result<(Socket, SockAddr)>;
    fn receive(&self, socket: RawFd, buffer: &mut [u8]) -> io::Result<usize>;
    /// As `receive`, and whether ancillary data came with the bytes.
    fn receive_message(&self, socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, bool)>;
    fn peek(&self, socket: RawFd) -> io::Result<usize>;
    fn send(&self, socket: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn waiting_connections(&self, listener: RawFd) -> Option<usize>;
    fn unsent(&self, socket: RawFd) -> usize;
    fn shutdown(&self, socket: RawFd, how: Shutdown) -> io::Result<()>;
    fn take_error(&self, socket: RawFd) -> io::Result<Option<io::Error>>;
    fn reset_on_close(&self, socket: RawFd);
    fn close(&self, descriptor: RawFd);
    /// Runs a job of a worker at any later time.
    fn run_later(&self, job: Box<dyn FnOnce() + Send>);
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Kernel>>> = const { RefCell::new(None) };
}

/// The kernel to which the servers and listeners belong that this thread makes.
pub(crate) fn current() -> Option<Arc<dyn Kernel>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Sets [`current`] during a call.
pub(crate) fn enter<T>(kernel: Arc<dyn Kernel>, call: impl FnOnce() -> T) -> T {
    struct Leave(Option<Arc<dyn Kernel>>);
    impl Drop for Leave {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _leave = Leave(CURRENT.replace(Some(kernel)));
    call()
}

/// A descriptor of a simulated kernel; a drop closes it there.
#[derive(Debug)]
pub(crate) struct Simulated {
    pub(in crate::sys) kernel: Arc<dyn Kernel>,
    pub(in crate::sys) descriptor: RawFd,
}

impl Simulated {
    /// The simulated side of a real descriptor; `None` outside of a simulation.
    pub(in crate::sys) fn new(system: &impl AsRawFd) -> Option<Self> {
        current().map(|kernel| Simulated { kernel, descriptor: system.as_raw_fd() })
    }

    /// A duplicate with the number of `system`; `None` if no descriptor is free.
    pub(in crate::sys) fn duplicate(&self, system: &impl AsRawFd) -> Option<Self> {
        let descriptor = system.as_raw_fd();
        self.kernel.duplicate(descriptor).ok()?;
        Some(Simulated { kernel: self.kernel.clone(), descriptor })
    }

    /// Runs a job of a worker at any later time.
    pub(crate) fn run_later(&self, job: Box<dyn FnOnce() + Send>) {
        self.kernel.run_later(job);
    }

    /// A connection or a listener of a simulated kernel, which knows it by `system`.
    pub(crate) fn socket(kernel: Arc<dyn Kernel>, system: socket2::Socket) -> Socket {
        let descriptor = system.as_raw_fd();
        let mut socket = Socket::from(system);
        socket.simulated = Some(Box::new(Simulated { kernel, descriptor }));
        socket
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.kernel.close(self.descriptor);
    }
}

/// An event of a simulated poller, in the bits of epoll(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimulatedEvent {
    pub(crate) token: mio::Token,
    pub(crate) bits: u32,
}

/// The bits of [`SimulatedEvent`], as in epoll(7).
pub(crate) mod bits {
    pub(crate) const IN: u32 = 1;
    pub(crate) const PRI: u32 = 2;
    pub(crate) const OUT: u32 = 4;
    pub(crate) const ERR: u32 = 8;
    pub(crate) const HUP: u32 = 16;
    pub(crate) const RDHUP: u32 = 0x2000;
}

/// The same conditions as in mio's events of epoll.
impl SimulatedEvent {
    fn has(&self, bits: u32) -> bool {
        self.bits & bits != 0
    }

    pub(in crate::sys) fn token(&self) -> mio::Token {
        self.token
    }

    pub(in crate::sys) fn is_readable(&self) -> bool {
        self.has(bits::IN | bits::PRI)
    }

    pub(in crate::sys) fn is_writable(&self) -> bool {
        self.has(bits::OUT)
    }

    pub(in crate::sys) fn is_priority(&self) -> bool {
        self.has(bits::PRI)
    }

    pub(in crate::sys) fn is_read_closed(&self) -> bool {
        self.has(bits::HUP) || self.has(bits::IN) && self.has(bits::RDHUP)
    }

    pub(in crate::sys) fn is_write_closed(&self) -> bool {
        self.has(bits::HUP) || self.has(bits::OUT) && self.has(bits::ERR) || self.bits == bits::ERR
    }

    pub(in crate::sys) fn is_error(&self) -> bool {
        self.has(bits::ERR)
    }
}
