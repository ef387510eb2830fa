//! Searching memory.

/// The index of the first `byte` in `haystack`: memchr(3), which std does not expose.
#[inline]
pub(crate) fn find_byte(haystack: &[u8], byte: u8) -> Option<usize> {
    // The pointer of an empty slice may not be passed to C.
    if haystack.is_empty() {
        return None;
    }
    let start: *const libc::c_void = haystack.as_ptr().cast();
    // SAFETY: `start` is readable for the length of the slice it comes from.
    let found = unsafe { libc::memchr(start, byte.into(), haystack.len()) };
    (!found.is_null()).then(|| found.addr() - start.addr())
}
