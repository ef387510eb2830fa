//! A descriptor that another thread or a signal handler makes readable: an
//! [eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html) on Linux, a pipe elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::checked;
use super::edge::simulated;
#[cfg(feature = "testing")]
use super::simulated::Simulated;

/// A descriptor that is readable from [`wake`](Wakeup::wake) until [`take`](Wakeup::take).
///
/// A poller that watches it edge-triggered reports every wake, and it need not be cleared.
#[derive(Debug)]
pub(crate) struct Wakeup {
    #[cfg(feature = "testing")]
    simulated: Option<Simulated>,
    #[cfg(all(test, socketserver_loom))]
    modelled: Modelled,
    read: OwnedFd,
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    write: OwnedFd,
}

impl Wakeup {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two numbers and accesses no memory of this process.
        let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor is new and has no other owner.
        let read = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Wakeup {
            #[cfg(feature = "testing")]
            simulated: Simulated::new(&read),
            #[cfg(all(test, socketserver_loom))]
            modelled: Modelled::default(),
            read,
        })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    pub(crate) fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: pipe writes two descriptors into an array of two.
        checked(unsafe { libc::pipe(fds.as_mut_ptr()) })?;
        // SAFETY: both descriptors are new and have no other owner.
        let [read, write] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        for fd in [&read, &write] {
            // SAFETY: fcntl sets flags of a descriptor that is owned here.
            checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
            // SAFETY: as above.
            checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        }
        Ok(Wakeup {
            #[cfg(feature = "testing")]
            simulated: Simulated::new(&read),
            #[cfg(all(test, socketserver_loom))]
            modelled: Modelled::default(),
            read,
            write,
        })
    }

    fn write_end(&self) -> RawFd {
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        return self.read.as_raw_fd();
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
        return self.write.as_raw_fd();
    }

    /// Replaces this eventfd or pipe with `other`, at the same descriptor number (dup2(2)). The
    /// earlier one stays open only in other processes.
    pub(crate) fn replace(&self, other: &Wakeup) -> io::Result<()> {
        let ends = [(&self.read, &other.read)];
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
        let ends = [ends[0], (&self.write, &other.write)];
        for (ours, theirs) in ends {
            // SAFETY: both descriptors are open and keep their owners; dup2 replaces what `ours`
            // refers to in one step.
            checked(unsafe { libc::dup2(theirs.as_raw_fd(), ours.as_raw_fd()) })?;
            // SAFETY: fcntl sets flags of a descriptor that is owned here.
            checked(unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
        }
        Ok(())
    }

    /// Makes it readable. Never waits.
    pub(crate) fn wake(&self) {
        simulated!(self, wake());
        #[cfg(all(test, socketserver_loom))]
        self.modelled.wake();
        wake_raw(self.write_end());
    }

    /// Makes it unreadable until the next wake; returns whether it was readable. Never waits.
    pub(crate) fn take(&self) -> bool {
        let mut count = [0u8; 64];
        let mut was_readable = false;
        loop {
            let (into, room) = (count.as_mut_ptr().cast(), count.len());
            // SAFETY: read writes at most as many bytes as the array has.
            let taken = unsafe { libc::read(self.read.as_raw_fd(), into, room) };
            was_readable |= taken > 0;
            // A pipe holds the bytes of every wake; an eventfd holds one number of 8 bytes.
            if taken != room as isize {
                return was_readable;
            }
        }
    }

    /// Makes it unreadable until the next wake. Never waits.
    pub(crate) fn clear(&self) {
        self.take();
    }

    /// The duplicate `system` of this descriptor, in the simulated kernel, if there is one. `None` if
    /// that kernel has no descriptor left.
    #[cfg(feature = "testing")]
    pub(super) fn duplicate(&self, system: &OwnedFd) -> Option<Option<Simulated>> {
        match &self.simulated {
            Some(simulated) => simulated.duplicate(system).map(Some),
            None => Some(None),
        }
    }

    /// The simulated kernel that a loop which waits on this belongs to.
    #[cfg(feature = "testing")]
    pub(crate) fn simulated(&self) -> Option<&Simulated> {
        self.simulated.as_ref()
    }

    /// The descriptor that [`wake_raw`] takes.
    pub(super) fn raw_write_end(&self) -> RawFd {
        self.write_end()
    }

    /// Waits until it is woken, and makes it unreadable, in a model.
    #[cfg(all(test, socketserver_loom))]
    pub(crate) fn wait(&self) {
        self.modelled.wait();
        self.take();
    }
}

/// What the model checker sees of a wakeup.
#[cfg(all(test, socketserver_loom))]
#[derive(Debug, Default)]
struct Modelled {
    is_set: crate::sync::Mutex<bool>,
    changed: crate::sync::Condvar,
}

#[cfg(all(test, socketserver_loom))]
impl Modelled {
    fn wake(&self) {
        *crate::sync::lock(&self.is_set) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut is_set = crate::sync::lock(&self.is_set);
        while !*is_set {
            is_set = crate::sync::wait(&self.changed, is_set);
        }
        *is_set = false;
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

impl AsRawFd for Wakeup {
    fn as_raw_fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }
}

/// Wakes by the number of the descriptor; safe in a signal handler. If the write fails because it
/// is full, it is already readable.
pub(super) fn wake_raw(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: write reads the 8 bytes of `one`; it is async-signal-safe.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}
