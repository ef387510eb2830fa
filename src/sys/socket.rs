//! Accepting and waiting, as [accept4(2)](https://man7.org/linux/man-pages/man2/accept4.2.html) and
//! [poll(2)](https://man7.org/linux/man-pages/man2/poll.2.html) do it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::event::Event;
use socket2::{SockAddr, Socket};

use super::checked;

/// Accepts one connection, close-on-exec, and non-blocking if asked: one system call where the
/// kernel can set both flags itself.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    use std::os::fd::FromRawFd;

    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: the kernel writes an address of at most `*len` bytes into the storage that
    // `try_init` provides, and the true length into `*len`.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, len| {
            checked(libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags))
        })
    }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok((unsafe { Socket::from_raw_fd(fd) }, address))
}

/// As above, with a second system call for the flag.
#[cfg(target_vendor = "apple")]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(nonblocking)?;
    Ok((socket, address))
}

/// How many connections wait to be accepted, where the system tells: of TCP on Linux, see
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html).
#[cfg(target_os = "linux")]
pub(crate) fn waiting_connections(listener: &Socket) -> Option<usize> {
    // SAFETY: a tcp_info of zeros is a valid one: it holds nothing but numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: getsockopt writes at most `length` bytes into `info`, and how many into `length`.
    let result = checked(unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    });
    // Of a listener, this field is the length of the accept queue.
    result.ok().map(|_| info.tcpi_unacked as usize)
}

/// As above.
#[cfg(not(target_os = "linux"))]
pub(crate) fn waiting_connections(_listener: &Socket) -> Option<usize> {
    None
}

/// Has the file that a Unix socket will be bound to made with no more than these permissions: Linux
/// takes those of the socket, less the umask, see unix(7). Elsewhere nothing is known to have this
/// effect, and the file is made as the umask says.
pub(crate) fn restrict_socket_file(socket: &Socket, mode: u32) -> io::Result<()> {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        // SAFETY: fchmod takes two numbers.
        checked(unsafe { libc::fchmod(socket.as_raw_fd(), mode as libc::mode_t) })?;
    }
    Ok(())
}

/// Sends what the kernel takes of `bytes` now, never raising SIGPIPE; 0 when it takes nothing.
#[inline(always)]
pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    taken(|| socket.send_with_flags(bytes, SEND_FLAGS))
}

/// As [`send`], gathering slices.
pub(crate) fn send_vectored(socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    taken(|| socket.send_vectored_with_flags(slices, SEND_FLAGS))
}

/// As [`send`], for a socket that is blocking: it does not wait either.
pub(crate) fn send_now(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    taken(|| socket.send_with_flags(bytes, SEND_FLAGS | libc::MSG_DONTWAIT))
}

/// Receives without waiting, from a socket that is blocking.
pub(crate) fn receive_now(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: recv writes at most as many bytes as the buffer has, and it is initialised already.
    let received = unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Whether a read would not wait: something has come, be it an end or an error. Takes nothing.
pub(crate) fn has_input(socket: &Socket) -> bool {
    let mut byte = [0u8; 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: recv writes at most the one byte that the array has.
    let peeked = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    peeked >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock
}

/// How many bytes of a stream's output the kernel still holds, because the peer has not
/// acknowledged them (TCP, which counts an unacknowledged FIN as one), or has not read them (a Unix
/// socket, where it is the memory that they take); see `SIOCOUTQ` in
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html). 0 where the system does not tell.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn unsent(socket: &Socket) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, which is `SIOCOUTQ` by another name, writes one integer.
    let known = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if known == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// As above: such a system is not asked, and what its kernel has taken counts as sent.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn unsent(_socket: &Socket) -> usize {
    0
}

/// Has the last close of a TCP connection send a reset and drop what is not sent, so that output
/// that was cut does not look whole. A Unix socket has no reset, and its peer sees the end.
pub(crate) fn reset_on_close(socket: &Socket) {
    // It fails only where the connection is gone already.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// Ends a connection while another thread uses it: whoever waits for it comes back. By a reset,
/// where the kernel can send one without a close: see the dissolving of an association in
/// [connect(2)](https://man7.org/linux/man-pages/man2/connect.2.html).
pub(crate) fn disconnect(socket: &Socket) {
    reset_on_close(socket);
    // SAFETY: an address of zeros is a valid one, of the family AF_UNSPEC, which is 0.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: connect reads `len` bytes of the address.
    if unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, len) } != 0 {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Receives from a stream; how many bytes, and whether ancillary data came with them. There is no
/// room for that: the kernel drops it, closing the descriptors in it, and says so by `MSG_CTRUNC`,
/// see [recvmsg(2)](https://man7.org/linux/man-pages/man2/recvmsg.2.html). On Linux a read of a Unix
/// stream stops behind it, see [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeros are a valid msghdr: no name, no slice, no room for ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut slice;
    message.msg_iovlen = 1;
    // SAFETY: recvmsg writes at most as many bytes as the buffer has, and it is initialised already.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
    let count = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    Ok((count, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// What a stream is watched for: that it can be read, written, and, where the poller tells, that
/// urgent data has come.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn stream_interest() -> Interest {
    Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn stream_interest() -> Interest {
    Interest::READABLE | Interest::WRITABLE
}

/// Whether urgent data may be among what an event of a stream tells of: a read stops at its mark, and
/// what lies behind brings no event of its own. Where the poller does not tell, any event may.
#[inline]
pub(crate) fn may_be_urgent(event: &Event) -> bool {
    event.is_priority() || !cfg!(any(target_os = "linux", target_os = "android"))
}

/// macOS has no such flag; there Rust's runtime ignores the signal for the whole process.
const SEND_FLAGS: libc::c_int =
    if cfg!(any(target_os = "macos", target_os = "ios")) { 0 } else { libc::MSG_NOSIGNAL };

#[inline(always)]
fn taken(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PollInterest {
    /// That it can be read, has ended, or has failed.
    Read,
    /// That it can be written, or has failed.
    Write,
}

/// How many descriptors [`wait_for`] takes.
const MOST_WANTED: usize = 4;

/// Waits until one of `wanted`, of which there are at most four, is so; for at most `timeout`. Bit
/// `n` of the answer says that the `n`-th is so.
pub(crate) fn wait_for<'a>(
    interests: &[impl Into<Option<(BorrowedFd<'a>, PollInterest)>> + Copy],
    timeout: Option<Duration>,
) -> io::Result<u32> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled = [libc::pollfd { fd: -1, events: 0, revents: 0 }; MOST_WANTED];
    for (entry, interests) in polled.iter_mut().zip(interests) {
        let Some((fd, interest)) = (*interests).into() else { continue };
        entry.fd = fd.as_raw_fd();
        entry.events = if interest == PollInterest::Read { libc::POLLIN } else { libc::POLLOUT };
    }
    loop {
        let millis = deadline.map_or(-1, |deadline| {
            // Rounded up: an early return would be a turn for nothing.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: poll reads and writes the entries of the array; those with fd -1 it passes over.
        let result = checked(unsafe {
            libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis)
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => {
                let ready = polled.iter().enumerate().filter(|(_, entry)| entry.revents != 0);
                return Ok(ready.fold(0, |mask, (number, _)| mask | 1 << number));
            }
        }
    }
}
