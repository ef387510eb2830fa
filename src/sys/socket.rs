//! Accepting and waiting, as [accept4(2)](https://man7.org/linux/man-pages/man2/accept4.2.html) and
//! [poll(2)](https://man7.org/linux/man-pages/man2/poll.2.html) do it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::checked;

/// Accepts one connection, close-on-exec, and non-blocking if asked: one system call where the
/// kernel can set both flags itself.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly",
))]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    use std::os::fd::FromRawFd;

    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: the kernel writes an address of at most `*len` bytes into the storage that
    // `try_init` provides, and the true length into `*len`.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, len| {
            checked(libc::accept4(
                listener.as_raw_fd(),
                storage.cast(),
                len,
                flags,
            ))
        })
    }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok((unsafe { Socket::from_raw_fd(fd) }, address))
}

/// As above, with a second system call for the flag.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly",
)))]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(nonblocking)?;
    Ok((socket, address))
}

/// Sends what the kernel takes of `bytes` now, never raising SIGPIPE; 0 when it takes nothing.
#[inline]
pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    taken(|| socket.send_with_flags(bytes, SEND_FLAGS))
}

/// As [`send`], gathering slices.
pub(crate) fn send_vectored(socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    taken(|| socket.send_vectored_with_flags(slices, SEND_FLAGS))
}

/// macOS has no such flag; there Rust's runtime ignores the signal for the whole process.
const SEND_FLAGS: libc::c_int = if cfg!(any(target_os = "macos", target_os = "ios")) {
    0
} else {
    libc::MSG_NOSIGNAL
};

#[inline]
fn taken(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Which of the descriptors waited for can be read.
pub(crate) type Readable<const N: usize> = [bool; N];

/// Waits until one of `fds` can be read (or has ended, or failed), for at most `timeout`.
pub(crate) fn poll_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<Readable<N>> {
    poll(fds, libc::POLLIN, timeout)
}

/// Waits until `fd` can be written (or has failed), for at most `timeout`; false when it cannot.
pub(crate) fn poll_writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    poll([fd], libc::POLLOUT, timeout).map(|[ready]| ready)
}

fn poll<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    events: libc::c_short,
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    });
    loop {
        let millis = deadline.map_or(-1, |deadline| {
            // Rounded up: an early return would be a turn for nothing.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: poll reads and writes the N entries of the array.
        let result = checked(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(polled.map(|entry| entry.revents != 0)),
        }
    }
}
