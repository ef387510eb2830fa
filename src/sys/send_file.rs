//! Sending a part of a file to a stream, on Linux without a copy through the memory of this process,
//! see [sendfile(2)](https://man7.org/linux/man-pages/man2/sendfile.2.html).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Socket;

use super::socket::send_now;

/// How much of a file is read into memory at a time, in bytes, where the kernel does not send it by
/// itself.
const READ_AT_MOST: usize = 64 * 1024;

/// Sends at most `count` bytes of `file`, from `offset` on, to a stream. Returns how many the
/// kernel took; 0 for EAGAIN. If the file has no byte at `offset` or cannot be read, the result is
/// an error for which [`is_file_error`] returns true.
///
/// It never waits for a non-blocking socket, and for a blocking one at most its SO_SNDTIMEO:
/// sendfile(2) has no counterpart of MSG_DONTWAIT. It can wait for the disk. No SIGPIPE is left
/// pending.
pub(crate) fn send_file(
    socket: &Socket,
    file: &File,
    offset: u64,
    count: usize,
) -> io::Result<usize> {
    debug_assert!(count > 0);
    #[cfg(feature = "testing")]
    if socket.simulated.is_some() {
        return read_and_send(socket, file, offset, count);
    }
    match imp::send_file(socket, file, offset, count) {
        Some(sent) => sent,
        None => read_and_send(socket, file, offset, count),
    }
}

/// For systems and files that sendfile(2) does not support.
fn read_and_send(socket: &Socket, file: &File, offset: u64, count: usize) -> io::Result<usize> {
    let mut buffer = vec![0; count.min(READ_AT_MOST)];
    let count = loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Err(too_short()),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io::Error::new(error.kind(), FileError(Some(error)))),
        }
    };
    send_now(socket, &buffer[..count], false)
}

/// Whether the error is an error of the file, and not of the socket.
pub(crate) fn is_file_error(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<FileError>())
}

fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, FileError(None))
}

/// The reason why no bytes of a file can be sent: an error of the system, or `None` if the file has
/// ended.
#[derive(Debug)]
struct FileError(Option<io::Error>);

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(error) => write!(f, "the file to be sent cannot be read: {error}"),
            None => f.write_str("the file to be sent is shorter than its range"),
        }
    }
}

impl std::error::Error for FileError {}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod imp {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    use crate::sys::Socket;

    /// Errors of sendfile(2) for a file that it cannot send, or if it is not allowed. A socket does
    /// not have these errors, or has them again at the next send.
    const OF_THE_FILE: [libc::c_int; 10] = [
        libc::EINVAL,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::EIO,
        libc::EBADF,
        libc::EISDIR,
        libc::ESPIPE,
        libc::EOVERFLOW,
        libc::EPERM,
        libc::EACCES,
    ];

    /// `None` if the file must be read instead.
    pub(super) fn send_file(
        socket: &Socket,
        file: &File,
        offset: u64,
        count: usize,
    ) -> Option<io::Result<usize>> {
        let mut offset = libc::off_t::try_from(offset).ok()?;
        loop {
            let sent = without_sigpipe(count, || {
                // SAFETY: sendfile reads and writes one offset.
                unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &mut offset, count) }
            });
            let error = match sent {
                Ok(0) => return Some(Err(super::too_short())),
                Ok(sent) => return Some(Ok(sent)),
                Err(error) => error,
            };
            match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::WouldBlock, _) => return Some(Ok(0)),
                (io::ErrorKind::Interrupted, _) => {}
                (_, Some(code)) if OF_THE_FILE.contains(&code) => return None,
                _ => return Some(Err(error)),
            }
        }
    }

    /// Calls `send`, which sends `count` bytes, and removes the SIGPIPE that it raises if the peer
    /// is gone, as MSG_NOSIGNAL does for send(2). The signal is sent to this thread, which blocks
    /// it during the call; otherwise the default action of SIGPIPE would end the process. A process
    /// that ignores the signal, as Rust programs do unless they change that, gets none.
    fn without_sigpipe(count: usize, send: impl FnOnce() -> libc::ssize_t) -> io::Result<usize> {
        if is_sigpipe_ignored() {
            return usize::try_from(send()).map_err(|_| io::Error::last_os_error());
        }
        // SAFETY: zeros are a valid signal set; these calls write and read the two sets.
        let (sigpipe, before) = unsafe {
            let (mut sigpipe, mut before): (libc::sigset_t, libc::sigset_t) =
                (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&mut sigpipe);
            libc::sigaddset(&mut sigpipe, libc::SIGPIPE);
            libc::pthread_sigmask(libc::SIG_BLOCK, &sigpipe, &mut before);
            (sigpipe, before)
        };
        let sent = usize::try_from(send()).map_err(|_| io::Error::last_os_error());
        // SAFETY: sigismember reads a set.
        let was_blocked = unsafe { libc::sigismember(&before, libc::SIGPIPE) } == 1;
        // SIGPIPE can also be raised after a part has been sent.
        if !was_blocked && !matches!(sent, Ok(all) if all == count) {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: sigtimedwait reads a set and a time, and writes nothing, because the pointer in
            // between is null.
            while unsafe { libc::sigtimedwait(&sigpipe, std::ptr::null_mut(), &at_once) } == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
        // SAFETY: pthread_sigmask reads one set, and writes none because the last pointer is null.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
        sent
    }

    fn is_sigpipe_ignored() -> bool {
        // SAFETY: zeros are a valid action; sigaction writes it and changes nothing, because the pointer
        // to the new action is null.
        let (known, action) = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut action) == 0, action)
        };
        known && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod imp {
    use std::fs::File;
    use std::io;

    use crate::sys::Socket;

    /// The sendfile call of this system is not used.
    pub(super) fn send_file(
        _socket: &Socket,
        _file: &File,
        _offset: u64,
        _count: usize,
    ) -> Option<io::Result<usize>> {
        None
    }
}

#[cfg(test)]
pub(crate) use tests::unnamed_file;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// A function that sends: that of this system, or that of the other systems.
    type Send = fn(&Socket, &File, u64, usize) -> io::Result<usize>;

    const WAYS: [Send; 2] = [send_file, read_and_send];

    /// A file with these bytes, and without a name.
    pub(crate) fn unnamed_file(bytes: &[u8]) -> File {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, SeqCst);
        let path = std::env::temp_dir().join(format!("unnamed-{}-{number}", std::process::id()));
        let mut options = File::options();
        let mut file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn tcp() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0.into(), theirs)
    }

    fn unix() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (OwnedFd::from(ours).into(), theirs)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    /// Sends until there is no room, and reads what was sent.
    fn fill_and_take(send: Send, ours: &Socket, mut theirs: impl io::Read) {
        ours.set_nonblocking(true).unwrap();
        let whole = bytes(16 << 20);
        let file = unnamed_file(&whole);
        let mut sent = 1;
        loop {
            let most = 100_000.min(whole.len() - sent);
            match send(ours, &file, sent as u64, most).unwrap() {
                0 => break,
                count => sent += count,
            }
        }
        let mut received = vec![0; sent - 1];
        theirs.read_exact(&mut received).unwrap();
        assert!(received == whole[1..sent]);
    }

    #[test]
    fn a_file_is_sent_from_its_offset_until_the_kernel_has_no_room() {
        for send in WAYS {
            let (ours, theirs) = tcp();
            fill_and_take(send, &ours, theirs);
            let (ours, theirs) = unix();
            fill_and_take(send, &ours, theirs);
        }
    }

    #[test]
    fn the_end_of_a_file_is_an_error_of_the_file() {
        for send in WAYS {
            let (ours, mut theirs) = unix();
            let file = unnamed_file(b"12345");
            assert_eq!(send(&ours, &file, 2, 100).unwrap(), 3);
            for offset in [5, 6, 1 << 40] {
                let error = send(&ours, &file, offset, 100).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                assert!(is_file_error(&error), "{error}");
            }
            let mut received = [0; 3];
            theirs.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"345");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_of_the_file() {
        let directory = File::open(std::env::temp_dir()).unwrap();
        let (_read, write_only) = std::io::pipe().unwrap();
        let write_only = File::from(OwnedFd::from(write_only));
        for send in WAYS {
            for file in [&directory, &write_only] {
                let error = send(&unix().0, file, 0, 100).unwrap_err();
                assert!(is_file_error(&error), "{error}");
            }
            let error = send(&unix().0, &unnamed_file(b"12345"), u64::MAX, 100).unwrap_err();
            assert!(is_file_error(&error), "{error}");
        }
    }

    #[test]
    fn a_file_that_sendfile_refuses_is_read() {
        let Ok(file) = File::open("/proc/self/status") else { return };
        let (ours, mut theirs) = unix();
        let count = send_file(&ours, &file, 0, 100).unwrap();
        let mut received = vec![0; count];
        theirs.read_exact(&mut received).unwrap();
        assert!(received.starts_with(b"Name:"), "{}", received.escape_ascii());
    }

    #[test]
    fn a_send_on_a_blocking_socket_waits_no_longer_than_its_timeout() {
        let (ours, _theirs) = unix();
        ours.set_write_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        let file = unnamed_file(&bytes(16 << 20));
        let mut sent = 0;
        while sent < 16 << 20 {
            match send_file(&ours, &file, sent as u64, 1 << 20).unwrap() {
                0 => break,
                count => sent += count,
            }
        }
        assert!((1..16 << 20).contains(&sent), "{sent}");
    }

    /// The default action of SIGPIPE would end the process, so this runs in a child process.
    #[test]
    fn a_peer_that_is_gone_is_an_error_of_the_socket_and_raises_no_signal() {
        let file = unnamed_file(&bytes(1 << 20));
        let (ours, theirs) = unix();
        drop(theirs);
        // SAFETY: the child calls nothing that needs a lock of another thread, and ends by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: signal takes two numbers, _exit does not return.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let sent = imp::send_file(&ours, &file, 0, 1000);
            let is_told = matches!(
                sent,
                Some(Err(error)) if error.raw_os_error() == Some(libc::EPIPE)
            );
            // SAFETY: as above.
            unsafe { libc::_exit(if is_told || cfg!(not(target_os = "linux")) { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waitpid writes one number.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        for send in WAYS {
            let error = send(&ours, &file, 0, 1000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            assert!(!is_file_error(&error));
        }
    }
}
