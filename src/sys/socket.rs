//! System calls on sockets: accept, send, receive, reset and wait, see
//! [accept4(2)](https://man7.org/linux/man-pages/man2/accept4.2.html) and
//! [poll(2)](https://man7.org/linux/man-pages/man2/poll.2.html).

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::Interest;
use socket2::SockAddr;

use super::edge::simulated;
use super::{Event, Socket, checked};
use crate::address::Credentials;

/// Accepts one connection, close-on-exec, and non-blocking if `nonblocking`; accept4(2) sets both
/// flags.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    use std::os::fd::{FromRawFd, OwnedFd};

    #[cfg(feature = "testing")]
    assert!(nonblocking || listener.simulated.is_none(), "only reactor and offload are simulated");
    simulated!(listener, accept());
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: the kernel writes an address of at most `*len` bytes into the storage that
    // `try_init` provides, and the true length into `*len`.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, len| {
            checked(libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags))
        })
    }?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }.into(), address))
}

/// As above, without accept4(2): a second system call sets the flag.
#[cfg(target_vendor = "apple")]
pub(crate) fn accept(listener: &Socket, nonblocking: bool) -> io::Result<(Socket, SockAddr)> {
    simulated!(listener, accept());
    let (socket, address) = listener.accept()?;
    socket.set_nonblocking(nonblocking)?;
    Ok((socket.into(), address))
}

/// How many connections wait in the accept queue; known only for TCP on Linux, see
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html).
#[cfg(target_os = "linux")]
pub(crate) fn waiting_connections(listener: &Socket) -> Option<usize> {
    simulated!(listener, waiting_connections());
    // SAFETY: zeros are a valid tcp_info: it holds only numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: getsockopt writes at most `length` bytes into `info`, and their number into `length`.
    let result = checked(unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    });
    // For a listener, this field is the length of the accept queue.
    result.ok().map(|_| info.tcpi_unacked as usize)
}

/// Not known on this system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn waiting_connections(_listener: &Socket) -> Option<usize> {
    None
}

/// Whether a client waits at a listener.
pub(crate) fn has_client(listener: &Socket) -> bool {
    #[cfg(feature = "testing")]
    if listener.simulated.is_some() {
        return waiting_connections(listener) != Some(0);
    }
    let ready = wait_for(&[(listener.as_fd(), PollInterest::Read)], Some(Duration::ZERO));
    ready.is_ok_and(|ready| ready != 0)
}

/// Limits the permissions of the file that bind(2) will make for a Unix socket. Linux gives the
/// file the permissions of the socket, less the umask, see unix(7). Elsewhere this does nothing,
/// and only the umask limits the permissions.
pub(crate) fn restrict_socket_file(socket: &Socket, mode: u32) -> io::Result<()> {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        // SAFETY: fchmod takes two numbers.
        checked(unsafe { libc::fchmod(socket.as_raw_fd(), mode as libc::mode_t) })?;
    }
    Ok(())
}

/// Sends on a non-blocking socket, without SIGPIPE. Returns how many of `bytes` the kernel took; 0
/// for EAGAIN.
#[inline(always)]
pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    taken(|| socket.send_with_flags(bytes, SEND_FLAGS))
}

/// As [`send`], with several slices, and for a blocking socket too: it does not wait (MSG_DONTWAIT).
/// Where `more` output follows at once, TCP may put the end of these bytes into one packet with it
/// (MSG_MORE, on Linux).
pub(crate) fn send_vectored(
    socket: &Socket,
    slices: &[IoSlice<'_>],
    more: bool,
) -> io::Result<usize> {
    let flags = SEND_FLAGS | libc::MSG_DONTWAIT | more_flag(more);
    taken(|| socket.send_vectored_with_flags(slices, flags))
}

/// As [`send_vectored`], with one slice.
pub(crate) fn send_now(socket: &Socket, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = SEND_FLAGS | libc::MSG_DONTWAIT | more_flag(more);
    taken(|| socket.send_with_flags(bytes, flags))
}

/// Receives from a blocking socket without waiting (MSG_DONTWAIT). An interrupted call is repeated.
pub(crate) fn receive_now(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    uninterrupted(|| receive_once(socket, buffer))
}

fn receive_once(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    simulated!(socket, receive(buffer));
    // SAFETY: recv writes at most as many bytes as the buffer has.
    let received = unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// As a read into one byte, but reads nothing (MSG_PEEK) and does not wait. An error of the connection
/// is taken: the next read returns the end. An interrupted call is repeated.
pub(crate) fn peek(socket: &Socket) -> io::Result<usize> {
    uninterrupted(|| peek_once(socket))
}

fn peek_once(socket: &Socket) -> io::Result<usize> {
    simulated!(socket, peek());
    let mut byte = [0u8; 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: recv writes at most one byte.
    let peeked = unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    usize::try_from(peeked).map_err(|_| io::Error::last_os_error())
}

/// Whether a read would return at once, with bytes, end of input or an error.
pub(crate) fn has_input(socket: &Socket) -> bool {
    !matches!(peek(socket), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether everything that the peer has sent has been read, its end being next. Reads nothing and does
/// not wait.
pub(crate) fn is_at_end(socket: &Socket) -> io::Result<bool> {
    match peek(socket) {
        Ok(count) => Ok(count == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many bytes of output the kernel holds for a stream. For TCP, these are the bytes that the
/// peer has not acknowledged; an unacknowledged FIN counts as one. For a Unix socket, it is the
/// memory of the bytes that the peer has not read. See `SIOCOUTQ` in
/// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html). 0 if the call fails.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn unsent(socket: &Socket) -> usize {
    simulated!(socket, unsent());
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, another name of `SIOCOUTQ`, writes one integer.
    let known = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if known == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Always 0: this system is not asked, and bytes that its kernel has taken count as sent.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn unsent(_socket: &Socket) -> usize {
    0
}

/// Sets SO_LINGER to 0: the last close of a TCP connection sends an RST and drops unsent output, so
/// that output that was cut does not look complete. A Unix socket has no reset; its peer sees end
/// of input.
pub(crate) fn reset_on_close(socket: &Socket) {
    simulated!(socket, reset_on_close());
    // It fails only if the connection is gone already.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// Tells a client something before its connection is closed, without waiting: it is told as much as
/// the kernel takes. What the client has sent by now is read, so that it does not cause a reset that
/// would drop the output.
pub(crate) fn send_and_close(socket: Socket, bytes: &[u8]) {
    // Each call fails only if the client is gone.
    let _ = send_now(&socket, bytes, false);
    let _ = receive_now(&socket, &mut [0; 4096]);
    let _ = socket.shutdown(Shutdown::Write);
}

/// Ends a connection that another thread uses; a call that waits for it returns. It sends an RST if
/// the kernel can do so without a close: see how connect(2) with AF_UNSPEC dissolves an
/// association,
/// [connect(2)](https://man7.org/linux/man-pages/man2/connect.2.html).
pub(crate) fn disconnect(socket: &Socket) {
    reset_on_close(socket);
    // SAFETY: zeros are a valid address, of the family AF_UNSPEC, which is 0.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of_val(&unspecified) as libc::socklen_t;
    // SAFETY: connect reads `len` bytes of the address.
    if unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, len) } != 0 {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Receives from a stream. Returns how many bytes, and whether ancillary data came with them. There
/// is no buffer for it: the kernel drops it, closes the descriptors in it, and sets `MSG_CTRUNC`,
/// see [recvmsg(2)](https://man7.org/linux/man-pages/man2/recvmsg.2.html). On Linux a read of a Unix
/// stream stops behind it, see [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    simulated!(socket, receive_message(buffer));
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeros are a valid msghdr: no name, no slice, no room for ancillary data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut slice;
    message.msg_iovlen = 1;
    // SAFETY: recvmsg writes at most as many bytes as the buffer has.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
    let count = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    Ok((count, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// The credentials of the process at the other end of a Unix stream, as they were when it connected:
/// `SO_PEERCRED`, see [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html). Other sockets have
/// none.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn peer_credentials(socket: &Socket) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = size_of_val(&found) as libc::socklen_t;
    // SAFETY: getsockopt writes at most `length` bytes into `found`, and their number into `length`.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &mut length,
        )
    })?;
    if found.uid == libc::uid_t::MAX {
        return Err(no_credentials());
    }
    // A process that this one cannot see, in another pid namespace, has the number 0.
    let pid = (found.pid != 0).then_some(found.pid);
    Ok(Credentials { pid, uid: found.uid, gid: found.gid })
}

/// The same by getpeereid(3), which does not tell the pid.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn peer_credentials(socket: &Socket) -> io::Result<Credentials> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: getpeereid writes two numbers.
    let result = checked(unsafe { libc::getpeereid(socket.as_raw_fd(), &mut uid, &mut gid) });
    result.map_err(|_| no_credentials())?;
    Ok(Credentials { pid: None, uid, gid })
}

fn no_credentials() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "only the peer of a Unix stream socket has credentials",
    )
}

/// The readiness that a stream is watched for: readable, writable, and, where the poller reports
/// it, urgent data.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn stream_interest() -> Interest {
    Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn stream_interest() -> Interest {
    Interest::READABLE | Interest::WRITABLE
}

/// Whether an event of a stream may include urgent data: a read stops at the urgent mark, and the
/// bytes behind it cause no further event. Always true where the poller does not report urgent
/// data.
#[inline]
pub(crate) fn may_be_urgent(event: Event<'_>) -> bool {
    event.is_priority() || !cfg!(any(target_os = "linux", target_os = "android"))
}

/// No SIGPIPE. macOS has no such flag; there Rust's runtime ignores the signal for the whole
/// process.
const SEND_FLAGS: libc::c_int =
    if cfg!(any(target_os = "macos", target_os = "ios")) { 0 } else { libc::MSG_NOSIGNAL };

/// The flag for bytes that `more` output follows at once.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn more_flag(more: bool) -> libc::c_int {
    if more { libc::MSG_MORE } else { 0 }
}

/// Not known on this system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn more_flag(_more: bool) -> libc::c_int {
    0
}

/// Repeats a call that a signal interrupts.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Lets TCP send only full packets from now on, or also the rest again (TCP_CORK). Returns whether
/// the socket has done so.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn set_cork(socket: &Socket, corked: bool) -> bool {
    socket.set_tcp_cork(corked).is_ok()
}

/// Not known on this system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn set_cork(_socket: &Socket, _corked: bool) -> bool {
    false
}

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

/// The readiness of a descriptor that [`wait_for`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PollInterest {
    /// Readable, ended, or failed.
    Read,
    /// Writable, or failed.
    Write,
    /// The peer has ended, or the connection has failed. Where the system does not report an end by
    /// itself, also readable.
    End,
    /// Failed, or ended in both directions.
    Failure,
}

/// What poll(2) calls the end of the peer.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PEER_END: libc::c_short = libc::POLLRDHUP;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const PEER_END: libc::c_short = libc::POLLIN;

/// The maximum number of descriptors that [`wait_for`] takes.
const MOST_WANTED: usize = 5;

/// Waits until one of at most five `interests` is ready, for at most `timeout`. Bit `n` of the
/// result is set if the `n`-th one is ready.
pub(crate) fn wait_for<'a>(
    interests: &[impl Into<Option<(BorrowedFd<'a>, PollInterest)>> + Copy],
    timeout: Option<Duration>,
) -> io::Result<u32> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled = [libc::pollfd { fd: -1, events: 0, revents: 0 }; MOST_WANTED];
    for (entry, interests) in polled.iter_mut().zip(interests) {
        let Some((fd, interest)) = (*interests).into() else { continue };
        entry.fd = fd.as_raw_fd();
        entry.events = match interest {
            PollInterest::Read => libc::POLLIN,
            PollInterest::Write => libc::POLLOUT,
            PollInterest::End => PEER_END,
            PollInterest::Failure => 0,
        };
    }
    loop {
        let millis = deadline.map_or(-1, |deadline| {
            // Rounded up, so that it does not return before the deadline.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: poll reads and writes the entries of the array; it skips those with fd -1.
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn the_peer_of_a_unix_stream_has_the_credentials_of_its_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let credentials = peer_credentials(&OwnedFd::from(ours).into()).unwrap();
        // SAFETY: these take nothing and always succeed.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        assert_eq!((credentials.uid, credentials.gid), (uid, gid));
        if cfg!(target_os = "linux") {
            assert_eq!(credentials.pid, Some(std::process::id() as i32));
        }
    }

    #[test]
    fn the_peer_of_another_socket_has_no_credentials() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unbound = UnixDatagram::unbound().unwrap();
        for socket in [stream.into(), udp.into(), OwnedFd::from(unbound).into()] {
            let error = peer_credentials(&socket).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
    }
}
