//! An allocator that records how much memory the process has, and the most that it has had. It counts every
//! buffer of the server, which the resident set size of a process does not show exactly.

#![allow(unreachable_pub)] // a module of a test is public to nobody
#![allow(unsafe_code)] // an allocator cannot be written without

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, SeqCst) + bytes;
    PEAK.fetch_max(live, SeqCst);
}

// SAFETY: the allocator of the system does the work, and nothing here allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the bytes are moved.
        add(size);
        // SAFETY: the caller keeps the contract.
        let moved = unsafe { System.realloc(memory, layout, size) };
        LIVE.fetch_sub(layout.size(), SeqCst);
        moved
    }
}

/// A measurement of the memory of the whole process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heap {
    live: usize,
}

impl Heap {
    /// Begins a measurement; another one that is under way ends.
    pub fn measure() -> Self {
        let live = LIVE.load(SeqCst);
        PEAK.store(live, SeqCst);
        Heap { live }
    }

    /// The most bytes that were allocated since, beside those at the beginning.
    pub fn grown_by(self) -> usize {
        PEAK.load(SeqCst).saturating_sub(self.live)
    }
}
