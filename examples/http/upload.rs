//! A file that a client uploads: it is written under a hidden name, and gets its own when it is
//! whole. So a file is never seen in part, and one that is replaced stays until then.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use super::files::status;
use super::request::Refused;

/// An upload. Dropping it removes what has been written, unless it was finished.
pub(crate) struct Upload {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    /// How many more bytes it may have.
    left: u64,
    /// The file replaces another one.
    pub(crate) replaces: bool,
}

impl Upload {
    /// Begins to write a file of at most `limit` bytes. `number` is in the name of the file until
    /// it is whole; no two uploads at a time may have the same.
    ///
    /// # Errors
    ///
    /// The status for a place where no file can be.
    pub(crate) fn begin(path: PathBuf, number: &str, limit: u64) -> Result<Self, Refused> {
        let kind = fs::symlink_metadata(&path);
        if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
            return Err(Refused(409));
        }
        // Another process may serve the same directory.
        let name = format!(".upload-{}-{number}", std::process::id());
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(status)?;
        Ok(Upload { file, temporary, path, left: limit, replaces: kind.is_ok() })
    }

    /// Writes a piece, which waits for the disk.
    ///
    /// # Errors
    ///
    /// The status for a file that becomes too long, or cannot be written.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<(), Refused> {
        self.left = self.left.checked_sub(piece.len() as u64).ok_or(Refused(413))?;
        self.file.write_all(piece).map_err(status)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// The status for a name that the file cannot have.
    pub(crate) fn finish(mut self) -> Result<(), Refused> {
        fs::rename(&self.temporary, &self.path).map_err(status)?;
        self.temporary = PathBuf::new();
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
