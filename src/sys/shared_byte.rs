//! A byte that a process shares with the children that it forks.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::sync::AtomicU8;

/// One byte of shared memory, which is 0 at first: a forked child has the same byte, and not a copy.
/// See [mmap(2)](https://man7.org/linux/man-pages/man2/mmap.2.html), `MAP_SHARED | MAP_ANONYMOUS`.
#[derive(Debug)]
pub(crate) struct SharedByte(NonNull<AtomicU8>);

impl SharedByte {
    pub(crate) fn new() -> io::Result<Self> {
        if cfg!(all(test, socketserver_loom)) {
            return Err(io::ErrorKind::Unsupported.into()); // zeros are not a modelled atomic
        }
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: without an address, mmap places a new mapping where there is none.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<AtomicU8>(), access, kind, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(SharedByte)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

// SAFETY: it owns the mapping, as a box owns its memory, and any thread may unmap it.
unsafe impl Send for SharedByte {}

// SAFETY: a shared reference gives access only to an atomic.
unsafe impl Sync for SharedByte {}

impl Deref for SharedByte {
    type Target = AtomicU8;

    fn deref(&self) -> &AtomicU8 {
        // SAFETY: the mapping is readable and writable until this is dropped, and its zeros are a
        // valid AtomicU8. Other processes change the byte only by atomic operations.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedByte {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference to it is left. It fails only for an
        // address that is not one of a page.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<AtomicU8>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn a_shared_byte_is_0_at_first_and_keeps_what_is_stored() {
        let byte = SharedByte::new().unwrap();
        assert_eq!(byte.load(SeqCst), 0);
        byte.store(7, SeqCst);
        assert_eq!(byte.load(SeqCst), 7);
    }
}
