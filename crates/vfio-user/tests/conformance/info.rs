//! GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, DEVICE_RESET, and commands that are not there.

use retrovf_pci::Function;
use retrovf_vfio_user::wire::*;

use crate::fixture::{errno, message, Rig, Setup, BAR4_SIZE, DEVCTL, MSIX};

#[test]
fn the_device_is_a_resettable_pci_function_of_9_regions_and_5_irqs() {
    let rig = Rig::new(Setup::default());
    let info = rig.client().device_info().unwrap();
    assert_eq!(info.flags, DEVICE_RESETS | DEVICE_PCI);
    assert_eq!((info.regions, info.irqs), (9, 5));
}

#[test]
fn bar0_is_presented_and_no_region_is_mappable() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let rw = REGION_READABLE | REGION_WRITABLE;
    let sizes: Vec<(u64, u32)> = (0..9)
        .map(|region| client.region_info(region).unwrap())
        .map(|info| (info.size, info.flags))
        .collect();
    let none = (0, 0);
    assert_eq!(
        sizes,
        [
            (32, rw),
            none,
            none,
            none,
            (BAR4_SIZE, rw),
            none,
            none,
            (256, rw),
            none
        ]
    );
    assert_eq!(errno(client.region_info(9)), libc::EINVAL);
    assert_eq!(errno(client.region_info(u32::MAX)), libc::EINVAL);
}

#[test]
fn without_an_own_bar0_the_functions_is_shown() {
    let rig = Rig::new(Setup {
        bar0: false,
        ..Setup::default()
    });
    let mut client = rig.client();
    assert_eq!(client.region_info(0).unwrap().size, 0);
    assert_eq!(errno(client.region_read(0, 0, &mut [0; 4])), libc::EINVAL);
}

#[test]
fn irq_flags_are_those_of_the_function() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let irqs: Vec<(u32, u32)> = (0..5)
        .map(|index| client.irq_info(index).unwrap())
        .map(|info| (info.count, info.flags))
        .collect();
    let intx = IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED;
    assert_eq!(irqs, [(1, intx), (0, 1), (5, 1), (1, 1), (1, 1)]);
    assert_eq!(errno(client.irq_info(5)), libc::EINVAL);
}

#[test]
fn a_reset_by_the_guest_clears_what_a_reset_by_the_client_does() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    client
        .region_write(7, u64::from(MSIX) + 3, &[0x80])
        .unwrap();
    let devctl = u64::from(DEVCTL);
    client.region_write(7, devctl, &[0x10, 0]).unwrap();
    assert!(rig.device.io_enabled() && rig.device.msix_enabled());
    client.region_write(7, devctl, &[0x10, 0x80]).unwrap();
    assert!(!rig.device.io_enabled() && !rig.device.msix_enabled());
    let mut seen = [0; 2];
    rig.recorder
        .config_read(devctl as usize, &mut seen)
        .unwrap();
    assert_eq!(seen, [0x10, 0x80], "the function does the reset itself");
}

#[test]
fn reset_clears_the_io_bit_and_keeps_the_address() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    client.region_write(7, 0x10, &[0, 0xc0, 0, 0]).unwrap();
    assert!(rig.device.io_enabled());
    client.reset().unwrap();
    assert!(!rig.device.io_enabled());
    let resets = &rig.recorder.resets;
    assert_eq!(resets.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(rig.has_event("device-reset"));
}

#[test]
fn commands_that_are_not_there_are_refused_with_their_payload_consumed() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    for (command, want) in [
        (Command::DIRTY_PAGES, libc::ENOTSUP),
        (Command::FEATURE, libc::ENOTSUP),
        (Command::MIG_DATA_READ, libc::ENOTSUP),
        (Command::MIG_DATA_WRITE, libc::ENOTSUP),
        (Command::VERSION, libc::EINVAL),
        (Command::DMA_READ, libc::EINVAL),
        (Command(0), libc::ENOSYS),
        (Command(19), libc::ENOSYS),
        (Command(0xffff), libc::ENOSYS),
    ] {
        client
            .send_raw(&message(77, command, 0, &[0x5a; 100]), &[])
            .unwrap();
        let reply = client.receive_raw().unwrap();
        assert_eq!(reply.header.error, want as u32, "{command}");
        assert_eq!((reply.header.id, reply.header.size), (77, 16), "{command}");
        assert_eq!(reply.header.flags, TYPE_REPLY | ERROR, "{command}");
    }
    assert_eq!(client.device_info().unwrap().regions, 9);
}

#[test]
fn truncated_requests_are_refused_and_counted() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let requests = [
        (Command::DMA_MAP, 31),
        (Command::DMA_UNMAP, 23),
        (Command::GET_INFO, 15),
        (Command::REGION_INFO, 31),
        (Command::REGION_IO_FDS, 15),
        (Command::IRQ_INFO, 15),
        (Command::SET_IRQS, 19),
        (Command::REGION_READ, 15),
        (Command::REGION_WRITE, 15),
        (Command::WRITE_MULTI, 7),
    ];
    for (command, size) in requests {
        for size in [0, size] {
            client
                .send_raw(&message(1, command, 0, &vec![0; size]), &[])
                .unwrap();
            let reply = client.receive_raw().unwrap().header;
            assert_eq!(reply.error, libc::EINVAL as u32, "{command}");
        }
    }
    let errors = rig.device.counters().protocol_errors;
    assert_eq!(errors, 2 * requests.len() as u64);
}

#[test]
fn a_message_of_an_unknown_type_is_refused() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    for command in [Command::GET_INFO, Command::REGION_WRITE] {
        client
            .send_raw(&message(1, command, 2, &[0; 16]), &[])
            .unwrap();
        let reply = client.receive_raw().unwrap().header;
        assert_eq!(reply.error, libc::EINVAL as u32);
    }
}

#[test]
fn descriptors_with_a_command_that_takes_none_are_refused_and_closed() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let (read, write) = rustix::pipe::pipe().unwrap();
    for (command, payload) in [(Command::GET_INFO, 16), (Command::REGION_WRITE, 16)] {
        let bytes = message(1, command, 0, &vec![0; payload]);
        client
            .send_raw(&bytes, &[std::os::fd::AsFd::as_fd(&write)])
            .unwrap();
        let reply = client.receive_raw().unwrap().header;
        assert_eq!(reply.error, libc::EINVAL as u32, "{command}");
    }
    drop(write);
    // End of file: nobody holds the other end.
    assert_eq!(rustix::io::read(&read, &mut [0u8; 1]).unwrap(), 0);
}
