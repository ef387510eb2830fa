//! [epoll(7)](https://man7.org/linux/man-pages/man7/epoll.7.html), edge-triggered; each descriptor
//! is registered once, for all interests.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// An epoll instance.
pub struct Epoll(OwnedFd);

/// A buffer for the events of one turn.
pub struct Events {
    ready: Vec<libc::epoll_event>,
}

/// One descriptor that became ready.
#[derive(Clone, Copy)]
pub struct Event {
    /// The token given to [`Epoll::add`].
    pub token: u64,
    /// There is input, or its end.
    pub is_readable: bool,
    /// The peer has shut down its sending direction: after a short read, another read returns the
    /// end of file.
    pub is_read_closed: bool,
}

/// All interests at once, so that a connection costs one `epoll_ctl`: interests never change, and
/// `close` removes it.
const INTERESTS: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

impl Epoll {
    /// A new instance that watches nothing.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointer; the returned descriptor is owned by nothing else.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self(fd))
    }

    /// Watches `fd`; its events will carry `token`.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token)
    }

    /// Makes `fd` report again if it is ready now, after all others that are ready. A caller that
    /// stops reading before the socket is drained uses this instead of a list of unfinished work.
    pub fn rearm(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token)
    }

    fn control(&self, operation: libc::c_int, fd: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: INTERESTS, u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: `event` outlives the call, which only reads it.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) })?;
        Ok(())
    }

    /// Waits for events without a time limit.
    pub fn wait(&self, events: &mut Events) -> io::Result<()> {
        events.fill(|buffer, capacity| {
            // SAFETY: `buffer` has room for `capacity` events.
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), buffer, capacity, -1) }
        })
    }

    /// Waits no longer than `limit`, to the nanosecond (`epoll_pwait2`, Linux 5.11).
    pub fn wait_for(&self, events: &mut Events, limit: Duration) -> io::Result<()> {
        let limit = libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: limit.subsec_nanos().into(),
        };
        events.fill(|buffer, capacity| {
            // SAFETY: `buffer` has room for `capacity` events, `limit` outlives the call, and no
            // signal mask is given.
            unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.0.as_raw_fd(),
                    buffer,
                    capacity,
                    &raw const limit,
                    std::ptr::null::<libc::sigset_t>(),
                    0_usize,
                ) as libc::c_int
            }
        })
    }
}

impl Events {
    /// A buffer for `capacity` events.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { ready: Vec::with_capacity(capacity) }
    }

    /// The events of the last wait.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.ready.iter().map(|event| {
            let any_of = |interests: libc::c_int| event.events & interests as u32 != 0;
            let closed = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
            Event {
                token: event.u64,
                is_readable: any_of(libc::EPOLLIN | closed),
                is_read_closed: any_of(closed),
            }
        })
    }

    /// An interrupted wait is a turn without events.
    fn fill(
        &mut self,
        wait: impl FnOnce(*mut libc::epoll_event, libc::c_int) -> libc::c_int,
    ) -> io::Result<()> {
        self.ready.clear();
        let returned = wait(self.ready.as_mut_ptr(), self.ready.capacity() as libc::c_int);
        match check(returned) {
            Ok(count) => {
                // SAFETY: the kernel initialised the first `count` events, which is at most the
                // capacity.
                unsafe { self.ready.set_len(count as usize) };
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
