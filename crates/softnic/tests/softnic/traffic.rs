//! Frames between functions, and the features that change how they travel.

use std::time::{Duration, Instant};

use retrovf_pci::QueueIndex;
use retrovf_softnic::{Config, SoftNic};
use retrovf_spec::virtio::feature;

use crate::driver::{eventually, fired, nic, readable, settle, writable, Dut, Queue, FEATURES};
use crate::frames::{frame, Net, BROADCAST};

const MRG: u64 = 1 << feature::NET_MRG_RXBUF;
const EVENT_IDX: u64 = 1 << feature::RING_EVENT_IDX;
const INDIRECT: u64 = 1 << feature::RING_INDIRECT_DESC;
const CTRL: u64 =
    1 << feature::NET_CTRL_VQ | 1 << feature::NET_CTRL_RX | 1 << feature::NET_CTRL_MAC_ADDR;
const MQ: u64 = 1 << feature::NET_MQ;

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

fn vfs(count: u16) -> SoftNic {
    nic(Config {
        vfs: count,
        queue_size: 64,
        ..Config::default()
    })
}

/// A function under a modern driver, with its receive buffers offered.
fn modern(dut: &Dut, features: u64, buffers: (u16, usize)) -> Net<'_> {
    assert!(dut.negotiate(FEATURES | features));
    let rings = (dut.modern_queue(0, 64), dut.modern_queue(1, 64));
    dut.set_status(15);
    Net::new(dut, dut.bell(), rings, 12, buffers)
}

#[test]
fn frames_pass_between_vfs_and_the_pf_unchanged() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let pf = Dut::open(&nic, nic.owner());
    // Opening the PF resets the VFs: bus mastering has to be switched on again.
    a.master(true);
    b.master(true);
    let mut a = modern(&a, 0, (16, 2048));
    let mut b = modern(&b, 0, (16, 2048));
    let mut pf = modern(&pf, 0, (16, 2048));
    let hello = frame(BROADCAST, A, 60);
    a.send(&hello);
    assert_eq!(b.receive(), hello);
    assert_eq!(pf.receive(), hello);
    for len in [14, 60, 1000, 1514] {
        let reply = frame(A, B, len);
        b.send(&reply);
        assert_eq!(a.receive(), reply);
    }
    settle();
    assert_eq!(pf.try_receive(), None);
}

#[test]
fn a_frame_too_short_or_too_long_is_dropped_and_its_buffer_given_back() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, 0, (16, 2048));
    let mut b = modern(&b, 0, (4, 2048));
    a.send(&frame(BROADCAST, A, 14)[..13]);
    a.send(&frame(BROADCAST, A, 65551));
    // Longer than any receive buffer of the other side, which merges none.
    a.send(&frame(BROADCAST, A, 2048));
    a.send(&frame(BROADCAST, A, 2036));
    assert_eq!(b.receive().len(), 2036);
    assert_eq!(
        (nic.stats()[1].tx_frames, nic.stats()[1].tx_dropped),
        (2, 2)
    );
    assert_eq!(nic.stats()[2].rx_dropped, 1);
}

#[test]
fn receive_buffers_are_merged_for_a_long_frame() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, 0, (4, 2048));
    let mut b = modern(&b, MRG, (32, 512));
    for len in [14, 500, 501, 1514, 9000, 15000] {
        let long = frame(BROADCAST, A, len);
        a.send(&long);
        assert_eq!(b.receive(), long, "{len} bytes");
    }
}

#[test]
fn a_frame_waits_for_enough_merged_buffers() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, 0, (4, 2048));
    let mut b = modern(&b, MRG | EVENT_IDX, (3, 512));
    let long = frame(BROADCAST, A, 1800);
    a.send(&long);
    settle();
    assert_eq!(b.try_receive(), None);
    let extra = b.dut.alloc(4096);
    b.rx.add(b.dut, &[writable(extra, 512)]);
    b.notify_rx();
    let (heads, lengths): (Vec<_>, Vec<_>) = (0..4).map(|_| b.rx.wait(b.dut)).unzip();
    assert_eq!(heads, [0, 1, 2, 3]);
    assert_eq!(lengths, [512, 512, 512, 12 + 1800 - 3 * 512]);
}

#[test]
fn any_layout_of_header_and_frame_will_do() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, INDIRECT, (4, 2048));
    let mut b = modern(&b, 0, (8, 2048));
    let sent = frame(BROADCAST, A, 700);
    let at = a.dut.alloc(4096);
    let table = a.dut.alloc(4096);
    a.dut.put(at, &[0; 12]);
    a.dut.put(at + 12, &sent);
    let layouts: [&[usize]; 4] = [&[712], &[5, 7, 700], &[20, 692], &[12, 1, 1, 698]];
    for cuts in layouts {
        let mut offset = 0;
        let mut runs = Vec::new();
        for &len in cuts {
            runs.push(readable(at + offset, len));
            offset += len as u64;
        }
        for indirect in [false, true] {
            if indirect {
                a.tx.add_indirect(a.dut, table, &runs);
            } else {
                a.tx.add(a.dut, &runs);
            }
            a.bell.ring(QueueIndex(1));
            a.tx.wait(a.dut);
            assert_eq!(b.receive(), sent, "{cuts:?}, indirect {indirect}");
        }
    }
}

#[test]
fn event_idx_suppresses_interrupts_until_the_index_asked_for() {
    let nic = vfs(1);
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(2);
    let mut net = modern(&dut, EVENT_IDX, (4, 2048));
    let used_event = net.tx.used_event();
    let avail_event = net.tx.avail_event();
    net.send(&frame(BROADCAST, A, 60));
    eventually("the first interrupt", || {
        (fired(&fds[1]) == 1).then_some(())
    });
    // Far enough for the 16-bit indexes to wrap.
    let mut index = 1u16;
    dut.store(used_event, 3);
    let mut interrupts = 0;
    for _ in 0..70_000 / 8 {
        for _ in 0..8 {
            net.queue(&frame(BROADCAST, A, 60));
        }
        net.bell.ring(QueueIndex(1));
        for _ in 0..8 {
            net.tx.wait(&dut);
        }
        let before = index;
        index = index.wrapping_add(8);
        // The device's own wish is up to date once it rests.
        eventually("avail_event", || {
            (dut.load(avail_event) == index).then_some(())
        });
        let event = dut.load(used_event);
        if index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(before) {
            eventually("an interrupt", || (fired(&fds[1]) > 0).then_some(()));
            interrupts += 1;
            dut.store(used_event, index.wrapping_add(20));
        } else {
            assert_eq!(fired(&fds[1]), 0, "at {index}");
        }
    }
    assert!(interrupts > 2000);
}

#[test]
fn a_driver_that_goes_on_sending_need_not_notify_and_is_told_once() {
    const ROUNDS: u16 = 200;
    let nic = vfs(1);
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(2);
    let mut net = modern(&dut, EVENT_IDX, (4, 2048));
    let used_event = net.tx.used_event();
    let avail_event = net.tx.avail_event();
    let sent = frame(BROADCAST, A, 60);
    let (mut unasked, mut interrupts) = (0, 0);
    for round in 0..ROUNDS {
        let index = 2 * round;
        dut.store(used_event, index);
        net.queue(&sent);
        net.bell.ring(QueueIndex(1));
        while net.tx.used(&dut).is_none() {
            std::thread::yield_now();
        }
        // Another frame, as soon as a guest has one.
        let soon = Instant::now() + Duration::from_micros(50);
        while Instant::now() < soon {
            std::hint::spin_loop();
        }
        dut.store(used_event, index + 1);
        net.queue(&sent);
        if dut.load(avail_event) == index + 1 {
            net.bell.ring(QueueIndex(1));
        } else {
            unasked += 1;
        }
        net.tx.wait(&dut);
        // A driver that sends no more is told, and asked to notify again.
        eventually("avail_event", || {
            (dut.load(avail_event) == index + 2).then_some(())
        });
        eventually("an interrupt", || {
            interrupts += fired(&fds[1]);
            (interrupts > u64::from(round)).then_some(())
        });
    }
    assert!(unasked > ROUNDS / 10, "{unasked} of {ROUNDS} unasked");
    let most = u64::from(2 * ROUNDS - ROUNDS / 10);
    assert!(interrupts < most, "{interrupts} interrupts");
}

#[test]
fn the_no_interrupt_flag_is_honoured() {
    let nic = vfs(1);
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(2);
    let mut net = modern(&dut, 0, (4, 2048));
    net.send(&frame(BROADCAST, A, 60));
    eventually("an interrupt", || (fired(&fds[1]) > 0).then_some(()));
    dut.store(net.tx.avail, 1);
    net.send(&frame(BROADCAST, A, 60));
    settle();
    assert_eq!(fired(&fds[1]), 0);
    dut.store(net.tx.avail, 0);
    net.send(&frame(BROADCAST, A, 60));
    eventually("an interrupt", || (fired(&fds[1]) > 0).then_some(()));
}

#[test]
fn without_bus_mastering_nothing_moves_and_with_it_everything_that_waited_does() {
    let nic = vfs(1);
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(2);
    let mut net = modern(&dut, 0, (4, 2048));
    dut.master(false);
    let before = dut.get(net.tx.used, 64);
    net.queue(&frame(BROADCAST, A, 60));
    net.bell.ring(QueueIndex(1));
    settle();
    assert_eq!(dut.get(net.tx.used, 64), before);
    assert_eq!(fired(&fds[1]), 0);
    // No notification this time: switching it on looks at all queues.
    dut.master(true);
    net.tx.wait(&dut);
    eventually("an interrupt", || (fired(&fds[1]) > 0).then_some(()));
}

#[test]
fn a_modern_queue_waits_for_driver_ok() {
    let nic = vfs(1);
    let dut = Dut::open(&nic, nic.members()[0]);
    assert!(dut.negotiate(FEATURES));
    let mut tx = dut.modern_queue(1, 64);
    let at = dut.alloc(4096);
    tx.add(&dut, &[readable(at, 80)]);
    dut.notify(1);
    settle();
    assert_eq!(tx.used(&dut), None);
    dut.set_status(15);
    tx.wait(&dut);
}

/// Sends a control command; returns its acknowledgement.
fn control(dut: &Dut, queue: &mut Queue, command: &[u8]) -> u8 {
    let at = dut.alloc(4096 * 2);
    dut.put(at, command);
    let cut = command.len().min(2);
    let mut runs = vec![readable(at, cut)];
    if command.len() > cut {
        runs.push(readable(at + cut as u64, command.len() - cut));
    }
    runs.push(writable(at + 4096, 1));
    dut.put(at + 4096, &[0xee]);
    queue.add(dut, &runs);
    dut.notify(queue.index);
    assert_eq!(queue.wait(dut).1, 1);
    dut.get(at + 4096, 1)[0]
}

#[test]
fn the_receive_filter_follows_control_commands() {
    let nic = vfs(2);
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, 0, (4, 2048));
    assert!(b.negotiate(FEATURES | CTRL));
    let rings = (b.modern_queue(0, 64), b.modern_queue(1, 64));
    let mut ctrl = b.modern_queue(2, 64);
    b.set_status(15);
    let mut net = Net::new(&b, b.bell(), rings, 12, (16, 2048));
    let group = [1, 0, 0x5e, 0, 0, 1];
    let other = [2, 0, 0, 0, 0, 0xc];
    let mut arrives = |net: &mut Net<'_>, to| {
        let sent = frame(to, A, 60);
        a.send(&sent);
        // A broadcast behind it says that the first would have arrived.
        let end = frame(BROADCAST, A, 99);
        a.send(&end);
        match net.receive() {
            first if first == end => false,
            first => {
                assert_eq!(first, sent);
                assert_eq!(net.receive(), end);
                true
            }
        }
    };
    assert!(arrives(&mut net, other) && arrives(&mut net, group));
    assert_eq!(control(&b, &mut ctrl, &[0, 0, 0]), 0);
    assert!(!arrives(&mut net, other) && !arrives(&mut net, group));
    assert_eq!(control(&b, &mut ctrl, &[0, 1, 1]), 0);
    assert!(!arrives(&mut net, other) && arrives(&mut net, group));
    assert_eq!(control(&b, &mut ctrl, &[0, 1, 0]), 0);
    let table = [&[1, 0, 1, 0, 0, 0], &other[..], &[1, 0, 0, 0], &group].concat();
    assert_eq!(control(&b, &mut ctrl, &table), 0);
    assert!(arrives(&mut net, other) && arrives(&mut net, group) && !arrives(&mut net, B));
    assert_eq!(control(&b, &mut ctrl, &[&[1, 1], &B[..]].concat()), 0);
    assert!(arrives(&mut net, B));
    // Truncated, oversized in words only, unknown.
    let huge = [1, 0, 0xff, 0xff, 0xff, 0xff];
    for bad in [
        &[0][..],
        &[0, 0],
        &[1, 1, 2],
        &huge,
        &[9, 9, 9],
        &[4, 0, 1, 0, 0][..3],
    ] {
        assert_eq!(control(&b, &mut ctrl, bad), 1, "{bad:?}");
    }
    assert!(arrives(&mut net, B));
}

#[test]
fn multiqueue_spreads_flows_over_the_pairs_in_use() {
    let nic = nic(Config {
        vfs: 2,
        queue_pairs: 4,
        queue_size: 64,
        ..Config::default()
    });
    let members = nic.members();
    let (a, b) = (Dut::open(&nic, members[0]), Dut::open(&nic, members[1]));
    let mut a = modern(&a, 0, (4, 2048));
    assert!(b.negotiate(FEATURES | CTRL | MQ));
    let mut rings: Vec<Queue> = (0..8).map(|i| b.modern_queue(i, 64)).collect();
    let mut ctrl = b.modern_queue(8, 64);
    b.set_status(15);
    let buffers = b.alloc(64 * 4096);
    for pair in 0..4u64 {
        for i in 0..16 {
            let at = buffers + (pair * 16 + i) * 4096;
            rings[2 * pair as usize].add(&b, &[writable(at, 2048)]);
        }
        b.notify(2 * pair as u16);
    }
    assert_eq!(control(&b, &mut ctrl, &[4, 0, 0, 0]), 1);
    assert_eq!(control(&b, &mut ctrl, &[4, 0, 5, 0]), 1);
    let mut received = |count: u8| {
        let mut pairs = [0; 4];
        for n in 0..count {
            a.send(&frame(BROADCAST, [2, 0, 0, 0, 1, n], 60));
        }
        eventually("the frames", || {
            for (pair, total) in pairs.iter_mut().enumerate() {
                *total += std::iter::from_fn(|| rings[2 * pair].used(&b)).count();
            }
            (pairs.iter().sum::<usize>() == usize::from(count)).then_some(())
        });
        pairs
    };
    assert_eq!(received(8), [8, 0, 0, 0]);
    assert_eq!(control(&b, &mut ctrl, &[4, 0, 4, 0]), 0);
    let spread = received(8);
    assert!(spread.iter().filter(|&&n| n > 0).count() > 1, "{spread:?}");
}

#[test]
fn a_vf_that_takes_no_frames_stops_nobody_else() {
    let nic = vfs(3);
    let members = nic.members();
    let duts: Vec<Dut> = members.iter().map(|&bdf| Dut::open(&nic, bdf)).collect();
    let mut a = modern(&duts[0], 0, (4, 2048));
    // No receive buffer at all, and one with plenty.
    let _stalled = modern(&duts[1], 0, (0, 2048));
    let mut c = modern(&duts[2], 0, (16, 2048));
    for i in 0..1500u16 {
        a.send(&frame(BROADCAST, A, 60 + usize::from(i % 100)));
        assert_eq!(c.receive().len(), 60 + usize::from(i % 100));
    }
    let stats = nic.stats();
    assert_eq!(stats[2].rx_dropped, 1500 - 1024);
    assert_eq!(stats[3].rx_dropped, 0);
}
