//! The limit on open descriptors of a process, see
//! [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).

use std::io;

use super::checked;

/// Raises the soft limit on open descriptors of this process to its hard limit. Returns the limit.
///
/// Each connection takes one descriptor, and the soft limit is often 1,024. See
/// [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).
///
/// In the guide: [`limits`](crate::guide::limits).
///
/// ```
/// let limit = socketserver::raise_descriptor_limit()?;
/// println!("up to {limit} descriptors, one for each connection");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// The error of getrlimit(2) or setrlimit(2), for example if a sandbox forbids the call.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = descriptor_limit()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit reads one rlimit.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(number(limit.rlim_cur))
}

/// The limit as a number; `rlim_t` is signed on FreeBSD.
#[allow(clippy::unnecessary_cast)] // elsewhere it is u64
fn number(limit: libc::rlim_t) -> u64 {
    limit as u64
}

fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(limit)
}

/// How many connections a server of this process may have open, so that descriptors are left for
/// other files: the soft limit less a sixteenth of it, and at least 32.
pub(crate) fn connections_of_descriptor_limit() -> usize {
    let limit = descriptor_limit().map_or(u64::MAX, |limit| number(limit.rlim_cur));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub((limit / 16).max(32)).max(1)
}

/// How many threads a process may start for connections, so that it does not run out of memory
/// mappings: a thread takes up to four (its stack and its signal stack, each with a guard page), and
/// Rust aborts the process if it cannot map the second of them. An eighth of `vm.max_map_count`, see
/// [proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html), which is 8,191 by default; without
/// limit where the system has none.
pub(crate) fn threads_of_map_limit() -> usize {
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let maps = maps.ok().and_then(|maps| maps.trim().parse::<usize>().ok());
    match maps {
        Some(maps) => (maps / 8).max(1),
        None if cfg!(target_os = "linux") => 65_530 / 8,
        None => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_other_files() {
        let limit = descriptor_limit().unwrap().rlim_cur;
        assert!((connections_of_descriptor_limit() as u64) < limit);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_threads_take_at_most_half_of_the_mappings() {
        let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        assert!(threads_of_map_limit() * 4 <= maps.trim().parse::<usize>().unwrap() / 2 + 4);
    }
}
