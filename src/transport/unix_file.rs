//! The file of a Unix socket: whose it is, when it may be taken over, and that it is gone when its
//! server is.
//!
//! **Invariant:** only a socket file is ever removed, and only one that nobody answers at (taken
//! over, under the lock) or that this process made and still stands at its path (removed at close).

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// How long another process may take to bind beside us before we give up waiting for it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Binds `socket` to `path`. A socket file that nobody answers at is replaced.
///
/// As long as the lock is held that comes with it, no other server of this crate takes the file for
/// one that nobody answers at; it is to be dropped when the socket does answer.
pub(super) fn bind(
    socket: &Socket,
    path: &Path,
    kind: Type,
    mode: Option<u32>,
) -> io::Result<(OwnFile, File)> {
    let lock = lock_directory(path)?;
    let address = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        remove_if_stale(path, kind, error)?;
        socket.bind(&address)?;
    }
    // From here on a failure removes the file again.
    let own = OwnFile::of(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok((own, lock))
}

/// Keeps other servers of this crate from binding in the same directory meanwhile: a lock on the
/// directory itself leaves no file behind.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                // Nobody tells when a file lock is free; a bind takes microseconds.
                thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process keeps the directory locked",
                ));
            }
        }
    }
}

/// Removes a socket file that nobody answers at; otherwise says why it stays.
fn remove_if_stale(path: &Path, kind: Type, in_use: io::Error) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is no socket",
        ));
    }
    let probe = Socket::new(Domain::UNIX, kind, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        // Refused is what a socket without a process says; one with a full backlog says "again".
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(in_use),
    }
}

/// A socket file that this process has made.
#[derive(Debug)]
pub(crate) struct OwnFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    pid: u32,
}

impl OwnFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(OwnFile {
            // The path stays right when the process changes its directory.
            path: std::path::absolute(path)?,
            device: found.dev(),
            inode: found.ino(),
            pid: std::process::id(),
        })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let ours = self.pid == std::process::id()
            && fs::symlink_metadata(&self.path).is_ok_and(|found| {
                found.file_type().is_socket()
                    && (found.dev(), found.ino()) == (self.device, self.inode)
            });
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
