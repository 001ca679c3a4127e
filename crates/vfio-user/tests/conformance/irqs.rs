//! SET_IRQS, in the ways that QEMU sends it.

use std::os::fd::AsFd;

use retrovf_vfio_user::wire::*;

use crate::fixture::{errno, eventfd, signals, Rig, Setup};

const INTX: u32 = 0;
const MSIX: u32 = 2;
const ERR: u32 = 3;

#[test]
fn msix_is_enabled_with_one_vector_without_descriptor_and_vectors_follow() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.set_irqs_eventfds(MSIX, 0, &[None]).unwrap();
    let (first, second) = (eventfd(), eventfd());
    client
        .set_irqs_eventfds(MSIX, 1, &[Some(first.as_fd())])
        .unwrap();
    client
        .set_irqs_eventfds(MSIX, 2, &[Some(second.as_fd()), None, None])
        .unwrap();
    client.set_irqs_disable(MSIX).unwrap();
    assert_eq!(
        rig.recorder.take_irqs(),
        [
            "2/0 install -",
            "2/1 install +",
            "2/2 install +",
            "2/3 install --",
            "2/0 disable"
        ]
    );
}

#[test]
fn an_installed_eventfd_is_the_one_that_the_client_waits_on() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let fds = [eventfd(), eventfd()];
    let all = [Some(fds[0].as_fd()), Some(fds[1].as_fd())];
    client.set_irqs_eventfds(MSIX, 3, &all).unwrap();
    let vector = rig.recorder.vectors.lock().unwrap()[4].clone().unwrap();
    vector.signal();
    assert_eq!((signals(&fds[0]), signals(&fds[1])), (0, 1));
    // The server reports a reason when the function refuses what was installed.
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let not_an_eventfd = client.set_irqs_eventfds(MSIX, 0, &[Some(pipe.as_fd())]);
    assert_eq!(errno(not_an_eventfd), libc::EINVAL);
}

#[test]
fn intx_goes_through_kvms_resample_sequence() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let (trigger, resample) = (eventfd(), eventfd());
    client
        .set_irqs_eventfds(INTX, 0, &[Some(trigger.as_fd())])
        .unwrap();
    let none = IRQ_DATA_NONE;
    client
        .set_irqs(none | IRQ_ACTION_MASK, INTX, 0, 1, &[], &[])
        .unwrap();
    let unmask_on = IRQ_DATA_EVENTFD | IRQ_ACTION_UNMASK;
    client
        .set_irqs(unmask_on, INTX, 0, 1, &[], &[resample.as_fd()])
        .unwrap();
    client
        .set_irqs(none | IRQ_ACTION_UNMASK, INTX, 0, 1, &[], &[])
        .unwrap();
    client.set_irqs(unmask_on, INTX, 0, 1, &[], &[]).unwrap();
    assert_eq!(
        rig.recorder.take_irqs(),
        [
            "0/0 install +",
            "0/0 mask(count(1))",
            "0/0 unmask-on true",
            "0/0 unmask(count(1))",
            "0/0 unmask-on false"
        ]
    );
}

#[test]
fn bool_data_may_be_all_zeroes_and_lies_behind_an_argsz_of_20() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let flags = IRQ_DATA_BOOL | IRQ_ACTION_TRIGGER;
    client.set_irqs(flags, MSIX, 1, 3, &[0, 1, 0], &[]).unwrap();
    client.set_irqs(flags, MSIX, 0, 2, &[0, 0], &[]).unwrap();
    client
        .set_irqs(IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, ERR, 0, 1, &[], &[])
        .unwrap();
    assert_eq!(
        rig.recorder.take_irqs(),
        [
            "2/1 fire(flags([false, true, false]))",
            "2/0 fire(flags([false, false]))",
            "3/0 fire(count(1))"
        ]
    );
}

#[test]
fn requests_that_make_no_sense_are_refused_before_the_function_sees_them() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let fd = eventfd();
    let fds = [fd.as_fd(), fd.as_fd()];
    let trigger = IRQ_ACTION_TRIGGER;
    let eventfds = IRQ_DATA_EVENTFD | trigger;
    let none = IRQ_DATA_NONE | trigger;
    for (flags, index, start, count, data, fds) in [
        // Ranges.
        (none, MSIX, 0, 6, &[][..], &[][..]),
        (none, MSIX, 5, 1, &[], &[]),
        (none, MSIX, u32::MAX, 1, &[], &[]),
        (none, MSIX, 1, u32::MAX, &[], &[]),
        (eventfds, MSIX, 0, u32::MAX, &[], &[]),
        (IRQ_DATA_BOOL | trigger, MSIX, 0, u32::MAX, &[], &[]),
        (none, 1, 0, 1, &[], &[]),
        (none, 5, 0, 0, &[], &[]),
        (none, u32::MAX, 0, 1, &[], &[]),
        // Data that is not there, or does not fit.
        (IRQ_DATA_BOOL | trigger, MSIX, 0, 3, &[1, 1], &[]),
        (eventfds, MSIX, 0, 1, &[], &fds),
        (eventfds, MSIX, 0, 3, &[], &fds),
        (none, MSIX, 0, 2, &[], &fds),
        (IRQ_DATA_BOOL | trigger, MSIX, 0, 2, &[1, 1], &fds),
        (
            IRQ_DATA_EVENTFD | IRQ_ACTION_MASK,
            INTX,
            0,
            1,
            &[],
            &fds[..1],
        ),
        (IRQ_DATA_EVENTFD | IRQ_ACTION_UNMASK, MSIX, 0, 2, &[], &fds),
        // No kind, two kinds, no action, two actions, unknown bits.
        (trigger, MSIX, 0, 1, &[], &[]),
        (none | IRQ_DATA_BOOL, MSIX, 0, 1, &[1], &[]),
        (IRQ_DATA_NONE, MSIX, 0, 1, &[], &[]),
        (none | IRQ_ACTION_MASK, MSIX, 0, 1, &[], &[]),
        (none | 1 << 6, MSIX, 0, 1, &[], &[]),
        // Nothing to do.
        (eventfds, MSIX, 0, 0, &[], &[]),
        (IRQ_DATA_NONE | IRQ_ACTION_MASK, MSIX, 0, 0, &[], &[]),
    ] {
        let refused = client.set_irqs(flags, index, start, count, data, fds);
        assert_eq!(
            errno(refused),
            libc::EINVAL,
            "{flags:#x} {index} {start} {count}"
        );
    }
    assert!(rig.recorder.take_irqs().is_empty());
}
