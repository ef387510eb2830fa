//! The limit on open descriptors of a process, see
//! [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).

use std::io;

use super::checked;

/// Raises the soft limit on open descriptors of this process to its hard limit. Returns the limit.
///
/// Each connection takes one descriptor, and the soft limit is often 1,024. See
/// [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).
///
/// # Errors
///
/// The error of getrlimit(2) or setrlimit(2), for example if a sandbox forbids the call.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit reads one rlimit.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(limit.rlim_cur)
}
