//! REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: configuration space, memory BARs, BAR0.

use retrovf_vfio_user::wire::*;

use crate::fixture::{errno, message, Rig, Setup, BAR4_SIZE, EXPRESS, MSIX};

#[test]
fn any_read_of_configuration_space_agrees_with_one_of_the_whole() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let mut whole = [0; 256];
    client.region_read(7, 0, &mut whole).unwrap();
    assert_eq!(whole[0..6], [0xf4, 0x1a, 0x00, 0x10, 7, 0]);
    for width in [1, 2, 4, 8] {
        for at in 0..=256 - width {
            let mut part = vec![0; width];
            client.region_read(7, at as u64, &mut part).unwrap();
            assert_eq!(part, whole[at..at + width], "{width} bytes at {at:#x}");
        }
    }
}

#[test]
fn the_overlays_bits_stay_here_and_the_rest_goes_to_the_function() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    assert!(rig.device.io_enabled());
    assert_eq!(rig.recorder.command(), 6);
    client.region_write(7, 0x10, &[0xff; 4]).unwrap();
    let mut bar = [0; 4];
    client.region_read(7, 0x10, &mut bar).unwrap();
    assert_eq!(u32::from_le_bytes(bar), 0xffff_ffe1);
    assert_eq!(rig.recorder.config.lock().unwrap()[0x10..0x14], [0; 4]);
}

#[test]
fn msix_enable_arrives_as_a_config_write_and_moves_the_device_registers() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    assert!(!rig.device.msix_enabled());
    client
        .region_write(7, u64::from(MSIX) + 2, &[0, 0x80])
        .unwrap();
    assert!(rig.device.msix_enabled());
}

#[test]
fn a_reset_that_the_guest_starts_takes_the_guests_bits_as_any_reset() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let msix = u64::from(MSIX) + 2;
    client.region_write(7, msix, &[0, 0x80]).unwrap();
    let control = EXPRESS as u64 + 8;
    client.region_write(7, control, &[0xff, 0x7f]).unwrap();
    assert!(rig.device.io_enabled() && rig.device.msix_enabled());
    client.region_write(7, control, &[0, 0x80]).unwrap();
    assert!(!rig.device.io_enabled() && !rig.device.msix_enabled());
}

#[test]
fn accesses_outside_a_region_are_refused_whatever_the_arithmetic() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for (region, offset, len) in [
        (7, 255, 2),
        (7, 256, 1),
        (7, u64::MAX, 1),
        (7, u64::MAX - 1, 4),
        (0, 31, 2),
        (0, 32, 1),
        (0, u64::MAX, 1),
        (0, 0, 33),
        (4, BAR4_SIZE - 1, 2),
        (4, u64::MAX, 2),
        (1, 0, 1),
        (6, 0, 4),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        let read = client.region_read(region, offset, &mut vec![0; len]);
        assert_eq!(errno(read), libc::EINVAL, "read {region} {offset:#x} {len}");
        let write = client.region_write(region, offset, &vec![0; len]);
        assert_eq!(
            errno(write),
            libc::EINVAL,
            "write {region} {offset:#x} {len}"
        );
    }
    assert!(rig.plane.1.lock().unwrap().is_empty());
}

#[test]
fn a_count_beyond_the_limit_or_beside_the_data_is_refused_before_anything_is_allocated() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for count in [(MAX_DATA + 1) as u32, u32::MAX] {
        let access = RegionAccess {
            offset: 0,
            region: 4,
            count,
        };
        let bytes = message(5, Command::REGION_READ, 0, &access.encode());
        client.send_raw(&bytes, &[]).unwrap();
        assert_eq!(
            client.receive_raw().unwrap().header.error,
            libc::EINVAL as u32
        );
    }
    for count in [1, 3, u32::MAX] {
        let access = RegionAccess {
            offset: 16,
            region: 0,
            count,
        };
        let payload = [&access.encode()[..], &[1, 0]].concat();
        let bytes = message(5, Command::REGION_WRITE, 0, &payload);
        client.send_raw(&bytes, &[]).unwrap();
        assert_eq!(
            client.receive_raw().unwrap().header.error,
            libc::EINVAL as u32
        );
    }
    assert!(rig.kicks().is_empty());
}

#[test]
fn memory_bars_are_the_functions_and_posted_writes_are_not_answered() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.region_write(4, 0x100, b"abcdefgh").unwrap();
    client.region_write_posted(4, 0x104, b"EFGH").unwrap();
    // Out of range, and nobody to tell.
    client.region_write_posted(4, BAR4_SIZE, b"x").unwrap();
    let mut out = [0; 8];
    client.region_read(4, 0x100, &mut out).unwrap();
    assert_eq!(&out, b"abcdEFGH");
    let mut all = vec![0; BAR4_SIZE as usize];
    client.region_read(4, 0, &mut all).unwrap();
    assert_eq!(&all[0x100..0x108], b"abcdEFGH");
}

#[test]
fn control_accesses_of_any_width_reach_the_control_plane() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for (offset, len) in [(0, 4), (18, 1), (0, 32), (3, 6), (31, 1)] {
        let mut out = vec![0; len];
        client.region_read(0, offset, &mut out).unwrap();
        let want: Vec<u8> = (offset as u8..).take(len).collect();
        assert_eq!(out, want);
    }
    client.region_write(0, 18, &[1]).unwrap();
    client.region_write_posted(0, 4, &[1, 2, 3, 4]).unwrap();
    client.region_read(0, 0, &mut [0]).unwrap();
    let writes = rig.plane.1.lock().unwrap().clone();
    assert_eq!(writes, [(18, vec![1]), (4, vec![1, 2, 3, 4])]);
    let counters = rig.device.counters();
    assert_eq!((counters.control_reads, counters.control_writes), (6, 2));
    assert_eq!(counters.control_latency.count, 8);
}

#[test]
fn an_access_of_no_bytes_succeeds_and_reaches_nobody() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for region in [0, 4, 7] {
        client.region_read(region, 16, &mut []).unwrap();
        client.region_write(region, 16, &[]).unwrap();
    }
    assert_eq!(rig.device.counters().control_reads, 0);
}

#[test]
fn a_two_byte_write_to_queue_notify_rings_the_device_and_nothing_else_does() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for queue in [0u16, 1, 0x1234] {
        client.region_write(0, 16, &queue.to_le_bytes()).unwrap();
    }
    client.region_write_posted(0, 16, &[7, 0]).unwrap();
    // Not the notify register: one byte of it, two registers at once, a read.
    client.region_write(0, 16, &[9]).unwrap();
    client.region_write(0, 14, &[0, 0, 9, 0]).unwrap();
    client.region_read(0, 16, &mut [0; 2]).unwrap();
    assert_eq!(rig.kicks(), [0, 1, 0x1234, 7]);
    let counters = rig.device.counters();
    assert_eq!(counters.notifies, 4);
    assert_eq!((counters.control_writes, counters.control_reads), (2, 1));
}

#[test]
fn without_a_notify_target_a_kick_is_a_control_access() {
    let rig = Rig::new(Setup {
        notify: false,
        ..Setup::default()
    });
    rig.guest().region_write(0, 16, &[1, 0]).unwrap();
    assert_eq!(rig.plane.1.lock().unwrap()[..], [(16, vec![1, 0])]);
}

#[test]
fn with_io_decoding_off_bar0_reads_all_ones_and_drops_writes() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let mut out = [0; 5];
    client.region_read(0, 0, &mut out).unwrap();
    assert_eq!(out, [0xff; 5]);
    client.region_write(0, 18, &[1]).unwrap();
    client.region_write(0, 16, &[0, 0]).unwrap();
    assert!(rig.kicks().is_empty());
    assert!(rig.plane.1.lock().unwrap().is_empty());
    assert_eq!(rig.device.counters().gated_accesses, 3);
    client.region_write(7, 4, &[1, 0]).unwrap();
    client.region_write(0, 16, &[2, 0]).unwrap();
    assert_eq!(rig.kicks(), [2]);
}

/// A REGION_WRITE_MULTI payload that claims `n` entries.
fn multi(n: u64, writes: &[(u32, u64, &[u8])]) -> Vec<u8> {
    let mut payload = n.to_ne_bytes().to_vec();
    for (region, offset, data) in writes {
        let access = RegionAccess {
            offset: *offset,
            region: *region,
            count: data.len() as u32,
        };
        payload.extend(access.encode());
        payload.extend(data.iter().chain(&[0; 8]).take(8.max(data.len())));
    }
    payload
}

#[test]
fn an_unexpected_write_multi_is_carried_out_in_order() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let writes: &[(u32, u64, &[u8])] = &[
        (4, 0, b"12345678"),
        (0, 16, &[1, 0]),
        (0, 18, &[3]),
        (4, 4, b"ab"),
        (9, 0, &[0]),
        (0, 16, &[2, 0]),
    ];
    let payload = multi(6, writes);
    client
        .send_raw(&message(8, Command::WRITE_MULTI, NO_REPLY, &payload), &[])
        .unwrap();
    client
        .send_raw(&message(9, Command::WRITE_MULTI, 0, &payload), &[])
        .unwrap();
    let reply = client.receive_raw().unwrap();
    assert_eq!((reply.header.id, reply.header.flags), (9, TYPE_REPLY));
    assert_eq!(reply.payload, 6u64.to_ne_bytes());
    let mut out = [0; 8];
    client.region_read(4, 0, &mut out).unwrap();
    assert_eq!(&out, b"1234ab78");
    assert_eq!(rig.kicks(), [1, 2, 1, 2]);
    assert_eq!(
        rig.plane.1.lock().unwrap()[..],
        [(18, vec![3]), (18, vec![3])]
    );
}

#[test]
fn a_write_multi_that_claims_more_than_it_holds_is_refused_whole() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let one: &[(u32, u64, &[u8])] = &[(0, 16, &[1, 0])];
    let long: &[(u32, u64, &[u8])] = &[(0, 16, &[1, 0]), (4, 0, &[0; 9])];
    for payload in [multi(2, one), multi(u64::MAX, one), multi(2, long)] {
        client
            .send_raw(&message(1, Command::WRITE_MULTI, 0, &payload), &[])
            .unwrap();
        assert_eq!(
            client.receive_raw().unwrap().header.error,
            libc::EINVAL as u32
        );
    }
    assert!(rig.kicks().is_empty());
}
