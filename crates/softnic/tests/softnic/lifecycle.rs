//! Opening, closing, resetting, and what each leaves behind.

use retrovf_pci::Region;
use retrovf_softnic::{Config, Error, Uplink};
use retrovf_spec::{legacy, pci, virtio};

use crate::driver::{eventually, nic, settle, Dut, Owner, FEATURES};
use crate::frames::{frame, Net, BROADCAST};

fn vfs(count: u16) -> Config {
    Config {
        vfs: count,
        queue_size: 64,
        ..Config::default()
    }
}

#[test]
fn vf_addresses_follow_the_pf_and_carry_into_the_next_bus() {
    let nic = nic(Config {
        total_vfs: 256,
        vfs: 256,
        ..Config::default()
    });
    let members: Vec<String> = nic.members().iter().map(ToString::to_string).collect();
    assert_eq!(members.len(), 256);
    assert_eq!(members[0], "0000:5e:00.1");
    assert_eq!(members[255], "0000:5f:00.0");
}

#[test]
fn a_function_opens_once_and_again_after_it_was_dropped() {
    let nic = nic(vfs(1));
    let bdf = nic.members()[0];
    let first = nic.open(bdf).unwrap();
    let busy = nic.open(bdf).err().unwrap();
    assert_eq!(busy.code(), "ERR_DEVICE_BUSY");
    drop(first);
    nic.open(bdf).unwrap();
    let stranger = "0000:00:00.0".parse().unwrap();
    assert!(matches!(
        nic.open(stranger),
        Err(Error::NoSuchFunction { .. })
    ));
}

#[test]
fn closing_resets_the_function_and_takes_its_memory_away() {
    let nic = nic(vfs(1));
    let bdf = nic.members()[0];
    let dut = Dut::open(&nic, bdf);
    dut.negotiate(FEATURES);
    dut.function
        .config_write(pci::INTERRUPT_LINE, &[7])
        .unwrap();
    drop(dut);
    // The same addresses can be mapped again, and nothing is left of the driver.
    let dut = Dut::open(&nic, bdf);
    assert_eq!(dut.status(), 0);
    assert_eq!(dut.config32(pci::INTERRUPT_LINE) & 0xff, 0);
}

#[test]
fn resetting_the_owner_resets_its_members_and_they_stay_enabled() {
    let nic = nic(vfs(2));
    let owner = Owner::ready(&nic);
    let vf = Dut::open(&nic, nic.members()[0]);
    assert!(vf.negotiate(FEATURES));
    owner.legacy(2).write(legacy::STATUS, &[3]);
    owner.dut.function.reset().unwrap();
    assert_eq!(vf.status(), 0);
    assert_eq!(vf.config32(pci::COMMAND) & 7, 2);
    owner.dut.master(true);
    let owner = Owner::bring_up(owner.dut);
    assert_eq!(owner.list(1, &[0x7f], 0).status, 0);
    assert_eq!(owner.legacy(2).read(legacy::STATUS, 1), 0);
    // So does its last close.
    assert!(vf.negotiate(FEATURES));
    drop(owner);
    assert_eq!(vf.status(), 0);
    assert_eq!(nic.members().len(), 2);
}

#[test]
fn a_virtio_reset_of_the_owner_leaves_the_members_alone() {
    let nic = nic(vfs(1));
    let owner = Owner::ready(&nic);
    owner.legacy(1).write(legacy::STATUS, &[3]);
    let owner = Owner::bring_up(owner.dut);
    assert_eq!(owner.list(1, &[0x7f], 0).status, 0);
    assert_eq!(owner.legacy(1).read(legacy::STATUS, 1), 3);
}

#[test]
fn the_number_of_vfs_shows_in_the_capability_and_changes_only_while_none_is_open() {
    let nic = nic(vfs(2));
    let pf = Dut::open(&nic, nic.owner());
    let sriov = 0x100;
    assert_eq!(pf.config32(sriov) & 0xffff, u32::from(pci::EXT_CAP_SRIOV));
    let shown = || pf.config32(sriov + pci::SRIOV_NUM_VFS) & 0xffff;
    assert_eq!(shown(), 2);
    let vf = nic.open(nic.members()[0]).unwrap();
    assert!(matches!(nic.set_num_vfs(3), Err(Error::Busy { .. })));
    nic.set_num_vfs(2).unwrap();
    drop(vf);
    nic.set_num_vfs(3).unwrap();
    assert_eq!((shown(), nic.members().len()), (3, 3));
    assert!(matches!(nic.set_num_vfs(65), Err(Error::TooManyVfs { .. })));
    nic.set_num_vfs(0).unwrap();
    assert_eq!(shown(), 0);
    // Read-only from inside.
    let at = sriov + pci::SRIOV_CONTROL;
    pf.function.config_write(at, &[1]).unwrap();
    assert_eq!(pf.config32(at) & 1, 0);
}

#[test]
fn the_flr_bit_resets_the_function() {
    let nic = nic(vfs(1));
    let dut = Dut::open(&nic, nic.members()[0]);
    assert!(dut.negotiate(FEATURES));
    let express = dut.config32(pci::CAPABILITY_LIST) as u8;
    assert_eq!(dut.config32(usize::from(express)) as u8, pci::CAP_EXPRESS);
    let devctl = usize::from(express) + 8;
    dut.function.config_write(devctl + 1, &[0x80]).unwrap();
    assert_eq!(dut.status(), 0);
}

#[test]
fn registers_can_be_reached_through_the_configuration_window() {
    let nic = nic(vfs(1));
    let dut = Dut::open(&nic, nic.members()[0]);
    let window = dut.capability(virtio::CFG_PCI);
    let aim = |bar: u8, offset: u64, len: u32| {
        let f = &dut.function;
        f.config_write(window + virtio::cap::BAR, &[bar]).unwrap();
        let offset = (offset as u32).to_le_bytes();
        f.config_write(window + virtio::cap::OFFSET, &offset)
            .unwrap();
        let len = len.to_le_bytes();
        f.config_write(window + virtio::cap::LENGTH, &len).unwrap();
    };
    let data = window + virtio::cap::PCI_DATA;
    aim(4, virtio::common::DEVICE_STATUS, 1);
    dut.function.config_write(data, &[3]).unwrap();
    assert_eq!(dut.status(), 3);
    aim(4, virtio::common::NUM_QUEUES, 2);
    assert_eq!(dut.config32(data) & 0xffff, 3);
    // Nowhere, and not natural: nothing happens.
    aim(5, 0, 4);
    dut.config32(data);
    aim(4, 0x7fff_fffc, 4);
    dut.config32(data);
    aim(4, 1, 4);
    dut.function.config_write(data, &[0xff; 4]).unwrap();
    assert_eq!(dut.status(), 3);
}

#[test]
fn accesses_outside_a_region_are_errors_and_the_pending_bits_answer() {
    let nic = nic(vfs(1));
    let dut = Dut::open(&nic, nic.members()[0]);
    let f = &dut.function;
    let mut out = [1; 8];
    assert!(f.region_read(Region::bar(0), 0, &mut out).is_err());
    assert!(f.region_read(Region::bar(4), 0x7ffc, &mut out).is_err());
    assert!(f.region_read(Region::bar(4), u64::MAX, &mut out).is_err());
    assert!(f.region_write(Region::bar(1), 4096, &[0]).is_err());
    assert!(f.config_read(4093, &mut out).is_err());
    assert!(f.region(Region(9)).is_err());
    let msix = 0x80;
    assert_eq!(dut.config32(msix) as u8, pci::CAP_MSIX);
    let table = Region::bar(1);
    f.region_write(table, 8, &[1, 2, 3, 4]).unwrap();
    f.region_read(table, 8, &mut out[..4]).unwrap();
    assert_eq!(out[..4], [1, 2, 3, 4]);
    let pba = dut.config32(msix + pci::MSIX_PBA) & !7;
    f.region_write(table, u64::from(pba), &[0xff; 8]).unwrap();
    f.region_read(table, u64::from(pba), &mut out).unwrap();
    assert_eq!(out, [0; 8]);
}

#[test]
fn close_pulls_the_functions_out_and_may_be_called_twice() {
    let nic = nic(vfs(1));
    let dut = Dut::open(&nic, nic.members()[0]);
    nic.close();
    nic.close();
    assert_eq!(dut.config32(0), u32::MAX);
    assert!(matches!(nic.open(nic.owner()), Err(Error::Closed)));
    assert!(matches!(nic.set_num_vfs(0), Err(Error::Closed)));
    drop(nic);
    assert_eq!(dut.config32(0), u32::MAX);
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn opening_and_closing_many_times_leaks_neither_threads_nor_descriptors() {
    // In a process of its own, since other tests open functions at the same time.
    const CHILD: &str = "SOFTNIC_LEAK_TEST";
    if std::env::var_os(CHILD).is_none() {
        let me = std::env::current_exe().unwrap();
        let name =
            "lifecycle::opening_and_closing_many_times_leaks_neither_threads_nor_descriptors";
        let output = std::process::Command::new(me)
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let round = || {
        let nic = nic(Config {
            uplink: Uplink::Gateway,
            ..vfs(2)
        });
        for _ in 0..20 {
            let pf = Dut::open(&nic, nic.owner());
            let vf = Dut::open(&nic, nic.members()[1]);
            let fds = vf.msix(2);
            assert!(vf.negotiate(FEATURES));
            let rings = (vf.modern_queue(0, 64), vf.modern_queue(1, 64));
            vf.set_status(15);
            let mut net = Net::new(&vf, vf.bell(), rings, 12, (4, 2048));
            net.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 1], 60));
            drop((pf, fds));
        }
    };
    round();
    // A joined thread's entry may linger for a moment.
    settle();
    let before = (count("/proc/self/task"), count("/proc/self/fd"));
    for _ in 0..25 {
        round();
    }
    eventually("the end of all threads", || {
        let now = (count("/proc/self/task"), count("/proc/self/fd"));
        (now.0 <= before.0 && now.1 <= before.1).then_some(())
    });
}
