//! A non-blocking stream socket, TCP or Unix: `recv`, `send`, `close`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use super::{check, check_length};

/// A connected, non-blocking stream. Dropping it closes the descriptor, which also removes it from
/// every epoll instance.
pub struct Socket(OwnedFd);

/// Accepts one connection, non-blocking and closed on `exec`, in one system call.
///
/// # Errors
///
/// `WouldBlock` if no connection waits; the listener must be non-blocking.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Socket> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers omit the address; the returned descriptor is owned by nothing else.
    unsafe {
        let fd =
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags);
        Ok(Socket(OwnedFd::from_raw_fd(check(fd)?)))
    }
}

impl Socket {
    /// Takes ownership of a non-blocking socket.
    pub fn from_nonblocking(socket: impl Into<OwnedFd>) -> Self {
        Self(socket.into())
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes, all inside `buffer`.
        check_length(unsafe {
            libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
        })
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel only reads the bytes of the slice. MSG_NOSIGNAL: a closed peer is an
        // error, not a signal.
        check_length(unsafe {
            libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Lets `connect` choose the port instead of `bind`: it only needs one that is free for its
/// destination.
pub fn bind_without_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an integer, and `on` outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Passes a socket to a library that takes only raw descriptors.
pub fn adopt<T: FromRawFd>(socket: impl Into<OwnedFd>) -> T {
    // SAFETY: the descriptor is open, and its ownership moves into the result.
    unsafe { T::from_raw_fd(socket.into().into_raw_fd()) }
}
