//! What is left of a client that is gone.

use std::os::fd::AsFd;
use std::time::Duration;

use retrovf_pci::DmaAccess;
use retrovf_vfio_user::wire::*;

use crate::fixture::{eventfd, memory_file, message, Rig, Setup, MSIX};

#[test]
fn dma_interrupts_and_bus_mastering_are_off_and_the_devices_state_is_kept() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    client.region_write(7, 0x10, &[0, 0xc0, 0, 0]).unwrap();
    client.region_write(4, 0x20, b"kept").unwrap();
    let control = u64::from(MSIX) + 2;
    client.region_write(7, control, &[0, 0x80]).unwrap();
    assert!(rig.device.msix_enabled());
    let file = memory_file(4096);
    client
        .dma_map(0, 4096, DmaAccess::READ_WRITE, Some((file.as_fd(), 0)))
        .unwrap();
    let vector = eventfd();
    client
        .set_irqs_eventfds(2, 0, &[Some(vector.as_fd())])
        .unwrap();
    assert_eq!(rig.recorder.command() & 4, 4);
    rig.recorder.take_irqs();
    drop(client);
    rig.await_event("client-disconnected");
    assert_eq!(rig.recorder.command(), 2);
    assert!(rig.recorder.dma.read(0, &mut [0]).is_err());
    let disabled = rig.recorder.take_irqs();
    assert_eq!(
        disabled,
        ["0/0 disable", "2/0 disable", "3/0 disable", "4/0 disable"]
    );

    let mut next = rig.client();
    let mut out = [0; 4];
    next.region_read(4, 0x20, &mut out).unwrap();
    assert_eq!(&out, b"kept");
    next.region_read(7, 0x10, &mut out).unwrap();
    assert_eq!(u32::from_le_bytes(out), 0xc001);
    next.region_read(7, 4, &mut out[..2]).unwrap();
    assert_eq!(out[..2], [3, 0]);
    next.region_read(7, control, &mut out[..2]).unwrap();
    assert_eq!(out[..2], [4, 0], "MSI-X without anybody to take it");
}

#[test]
fn an_access_under_way_is_forgotten() {
    let rig = Rig::new(Setup {
        manual: true,
        ..Setup::default()
    });
    let mut client = rig.guest();
    let access = RegionAccess {
        offset: 0,
        region: 0,
        count: 4,
    };
    let read = message(1, Command::REGION_READ, 0, &access.encode());
    client.send_raw(&read, &[]).unwrap();
    let old = rig.access();
    drop(client);
    rig.await_event("client-disconnected");
    assert!(!rig.device.respond(old.id, Some(&[0; 4])));

    let mut next = rig.guest();
    next.send_raw(&read, &[]).unwrap();
    let new = rig.access();
    assert!(!rig.device.respond(old.id, Some(&[0; 4])));
    assert!(rig.device.respond(new.id, Some(&[5; 4])));
    assert_eq!(next.receive_raw().unwrap().payload[16..], [5; 4]);
    assert!(!rig.has_event("access-timeout"));
}

#[test]
fn a_client_that_dies_in_the_middle_of_a_message_is_just_gone() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let bytes = message(1, Command::REGION_WRITE, 0, &[0; 40]);
    client.send_raw(&bytes[..30], &[]).unwrap();
    drop(client);
    rig.await_event("client-disconnected");
    assert!(!rig.has_event("protocol-error"));
    rig.guest();
}

#[test]
fn commands_that_were_sent_before_the_end_are_carried_out() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    for queue in 0..100u16 {
        client
            .region_write_posted(0, 16, &queue.to_le_bytes())
            .unwrap();
    }
    drop(client);
    rig.await_event("client-disconnected");
    assert_eq!(rig.kicks().len(), 100);
}

#[test]
fn bus_mastering_can_be_forced_on_for_old_drivers() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.region_write(7, 4, &[3, 0]).unwrap();
    rig.device.enable_bus_master().unwrap();
    assert_eq!(rig.recorder.command(), 6);
    std::thread::sleep(Duration::from_millis(1));
    let mut command = [0; 2];
    client.region_read(7, 4, &mut command).unwrap();
    assert_eq!(command, [7, 0]);
}
