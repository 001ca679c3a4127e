//! A kick allocates nothing. Alone in its file: the allocator counts for the whole process.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use retrovf_doorbell::Engine;
use retrovf_pci::{MappedWord, NotifyTarget, QueueIndex, SharedMemory};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn kicks_allocate_nothing() {
    let engine = Engine::new().unwrap();
    let bar = SharedMemory::anonymous(4096).unwrap();
    let word = Arc::new(MappedWord::map(bar.fd(), 0).unwrap());
    let kicks = Arc::new(AtomicU64::new(0));
    let target = NotifyTarget::word(word);
    let forward = engine
        .forward(target, QueueIndex(1), Arc::clone(&kicks))
        .unwrap();
    let rounds = |count: u64| {
        for _ in 0..count {
            let before = kicks.load(Ordering::Relaxed);
            rustix::io::write(forward.fd(), &1u64.to_ne_bytes()).unwrap();
            while kicks.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
        }
    };
    rounds(10);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    rounds(5000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
