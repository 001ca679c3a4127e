//! A kick costs no allocation, neither in the server nor in the client.
#![expect(unsafe_code, reason = "a global allocator that counts")]

#[path = "conformance/fixture.rs"]
#[expect(dead_code, reason = "the conformance tests use the rest")]
mod fixture;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixture::{socket_path, Recorder};
use retrovf_pci::{Doorbell, NotifyTarget, QueueIndex};
use retrovf_vfio_user::{
    Client, ClientOptions, ControlAccess, ControlPlane, DeviceConfig, ServedDevice, Server,
    ServerOptions,
};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Rings(AtomicUsize);

impl Doorbell for Rings {
    fn ring(&self, _: QueueIndex) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Nobody;

impl ControlPlane for Nobody {
    fn access(&self, access: ControlAccess) {
        panic!("{access:?} is no kick");
    }
}

#[test]
fn a_kick_is_rung_without_an_allocation_or_the_control_plane() {
    let rings = Arc::new(Rings(AtomicUsize::new(0)));
    let config = DeviceConfig {
        member: Recorder::new(),
        overlay: Vec::new(),
        config_size: 256,
        msix_capability: None,
        bar0_size: Some(32),
        notify: Some(NotifyTarget::device(rings.clone())),
        queues: 2,
    };
    let device = ServedDevice::new(config, Arc::new(Nobody)).unwrap();
    let options = ServerOptions::new(socket_path());
    let path = options.path.clone();
    let server = Server::start(device, options, Arc::new(|_| {})).unwrap();
    let mut client = Client::connect(&path, ClientOptions::default()).unwrap();
    let mut kick = || {
        let start = Instant::now();
        client.region_write(0, 16, &[1, 0]).unwrap();
        start.elapsed()
    };
    for _ in 0..100 {
        kick();
    }
    let mut times = vec![Duration::ZERO; 10_000];
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    times.fill_with(kick);
    let after = ALLOCATIONS.load(Ordering::SeqCst);
    assert_eq!(after - before, 0, "allocations in 10000 kicks");
    assert_eq!(rings.0.load(Ordering::SeqCst), 10_100);
    times.sort();
    println!("median {:?}, 99 % {:?}", times[5_000], times[9_900]);
    server.close().unwrap();
}
