//! Bring-up of the owner and the rules of the admin virtqueue.

use retrovf_pci::Region;
use retrovf_softnic::{Config, NotifyEntries};
use retrovf_spec::admin::{
    GROUP_SELF, LEGACY_COMMON_CFG_READ, LEGACY_COMMON_CFG_WRITE, LEGACY_DEV_CFG_READ,
    LEGACY_DEV_CFG_WRITE, LEGACY_NOTIFY_INFO, LIST_QUERY, LIST_USE, QUALIFIER_INVALID_FIELD,
    QUALIFIER_INVALID_GROUP, QUALIFIER_INVALID_MEMBER, QUALIFIER_INVALID_OPCODE, STATUS_EINVAL,
};
use retrovf_spec::virtio::{common, feature};
use retrovf_spec::{legacy, pci, virtio};

use crate::driver::{fired, nic, settle, Answer, Dut, Owner, FEATURES, OWNER_FEATURES};

fn with_vfs(vfs: u16) -> Config {
    Config {
        vfs,
        ..Config::default()
    }
}

fn refused(answer: &Answer, qualifier: u16) {
    let expected = Answer {
        status: STATUS_EINVAL,
        qualifier,
        data: Vec::new(),
        used: 8,
    };
    assert_eq!(answer, &expected);
}

#[test]
fn the_owner_offers_sr_iov_and_an_admin_queue_behind_the_counted_ones() {
    let nic = nic(Config {
        queue_pairs: 4,
        ..Config::default()
    });
    let dut = Dut::open(&nic, nic.owner());
    assert_eq!(dut.features() & OWNER_FEATURES, OWNER_FEATURES);
    assert_eq!(Owner::admin_queues(&dut), [0, 0]);
    assert!(dut.negotiate(OWNER_FEATURES));
    assert_eq!(Owner::admin_queues(&dut), [9, 1]);
    assert_eq!(dut.common_read::<2>(common::NUM_QUEUES), [9, 0]);
    assert!(!dut.negotiate(OWNER_FEATURES & !FEATURES));
    assert!(!dut.negotiate(OWNER_FEATURES | 1 << 60));
    let cap = dut.capability(virtio::CFG_COMMON);
    let len = dut.config32(cap + virtio::cap::LENGTH);
    assert_eq!(u64::from(len), common::SIZE);
}

#[test]
fn without_admin_opcodes_there_is_no_admin_queue() {
    let nic = nic(Config {
        admin_opcodes: 0,
        ..Config::default()
    });
    let dut = Dut::open(&nic, nic.owner());
    assert_eq!(dut.features() >> feature::ADMIN_VQ & 1, 0);
    assert!(!dut.negotiate(OWNER_FEATURES));
    assert!(dut.negotiate(FEATURES | 1 << feature::SR_IOV));
    assert_eq!(Owner::admin_queues(&dut), [0, 0]);
}

#[test]
fn ids_are_those_of_modern_functions_and_members_have_no_owner_features() {
    let nic = nic(with_vfs(1));
    for bdf in [nic.owner(), nic.members()[0]] {
        let dut = Dut::open(&nic, bdf);
        assert_eq!(dut.config32(pci::VENDOR_ID), 0x1041_1af4);
        assert_eq!(dut.config32(pci::REVISION_ID) & 0xff, 1);
        assert!(dut.config32(pci::SUBSYSTEM_VENDOR_ID) >> 16 >= 0x40);
        assert_eq!(dut.config32(pci::INTERRUPT_LINE) >> 8 & 0xff, 0);
        assert_eq!(dut.function.region(Region::bar(0)).unwrap().size, 0);
        let owner = dut.features() & (OWNER_FEATURES & !FEATURES);
        assert_eq!(owner != 0, bdf == nic.owner());
    }
}

#[test]
fn list_query_returns_the_offered_opcodes_even_before_vfs_exist() {
    let nic = nic(with_vfs(0));
    let owner = Owner::start(&nic);
    let answer = owner.list(LIST_QUERY, &[], 8);
    assert_eq!(answer.status, 0);
    assert_eq!(
        (answer.data, answer.used),
        (vec![0x7f, 0, 0, 0, 0, 0, 0, 0], 16)
    );
    assert_eq!(owner.list(LIST_USE, &[0x7f], 0).status, 0);
}

#[test]
fn notify_info_is_not_offered_when_the_device_has_no_notify_words() {
    let nic = nic(Config {
        notify: NotifyEntries::None,
        ..Config::default()
    });
    let owner = Owner::start(&nic);
    assert_eq!(owner.list(LIST_QUERY, &[], 8).data[0], 0x3f);
    assert_eq!(owner.list(LIST_USE, &[0x3f], 0).status, 0);
    let answer = owner.command(LEGACY_NOTIFY_INFO, 1, &[], 64);
    refused(&answer, QUALIFIER_INVALID_OPCODE);
}

#[test]
fn only_the_list_commands_are_legal_until_list_use_and_after_every_reset() {
    let nic = nic(with_vfs(1));
    let owner = Owner::start(&nic);
    let read = |owner: &Owner| owner.command(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
    refused(&read(&owner), QUALIFIER_INVALID_OPCODE);
    assert_eq!(owner.list(LIST_USE, &[0x7f], 0).status, 0);
    assert_eq!(read(&owner).status, 0);
    let owner = Owner::bring_up(owner.dut);
    refused(&read(&owner), QUALIFIER_INVALID_OPCODE);
    assert_eq!(owner.list(LIST_USE, &[0x7f], 0).status, 0);
}

#[test]
fn list_use_may_drop_the_list_commands_themselves() {
    let nic = nic(with_vfs(1));
    let owner = Owner::start(&nic);
    assert_eq!(owner.list(LIST_USE, &[0x7c], 0).status, 0);
    refused(&owner.list(LIST_QUERY, &[], 8), QUALIFIER_INVALID_OPCODE);
    refused(&owner.list(LIST_USE, &[0x7f], 0), QUALIFIER_INVALID_OPCODE);
    assert_eq!(owner.command(LEGACY_COMMON_CFG_READ, 1, &[0], 4).status, 0);
}

#[test]
fn list_use_must_be_a_subset_of_list_query_however_long_it_is() {
    let nic = nic(with_vfs(1));
    let owner = Owner::start(&nic);
    refused(&owner.list(LIST_USE, &[0x80], 0), QUALIFIER_INVALID_FIELD);
    let mut long = [0; 24];
    long[0] = 0x7f;
    assert_eq!(owner.list(LIST_USE, &long, 0).status, 0);
    long[23] = 1;
    refused(&owner.list(LIST_USE, &long, 0), QUALIFIER_INVALID_FIELD);
    // The refused lists changed nothing.
    assert_eq!(owner.command(LEGACY_COMMON_CFG_READ, 1, &[0], 4).status, 0);
}

#[test]
fn validation_goes_from_group_type_to_opcode_to_member() {
    let nic = nic(with_vfs(2));
    let owner = Owner::start(&nic);
    let command = |group, opcode, member| owner.command_in(group, opcode, member, &[0], 4);
    refused(&command(GROUP_SELF, 99, 99), QUALIFIER_INVALID_GROUP);
    refused(&command(7, LIST_QUERY, 0), QUALIFIER_INVALID_GROUP);
    for opcode in [LEGACY_COMMON_CFG_READ, 7, 63, 64, 0x8000, 0xffff] {
        refused(&command(1, opcode, 99), QUALIFIER_INVALID_OPCODE);
    }
    assert_eq!(owner.list(LIST_USE, &[0x7f], 0).status, 0);
    for member in [0, 3, 1 << 16 | 1, u64::MAX] {
        let answer = command(1, LEGACY_COMMON_CFG_READ, member);
        refused(&answer, QUALIFIER_INVALID_MEMBER);
    }
    // The list commands use no member id.
    assert_eq!(owner.command(LIST_QUERY, 99, &[], 8).status, 0);
}

#[test]
fn with_vf_enable_clear_member_commands_have_no_group() {
    let nic = nic(with_vfs(0));
    let owner = Owner::ready(&nic);
    let read = || owner.command(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
    refused(&read(), QUALIFIER_INVALID_GROUP);
    nic.set_num_vfs(1).unwrap();
    assert_eq!(read().status, 0);
    nic.set_num_vfs(0).unwrap();
    refused(&read(), QUALIFIER_INVALID_GROUP);
}

#[test]
fn a_legacy_access_stays_inside_one_field() {
    let nic = nic(with_vfs(1));
    let owner = Owner::ready(&nic);
    let read = |opcode, offset: u8, len| owner.command(opcode, 1, &[offset], len);
    for (offset, len) in [
        (0, 8),
        (0, 5),
        (2, 4),
        (12, 4),
        (18, 2),
        (24, 1),
        (255, 1),
        (4, 0),
    ] {
        let answer = read(LEGACY_COMMON_CFG_READ, offset, len);
        refused(&answer, QUALIFIER_INVALID_FIELD);
    }
    for (offset, len) in [(0, 7), (5, 2), (8, 1), (6, 3), (0, 4096 - 8)] {
        let answer = read(LEGACY_DEV_CFG_READ, offset, len);
        refused(&answer, QUALIFIER_INVALID_FIELD);
    }
    assert_eq!(read(LEGACY_COMMON_CFG_READ, 0, 4).status, 0);
    assert_eq!(read(LEGACY_DEV_CFG_READ, 0, 6).data, nic_mac(&owner));
    let write = |opcode, offset: u8, data: &[u8]| {
        let data = [&[offset, 0, 0, 0, 0, 0, 0, 0], data].concat();
        owner.command(opcode, 1, &data, 0)
    };
    let answer = write(LEGACY_COMMON_CFG_WRITE, 18, &[1, 1]);
    refused(&answer, QUALIFIER_INVALID_FIELD);
    refused(
        &write(LEGACY_COMMON_CFG_WRITE, 18, &[]),
        QUALIFIER_INVALID_FIELD,
    );
    refused(
        &write(LEGACY_DEV_CFG_WRITE, 5, &[1, 1]),
        QUALIFIER_INVALID_FIELD,
    );
    assert_eq!(write(LEGACY_COMMON_CFG_WRITE, 18, &[1]).status, 0);
    assert_eq!(owner.legacy(1).read(legacy::STATUS, 1), 1);
}

fn nic_mac(owner: &Owner) -> Vec<u8> {
    (0..6)
        .flat_map(|at| owner.legacy(1).config(at, 1))
        .collect()
}

#[test]
fn parts_may_be_shorter_or_longer_than_the_command_needs() {
    let nic = nic(with_vfs(1));
    let owner = Owner::ready(&nic);
    // An empty command: every missing byte is zero, which is group type 0.
    refused(&owner.raw(&[], 8), QUALIFIER_INVALID_GROUP);
    refused(&owner.raw(&[3, 0, 1], 8), QUALIFIER_INVALID_MEMBER);
    // A missing offset is 0.
    let answer = owner.command(LEGACY_COMMON_CFG_READ, 1, &[], 4);
    assert_eq!((answer.status, answer.used), (0, 12));
    // Room for less than the result, or for less than the status.
    let mut query = vec![0; 24];
    query[2] = 1;
    assert_eq!(owner.raw(&query, 11).data, [0x7f, 0, 0]);
    assert_eq!(owner.raw(&query, 3).used, 3);
    assert_eq!(owner.raw(&query, 0).used, 0);
    // More room, and more data, than the command has.
    assert_eq!(owner.raw(&query, 100).used, 16);
    query.resize(200, 0xff);
    assert_eq!(owner.raw(&query, 16).status, 0);
    let answer = owner.command(LEGACY_NOTIFY_INFO, 1, &[1; 100], 20);
    assert_eq!((answer.status, answer.used), (0, 28));
}

#[test]
fn commands_complete_on_the_ringing_thread_and_interrupt_the_queues_vector() {
    let nic = nic(with_vfs(1));
    let owner = Owner::ready(&nic);
    let fds = owner.dut.msix(owner.vector() + 1);
    settle();
    for _ in 0..100 {
        owner.submit(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
        assert_eq!(owner.poll().map(|answer| answer.status), Some(0));
        assert_eq!(fired(&fds[owner.vector()]), 1);
    }
    assert!(fds[..owner.vector()].iter().all(|fd| fired(fd) == 0));
}

#[test]
fn many_commands_may_be_queued_behind_one_notification() {
    let nic = nic(with_vfs(3));
    let owner = Owner::ready(&nic);
    let bells = (0..3u64).map(|i| owner.legacy(i + 1));
    for legacy in bells {
        legacy.write(legacy::STATUS, &[3]);
        assert_eq!(legacy.read(legacy::STATUS, 1), 3);
    }
    std::thread::scope(|scope| {
        // Two threads ring at once; nothing is lost and nobody waits for ever.
        let bell = owner.dut.bell();
        let ring = scope.spawn(move || {
            for _ in 0..2000 {
                bell.ring(retrovf_pci::QueueIndex(3));
            }
        });
        for _ in 0..500 {
            assert_eq!(owner.legacy(2).read(legacy::STATUS, 1), 3);
        }
        ring.join().unwrap();
    });
}
