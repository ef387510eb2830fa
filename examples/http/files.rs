//! The files below the root: opening them, their types, and the list of a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::conditions::Version;
use super::request::Refused;
use super::target::{Target, encode};

/// The most names in the list of a directory.
const MOST_NAMES: usize = 1000;

/// What a target names.
pub(crate) enum Found {
    File(File, Version),
    /// A directory, with its path.
    Directory(PathBuf),
}

/// A directory, and all that clients may see of it.
pub(crate) struct Root(PathBuf);

impl Root {
    /// # Errors
    ///
    /// `path` is not a directory.
    pub(crate) fn new(path: &str) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        match path.is_dir() {
            true => Ok(Root(path)),
            false => Err(ErrorKind::NotADirectory.into()),
        }
    }

    /// Opens what a target names.
    ///
    /// # Errors
    ///
    /// The status for a file that is missing, that must not be read, or that is not one.
    pub(crate) fn open(&self, target: &Target) -> Result<Found, Refused> {
        self.open_path(self.0.join(&target.path), &target.path, target.is_directory)
    }

    /// Opens the file `index.html` of a directory, if there is one.
    pub(crate) fn open_index(&self, target: &Target) -> Option<(File, Version)> {
        let relative = target.path.join("index.html");
        match self.open_path(self.0.join(&relative), &relative, false) {
            Ok(Found::File(file, version)) => Some((file, version)),
            _ => None,
        }
    }

    fn open_path(&self, path: PathBuf, below: &Path, is_directory: bool) -> Result<Found, Refused> {
        let path = if has_link(&self.0, below) { self.resolve(&path)? } else { path };
        // A link in the last place is an error here. Without O_NONBLOCK, a FIFO would wait.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(&path) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                options.open(self.resolve(&path)?).map_err(status)?
            }
            opened => opened.map_err(status)?,
        };
        let metadata = file.metadata().map_err(status)?;
        if metadata.is_dir() {
            return Ok(Found::Directory(path));
        }
        if !metadata.is_file() || is_directory {
            return Err(Refused(404));
        }
        let modified = (metadata.mtime().max(0) as u64, metadata.mtime_nsec() as u32);
        Ok(Found::File(file, Version { modified, length: metadata.len() }))
    }

    /// The path after all symbolic links, if it is below the root. Whoever may change links below
    /// the root while a request is answered may let it lead elsewhere; clients cannot.
    fn resolve(&self, path: &Path) -> Result<PathBuf, Refused> {
        let path = fs::canonicalize(path).map_err(status)?;
        if path.starts_with(&self.0) { Ok(path) } else { Err(Refused(403)) }
    }

    /// The path of a file that may not exist yet, in a directory that does.
    ///
    /// # Errors
    ///
    /// The status for a target that cannot be a file.
    pub(crate) fn place(&self, target: &Target) -> Result<PathBuf, Refused> {
        let (Some(name), false) = (target.path.file_name(), target.is_directory) else {
            return Err(Refused(409));
        };
        let directory = target.path.parent().unwrap_or(Path::new(""));
        match self.resolve(&self.0.join(directory)) {
            Ok(directory) if directory.is_dir() => Ok(directory.join(name)),
            Ok(_) | Err(Refused(404)) => Err(Refused(409)),
            Err(refused) => Err(refused),
        }
    }

    /// Whether the directory has nothing that is not hidden.
    pub(crate) fn is_empty(&self) -> bool {
        fs::read_dir(&self.0).is_ok_and(|mut entries| {
            !entries.any(|entry| entry.is_ok_and(|entry| !is_hidden(&entry.file_name())))
        })
    }
}

/// Whether one of the directories on the way to a file is a symbolic link. A file in the root itself
/// has none, and needs no system call for that.
fn has_link(root: &Path, below: &Path) -> bool {
    if !below.as_os_str().as_encoded_bytes().contains(&b'/') {
        return false;
    }
    let mut path = root.to_owned();
    below.parent().into_iter().flat_map(Path::components).any(|name| {
        path.push(name);
        fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink())
    })
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// The status for an error of the file system.
pub(crate) fn status(error: io::Error) -> Refused {
    log::debug!("{error}");
    Refused(match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => 404,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => 403,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => 507,
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => 503,
            Some(libc::ELOOP | libc::ENXIO) => 404,
            _ => 500,
        },
    })
}

/// The media types, by the ends of the names.
const MEDIA_TYPES: [(&str, &str); 25] = [
    ("html", "text/html; charset=utf-8"),
    ("htm", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("txt", "text/plain; charset=utf-8"),
    ("md", "text/plain; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("xml", "application/xml"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("ico", "image/x-icon"),
    ("woff2", "font/woff2"),
    ("pdf", "application/pdf"),
    ("wasm", "application/wasm"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
];

/// The media type of a file, by the end of its name.
pub(crate) fn media_type(path: &Path) -> &'static str {
    let name = path.as_os_str().as_encoded_bytes();
    let dot = name.iter().rposition(|byte| *byte == b'.');
    let extension = dot.map_or(&[][..], |dot| &name[dot + 1..]);
    let known = MEDIA_TYPES.iter().find(|(end, _)| extension.eq_ignore_ascii_case(end.as_bytes()));
    known.map_or("application/octet-stream", |(_, media_type)| media_type)
}

/// A page with the names in a directory, without those that are hidden.
///
/// # Errors
///
/// The status for a directory that cannot be read.
pub(crate) fn list(path: &Path, title: &Path) -> Result<String, Refused> {
    let mut names = Vec::new();
    let mut has_more = false;
    for entry in fs::read_dir(path).map_err(status)? {
        let entry = entry.map_err(status)?;
        if is_hidden(&entry.file_name()) {
            continue;
        }
        if names.len() == MOST_NAMES {
            has_more = true;
            break;
        }
        let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
        names.push((entry.file_name(), slash));
    }
    names.sort();
    let title = escape(&format!("/{}", title.display()));
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n"
    );
    for (name, slash) in names {
        let link = encode(name.as_encoded_bytes());
        let shown = escape(&name.to_string_lossy());
        page += &format!("<li><a href=\"./{link}{slash}\">{shown}{slash}</a>\n");
    }
    page += if has_more { "<li>and more\n</ul>\n" } else { "</ul>\n" };
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
