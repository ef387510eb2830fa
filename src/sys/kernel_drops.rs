//! How many datagrams the kernel has dropped at a socket, mostly because its receive buffer was
//! full: `SO_RXQ_OVFL` and `SO_MEMINFO`, see
//! [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html). Only Linux counts them.

use socket2::Socket;

#[cfg(any(target_os = "linux", target_os = "android"))]
use linux as imp;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) use linux::SO_RXQ_OVFL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable as imp;

/// The datagrams dropped at one socket since it is counted.
///
/// With each datagram that follows a dropped one, the kernel tells the number of all that it has
/// dropped at the socket, modulo 2^32. It tells nothing, and costs nothing, before the first one.
#[derive(Debug, Default)]
pub(super) struct KernelDrops {
    /// The kernel's number when it was seen last.
    seen: u32,
    /// How many have been dropped and not taken yet.
    new: u64,
}

impl KernelDrops {
    /// Begins to count at this socket.
    pub(super) fn of(socket: &Socket) -> Self {
        // An error is ignored: the drops are told at the end, or not at all.
        let _ = imp::tell_drops(socket);
        KernelDrops { seen: imp::drops(socket).unwrap_or(0), new: 0 }
    }

    /// Takes the number that the kernel has told with a datagram: the one of when the datagram came,
    /// which may be before [`refresh`](KernelDrops::refresh) was called.
    pub(super) fn record(&mut self, number: u32) {
        let new = number.wrapping_sub(self.seen);
        if new <= u32::MAX / 2 {
            self.new += u64::from(new);
            self.seen = number;
        }
    }

    /// Asks the kernel for its number, which includes drops that no datagram has followed.
    pub(super) fn refresh(&mut self, socket: &Socket) {
        if let Some(number) = imp::drops(socket) {
            self.record(number);
        }
    }

    /// How many have been dropped since the last call.
    pub(super) fn take(&mut self) -> u64 {
        std::mem::take(&mut self.new)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::io;
    use std::os::fd::AsRawFd;

    use socket2::Socket;

    use crate::sys::checked;

    const IS_SPARC: bool = cfg!(any(target_arch = "sparc", target_arch = "sparc64"));

    /// The option and the control message, which libc lacks for Linux.
    pub(crate) const SO_RXQ_OVFL: libc::c_int = if IS_SPARC { 0x24 } else { 40 };
    const SO_MEMINFO: libc::c_int = if IS_SPARC { 0x39 } else { 55 };

    /// Lets the kernel tell the number of dropped datagrams with each datagram that follows one.
    pub(super) fn tell_drops(socket: &Socket) -> io::Result<()> {
        let enabled: libc::c_int = 1;
        let size = size_of_val(&enabled) as libc::socklen_t;
        // SAFETY: setsockopt reads one integer.
        checked(unsafe {
            let value = (&raw const enabled).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_RXQ_OVFL, value, size)
        })
        .map(drop)
    }

    /// The number of datagrams that have been dropped at the socket; `None` before Linux 4.12.
    pub(super) fn drops(socket: &Socket) -> Option<u32> {
        const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
        let mut numbers = [0_u32; DROPS + 1];
        let mut size = size_of_val(&numbers) as libc::socklen_t;
        // SAFETY: getsockopt writes at most `size` bytes of integers.
        let known = unsafe {
            let value = numbers.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, value, &mut size)
        };
        (known == 0 && size as usize == size_of_val(&numbers)).then(|| numbers[DROPS])
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable {
    use std::io;

    use socket2::Socket;

    pub(super) fn tell_drops(_socket: &Socket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn drops(_socket: &Socket) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_over_the_wrap_of_the_kernels_number() {
        let mut drops = KernelDrops { seen: u32::MAX - 1, new: 0 };
        drops.record(u32::MAX);
        drops.record(u32::MAX);
        drops.record(3);
        assert_eq!((drops.take(), drops.take()), (5, 0));
    }

    #[test]
    fn an_earlier_number_of_a_datagram_that_has_waited_counts_nothing() {
        let mut drops = KernelDrops { seen: 7, new: 0 };
        drops.record(3);
        drops.record(8);
        assert_eq!(drops.take(), 1);
        let mut drops = KernelDrops { seen: 2, new: 0 };
        drops.record(u32::MAX);
        drops.record(3);
        assert_eq!(drops.take(), 1);
    }
}
