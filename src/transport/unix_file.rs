//! The file of a Unix socket: when a stale file is replaced, and when the file is removed.
//!
//! **Invariant:** a socket file is removed only in two cases: it is stale, that is, no process
//! listens on it (replaced under the lock), or this process made it and it is still at its path
//! (removed at close). A lock file is removed only by the process that holds the lock, and only if
//! it is an empty regular file.

use crate::guard::log;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Type};

use crate::sys::{self, Socket};

/// How long to wait for the lock while another process binds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Binds `socket` to `path`. A stale socket file is replaced.
///
/// While the returned lock is held, no other server of this crate treats the file as stale. Drop
/// the lock when the socket listens.
pub(super) fn bind(
    socket: &Socket,
    path: &Path,
    kind: Type,
    mode: Option<u32>,
) -> io::Result<(OwnFile, Option<Lock>)> {
    let lock = Lock::take(path)?;
    let address = SockAddr::unix(path)?;
    if let Some(mode) = mode {
        // The file never has more permissions than requested, not even before its mode is set below.
        if let Err(error) = sys::restrict_socket_file(socket, mode) {
            log::debug!(
                "cannot restrict the mode of {} before it is created: {error}",
                path.display()
            );
        }
    }
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse || lock.is_none() {
            return Err(error);
        }
        remove_if_stale(path, kind, error)?;
        socket.bind(&address)?;
    }
    // From here on, a failure removes the file again.
    let own = OwnFile::of(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok((own, lock))
}

/// A file lock that keeps other servers of this crate from binding to the same path. Only a process
/// that may write to the directory can hold it; the lock file is removed with the lock.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock. `None` if the lock file cannot be made; then a stale socket file could not
    /// be removed either.
    fn take(path: &Path) -> io::Result<Option<Self>> {
        let Some(name) = path.file_name() else { return Ok(None) };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".lock");
        let path = std::path::absolute(path)?.with_file_name(hidden);
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let file = match Self::open(&path) {
                Ok(file) => file,
                Err(error) if is_refused(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            match file.try_lock() {
                // The previous holder may have removed the file: then this lock is on no file at
                // the path.
                Ok(()) if is_at(&file, &path) => return Ok(Some(Lock { file, path })),
                Ok(()) => {}
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    // There is no event for a free file lock; a bind takes microseconds.
                    thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        format!("another process holds the lock {}", path.display()),
                    ));
                }
            }
        }
    }

    fn open(path: &Path) -> io::Result<File> {
        // A symbolic link there could be an attack, so it is not followed.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file of another program may have this name.
        let is_lock = self.file.metadata().is_ok_and(|held| held.is_file() && held.len() == 0);
        if is_lock
            && is_at(&self.file, &self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn is_refused(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// Whether a file is still at its path.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Removes a stale socket file; otherwise returns the error why it is kept.
fn remove_if_stale(path: &Path, kind: Type, in_use: io::Error) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket",
        ));
    }
    let probe = Socket::new(Domain::UNIX, kind, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        // ECONNREFUSED means that no process has the socket; with a full backlog the error is EAGAIN.
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
            // An absolute path stays valid when the process changes its directory.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_socket_file_is_created_with_no_more_than_the_restricted_mode() {
        let directory = std::env::temp_dir().join(format!("restricted-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (kind, name) in [(Type::STREAM, "stream"), (Type::DGRAM, "datagram")] {
            for mode in [0o600, 0o000] {
                let path = directory.join(format!("{name}-{mode}"));
                let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
                sys::restrict_socket_file(&socket, mode).unwrap();
                socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
                let made = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(made, mode, "{name}: {made:o}");
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
