//! Drivers that break the rules, and memory that goes away.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use retrovf_pci::{DmaAccess, DmaBacking, DmaMapping, Error, QueueIndex, RemoteMemory};
use retrovf_softnic::{Config, SoftNic};
use retrovf_spec::{legacy, virtio};

use crate::driver::{eventually, fired, nic, readable, settle, writable, Dut, Owner, Queue, Run};
use crate::driver::{BASE, FEATURES, MEMORY};
use crate::frames::{frame, Net, BROADCAST};

fn one_vf() -> SoftNic {
    nic(Config {
        vfs: 1,
        queue_size: 64,
        ..Config::default()
    })
}

/// Breaks the transmit ring and expects the device to say so, and to work again after a reset.
fn breaks(damage: impl FnOnce(&Dut, &mut Queue)) {
    let nic = one_vf();
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(3);
    assert!(dut.negotiate(FEATURES));
    let vector = 2u16.to_le_bytes();
    dut.common_write(virtio::common::CONFIG_MSIX_VECTOR, &vector);
    let mut tx = dut.modern_queue(1, 64);
    dut.set_status(15);
    damage(&dut, &mut tx);
    dut.notify(1);
    eventually("NEEDS_RESET", || needs_reset(&dut).then_some(()));
    eventually("a config interrupt", || (fired(&fds[2]) > 0).then_some(()));
    assert_eq!(nic.stats()[1].bad_rings, 1);
    dut.notify(1);
    settle();
    assert_eq!(nic.stats()[1].bad_rings, 1);
    let mut net = modern(&dut);
    net.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 2], 60));
}

fn needs_reset(dut: &Dut) -> bool {
    dut.status() & virtio::status::NEEDS_RESET != 0
}

fn modern(dut: &Dut) -> Net<'_> {
    assert!(dut.negotiate(FEATURES));
    let rings = (dut.modern_queue(0, 64), dut.modern_queue(1, 64));
    dut.set_status(15);
    Net::new(dut, dut.bell(), rings, 12, (8, 2048))
}

#[test]
fn a_descriptor_loop_stops_the_device() {
    breaks(|dut, tx| {
        tx.descriptor(dut, 0, readable(BASE, 16), 1, 1);
        tx.descriptor(dut, 1, readable(BASE, 16), 1, 0);
        tx.offer(dut, 0);
    });
}

#[test]
fn an_index_out_of_range_stops_the_device() {
    breaks(|dut, tx| tx.offer(dut, 64));
}

#[test]
fn a_next_out_of_range_stops_the_device() {
    breaks(|dut, tx| {
        tx.descriptor(dut, 0, readable(BASE, 16), 1, 64);
        tx.offer(dut, 0);
    });
}

#[test]
fn an_available_index_that_runs_ahead_stops_the_device() {
    breaks(|dut, tx| dut.store(tx.avail + 2, 65));
}

#[test]
fn an_unmapped_buffer_stops_the_device() {
    breaks(|dut, tx| {
        tx.add(dut, &[readable(BASE + MEMORY, 80)]);
    });
}

#[test]
fn a_buffer_that_wraps_the_address_space_stops_the_device() {
    breaks(|dut, tx| {
        tx.add(dut, &[readable(u64::MAX - 20, 80)]);
    });
}

#[test]
fn indirect_descriptors_that_were_not_negotiated_stop_the_device() {
    breaks(|dut, tx| {
        let table = dut.alloc(4096);
        tx.add_indirect(dut, table, &[readable(BASE, 80)]);
    });
}

#[test]
fn a_legacy_device_stops_without_a_status_bit_that_its_driver_would_not_know() {
    let nic = one_vf();
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    let mut tx = vf.queue(&dut, 1);
    vf.write(legacy::STATUS, &[7]);
    tx.offer(&dut, 999);
    vf.bell(&dut).ring(QueueIndex(1));
    eventually("the stop", || (nic.stats()[1].bad_rings == 1).then_some(()));
    assert_eq!(vf.read(legacy::STATUS, 1), 7);
    vf.write(legacy::STATUS, &[0]);
    let mut tx = vf.queue(&dut, 1);
    tx.add(&dut, &[readable(BASE, 80)]);
    vf.bell(&dut).ring(QueueIndex(1));
    tx.wait(&dut);
}

#[test]
fn a_bad_admin_ring_stops_the_owner_and_not_the_members() {
    let nic = one_vf();
    let owner = Owner::ready(&nic);
    let vf = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&vf);
    // An index far ahead.
    let dut = &owner.dut;
    dut.common_write(virtio::common::QUEUE_SELECT, &3u16.to_le_bytes());
    let avail = u64::from_le_bytes(dut.common_read(virtio::common::QUEUE_DRIVER));
    dut.store(avail + 2, 0x7000);
    dut.notify(3);
    eventually("NEEDS_RESET", || (dut.status() & 64 != 0).then_some(()));
    net.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 1], 60));
}

#[test]
fn notifications_of_queues_that_do_not_exist_are_ignored() {
    let nic = one_vf();
    let dut = Dut::open(&nic, nic.members()[0]);
    let bell = dut.bell();
    for queue in [3, 64, 128, 191, 192, u16::MAX] {
        bell.ring(QueueIndex(queue));
    }
    settle();
    assert_eq!(nic.stats()[1].kicks, 0);
}

#[test]
fn unmapping_under_a_busy_device_stops_its_accesses_and_breaks_nothing_else() {
    let nic = nic(Config {
        vfs: 2,
        queue_size: 64,
        ..Config::default()
    });
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut b = modern(&b);
    for _ in 0..20 {
        let mut net = modern(&a);
        for _ in 0..30 {
            net.queue(&frame(BROADCAST, [2, 0, 0, 0, 0, 1], 60));
        }
        net.bell.ring(QueueIndex(1));
        assert_eq!(a.function.dma_unmap(BASE, MEMORY).unwrap(), MEMORY);
        let used = a.get(net.tx.used, 64);
        settle();
        assert_eq!(a.get(net.tx.used, 64), used);
        a.set_status(0);
        map(
            &a,
            0,
            MEMORY,
            DmaBacking::Shared {
                memory: Arc::clone(&a.memory),
                offset: 0,
            },
        );
        a.rewind();
    }
    b.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 2], 60));
}

fn map(dut: &Dut, offset: u64, size: u64, backing: DmaBacking) {
    let mapping = DmaMapping {
        size,
        access: DmaAccess::READ_WRITE,
        backing,
    };
    dut.function.dma_map(BASE + offset, mapping).unwrap();
}

/// A peer that never answers.
#[derive(Default)]
struct Mute {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Mute {
    fn wait(&self, address: u64, len: usize, cancel: &AtomicBool) -> Result<(), Error> {
        self.waiting.fetch_add(1, SeqCst);
        let mut guard = self.lock.lock().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !cancel.load(SeqCst) && Instant::now() < end {
            let wait = self.changed.wait_timeout(guard, Duration::from_secs(1));
            guard = wait.unwrap().0;
        }
        self.waiting.fetch_sub(1, SeqCst);
        Err(Error::DmaFault {
            iova: address,
            len: len as u64,
        })
    }
}

impl RemoteMemory for Mute {
    fn read(&self, address: u64, out: &mut [u8], cancel: &AtomicBool) -> Result<(), Error> {
        self.wait(address, out.len(), cancel)
    }

    fn write(&self, address: u64, data: &[u8], cancel: &AtomicBool) -> Result<(), Error> {
        self.wait(address, data.len(), cancel)
    }

    fn wake(&self) {
        let _guard = self.lock.lock().unwrap();
        self.changed.notify_all();
    }
}

/// A VF whose worker waits for a peer's memory under a transmit buffer.
fn stuck<'a>(nic: &SoftNic, owner: &'a Owner) -> (Dut, Arc<Mute>, crate::driver::Legacy<'a>) {
    let dut = Dut::open(nic, nic.members()[0]);
    let mute = Arc::new(Mute::default());
    map(
        &dut,
        MEMORY,
        4096,
        DmaBacking::Remote(Arc::clone(&mute) as _),
    );
    let vf = owner.legacy(1);
    let mut tx = vf.queue(&dut, 1);
    tx.add(&dut, &[readable(BASE + MEMORY, 80)]);
    vf.bell(&dut).ring(QueueIndex(1));
    eventually("the access", || {
        (mute.waiting.load(SeqCst) > 0).then_some(())
    });
    (dut, mute, vf)
}

#[test]
fn registers_and_resets_do_not_wait_for_a_peer_that_does_not_answer() {
    let nic = one_vf();
    let owner = Owner::ready(&nic);
    let (dut, mute, vf) = stuck(&nic, &owner);
    let start = Instant::now();
    assert_eq!(vf.read(legacy::STATUS, 1), 0);
    vf.write(legacy::STATUS, &[3]);
    // Another queue comes and goes; the device takes up the stuck one again.
    vf.queue(&dut, 0);
    vf.write(legacy::QUEUE_SELECT, &[0, 0]);
    vf.write(legacy::QUEUE_PFN, &[0; 4]);
    eventually("the access", || {
        (mute.waiting.load(SeqCst) > 0).then_some(())
    });
    assert_eq!(nic.stats()[1].bad_rings, 0);
    vf.write(legacy::STATUS, &[0]);
    assert_eq!(mute.waiting.load(SeqCst), 0);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn switching_bus_mastering_off_and_closing_do_not_wait_for_such_a_peer_either() {
    let nic = one_vf();
    let owner = Owner::ready(&nic);
    let start = Instant::now();
    let (dut, mute, _) = stuck(&nic, &owner);
    dut.master(false);
    assert_eq!(mute.waiting.load(SeqCst), 0);
    dut.master(true);
    eventually("the access", || {
        (mute.waiting.load(SeqCst) > 0).then_some(())
    });
    drop(dut);
    assert_eq!(mute.waiting.load(SeqCst), 0);
    let (dut, mute, _) = stuck(&nic, &owner);
    dut.function.reset().unwrap();
    assert_eq!(mute.waiting.load(SeqCst), 0);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Offers a receive buffer that no frame can go into.
fn refuses(buffer: Run) {
    let nic = nic(Config {
        vfs: 2,
        queue_size: 64,
        ..Config::default()
    });
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a);
    assert!(b.negotiate(FEATURES | 1 << virtio::feature::NET_MRG_RXBUF));
    let mut rx = b.modern_queue(0, 64);
    b.set_status(15);
    for _ in 0..64 {
        rx.add(&b, &[buffer]);
    }
    a.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 1], 60));
    eventually("NEEDS_RESET", || needs_reset(&b).then_some(()));
    assert_eq!(nic.stats()[2].bad_rings, 1);
}

#[test]
fn receive_buffers_of_no_length_stop_the_device() {
    refuses(writable(BASE, 0));
}

#[test]
fn a_receive_buffer_that_cannot_be_written_stops_the_device() {
    refuses(readable(BASE, 2048));
}
