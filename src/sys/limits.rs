//! How many descriptors a process may have, see
//! [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).

use std::io;

use super::checked;

/// Raises this process's soft limit on open descriptors to its hard one, and returns that.
///
/// A connection takes a descriptor, and the soft limit is often 1,024. See
/// [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).
///
/// # Errors
///
/// What the system says, as where a sandbox forbids it.
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
