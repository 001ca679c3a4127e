//! Failures on request.

use std::time::{Duration, Instant};

use retrovf_pci::{IrqAction, IrqIndex, IrqRequest, Region};
use retrovf_softnic::{CommandFilter, Config, Error, Fault};
use retrovf_spec::admin::{
    LEGACY_COMMON_CFG_READ, LEGACY_NOTIFY_INFO, LIST_QUERY, QUALIFIER_INVALID_MEMBER,
    QUALIFIER_TRYAGAIN, STATUS_EAGAIN, STATUS_EINVAL,
};
use retrovf_spec::legacy;

use crate::driver::{eventfd, eventually, fired, nic, settle, Dut, Owner, BASE, MEMORY};

fn two_vfs() -> Config {
    Config {
        vfs: 2,
        ..Config::default()
    }
}

fn read(owner: &Owner, member: u64) -> (u16, u16) {
    let offset = legacy::ISR as u8;
    let answer = owner.command(LEGACY_COMMON_CFG_READ, member, &[offset], 1);
    (answer.status, answer.qualifier)
}

#[test]
fn commands_can_fail_with_any_status() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let filter = CommandFilter {
        opcode: Some(LEGACY_COMMON_CFG_READ),
        member: Some(2),
        count: 2,
    };
    nic.inject(Fault::CommandStatus {
        filter,
        status: STATUS_EAGAIN,
        qualifier: QUALIFIER_TRYAGAIN,
    })
    .unwrap();
    assert_eq!(read(&owner, 1), (0, 0));
    assert_eq!(read(&owner, 2), (STATUS_EAGAIN, QUALIFIER_TRYAGAIN));
    assert_eq!(owner.command(LIST_QUERY, 2, &[], 8).status, 0);
    assert_eq!(read(&owner, 2), (STATUS_EAGAIN, QUALIFIER_TRYAGAIN));
    assert_eq!(read(&owner, 2), (0, 0));
}

#[test]
fn a_command_can_be_lost_and_the_next_one_is_not() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let filter = CommandFilter::default();
    nic.inject(Fault::NoCompletion { filter }).unwrap();
    owner.submit(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
    settle();
    assert_eq!(owner.poll(), None);
    assert_eq!(read(&owner, 1), (0, 0));
}

#[test]
fn a_slow_command_completes_late_with_an_interrupt_and_holds_up_no_other() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let fds = owner.dut.msix(owner.vector() + 1);
    nic.inject(Fault::SlowCompletion {
        filter: CommandFilter {
            member: Some(1),
            ..CommandFilter::default()
        },
        delay: Duration::from_millis(150),
    })
    .unwrap();
    let start = Instant::now();
    owner.submit(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
    assert_eq!(read(&owner, 2), (0, 0));
    assert!(start.elapsed() < Duration::from_millis(150));
    fired(&fds[owner.vector()]);
    let answer = eventually("the late answer", || owner.poll());
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert_eq!((answer.status, answer.used), (0, 12));
    eventually("its interrupt", || {
        (fired(&fds[owner.vector()]) > 0).then_some(())
    });
}

#[test]
fn a_late_command_does_not_survive_a_reset_of_the_owner() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    nic.inject(Fault::SlowCompletion {
        filter: CommandFilter::default(),
        delay: Duration::from_millis(40),
    })
    .unwrap();
    owner.submit(LEGACY_COMMON_CFG_READ, 1, &[0], 4);
    owner.dut.set_status(0);
    let before = owner.dut.get(BASE, MEMORY as usize);
    std::thread::sleep(Duration::from_millis(80));
    assert!(owner.dut.get(BASE, MEMORY as usize) == before);
}

#[test]
fn notify_info_can_be_any_64_bytes() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    nic.inject(Fault::NotifyInfo {
        filter: CommandFilter::default(),
        entries: [0xa5; 64],
    })
    .unwrap();
    // Only that command uses the fault up.
    assert_eq!(read(&owner, 1), (0, 0));
    let info = || owner.command(LEGACY_NOTIFY_INFO, 1, &[], 64).data;
    assert_eq!(info(), [0xa5; 64]);
    assert_eq!(info()[..2], [2, 4]);
}

#[test]
fn a_device_error_sets_needs_reset_and_stops_the_queues_until_reset() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let bdf = nic.owner();
    nic.inject(Fault::DeviceReset { bdf }).unwrap();
    assert_eq!(owner.dut.status() & 64, 64);
    owner.submit(LIST_QUERY, 0, &[], 8);
    settle();
    assert_eq!(owner.poll(), None);
    let owner = Owner::bring_up(owner.dut);
    assert_eq!(owner.list(LIST_QUERY, &[], 8).status, 0);
}

#[test]
fn a_vf_that_is_gone_reads_as_ones_and_is_no_member_any_more() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let bdf = nic.members()[1];
    let vf = Dut::open(&nic, bdf);
    let error = eventfd();
    let request = IrqRequest {
        index: IrqIndex::ERR,
        start: 0,
        action: IrqAction::Install(vec![error.try_clone().ok()]),
    };
    vf.function.set_irqs(request).unwrap();
    nic.inject(Fault::FunctionGone { bdf }).unwrap();
    assert_eq!(vf.config32(0), u32::MAX);
    let mut word = [0; 4];
    vf.function
        .region_read(Region::bar(4), 20, &mut word)
        .unwrap();
    assert_eq!(word, [0xff; 4]);
    vf.function.region_write(Region::bar(4), 20, &word).unwrap();
    assert!(vf.function.reset().is_err());
    eventually("the error event", || (fired(&error) > 0).then_some(()));
    let refused = (STATUS_EINVAL, QUALIFIER_INVALID_MEMBER);
    assert_eq!(read(&owner, 2), refused);
    assert_eq!(read(&owner, 1), (0, 0));
    drop(vf);
    assert!(matches!(nic.open(bdf), Err(Error::Gone { .. })));
    nic.clear_faults();
    assert_eq!(read(&owner, 2), (0, 0));
    assert_eq!(Dut::open(&nic, bdf).status(), 0);
}

#[test]
fn commands_of_an_owner_that_is_gone_never_complete() {
    let nic = nic(two_vfs());
    let owner = Owner::ready(&nic);
    let bdf = nic.owner();
    let bell = owner.dut.bell();
    nic.inject(Fault::FunctionGone { bdf }).unwrap();
    assert_eq!(owner.dut.config32(0), u32::MAX);
    bell.ring(retrovf_pci::QueueIndex(3));
    settle();
    assert_eq!(owner.poll(), None);
    nic.clear_faults();
    owner.dut.master(true);
    let owner = Owner::bring_up(owner.dut);
    assert_eq!(owner.list(LIST_QUERY, &[], 8).status, 0);
}
