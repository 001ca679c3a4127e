//! Clients of other authors. What they did is looked up at the function.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;

use retrovf_vfio_user::wire::{IRQ_ACTION_TRIGGER, IRQ_DATA_EVENTFD, IRQ_DATA_NONE};

use crate::fixture::{eventfd, memory_file, row, signals, Rig, Setup, BAR4_SIZE};

/// Through its whole interface. It checks no error replies.
#[test]
fn the_client_of_rust_vmm_drives_the_device() {
    let rig = Rig::new(Setup::default());
    let mut client = vfio_user::Client::new(&rig.path).unwrap();

    let sizes: Vec<u64> = (0..9)
        .map(|index| client.region(index).unwrap().size)
        .collect();
    assert_eq!(sizes, [32, 0, 0, 0, BAR4_SIZE, 0, 0, 256, 0]);
    // Its flag is inverted: false says that the device can be reset.
    assert!(!client.resettable());

    let mut id = [0; 4];
    client.region_read(7, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x00, 0x10]);
    client.region_write(7, 4, &[7, 0]).unwrap();
    assert!(rig.device.io_enabled());

    let mut registers = [0; 20];
    client.region_read(0, 0, &mut registers).unwrap();
    assert_eq!(registers[..4], [0, 1, 2, 3]);
    client.region_write(0, 18, &[1]).unwrap();
    assert_eq!(rig.plane.1.lock().unwrap()[..], [(18, vec![1])]);
    client.region_write(0, 16, &[1, 0]).unwrap();
    assert_eq!(rig.kicks(), [1]);

    client.region_write(4, 8, b"12345678").unwrap();
    let mut out = [0; 8];
    client.region_read(4, 8, &mut out).unwrap();
    assert_eq!(&out, b"12345678");

    let file = memory_file(0x2000);
    client
        .dma_map(0x1000, 0x8000, 0x1000, file.as_raw_fd())
        .unwrap();
    rig.recorder.dma.write(0x8000, b"dma").unwrap();
    let mut out = [0; 3];
    rustix::io::pread(&file, &mut out, 0x1000).unwrap();
    assert_eq!(&out, b"dma");
    client.dma_unmap(0x8000, 0x1000).unwrap();
    assert!(rig.recorder.dma.read(0x8000, &mut out).is_err());

    let msix = client.get_irq_info(2).unwrap();
    assert_eq!((msix.index, msix.count), (2, 5));
    let fds = [eventfd(), eventfd()];
    let raw = [fds[0].as_raw_fd(), fds[1].as_raw_fd()];
    let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
    client.set_irqs(2, flags, 1, 2, &raw).unwrap();
    rig.recorder.vectors.lock().unwrap()[2]
        .clone()
        .unwrap()
        .signal();
    assert_eq!(signals(&fds[1]), 1);
    client
        .set_irqs(2, IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, 0, 0, &[])
        .unwrap();
    assert_eq!(rig.recorder.take_irqs(), ["2/1 install ++", "2/0 disable"]);

    client.reset().unwrap();
    assert!(rig.has_event("device-reset"));
    client.shutdown().unwrap();
    rig.await_event("client-disconnected");
    assert_eq!(rig.device.counters().protocol_errors, 0);
}

/// Names `samples/client` of a libvfio-user that was built elsewhere.
const LIBVFIO_USER_CLIENT: &str = "LIBVFIO_USER_CLIENT";

/// The client asserts each step, up to where it wants a log of dirty pages, which is part of live
/// migration and refused.
#[test]
fn the_sample_client_of_libvfio_user_gets_as_far_as_dirty_page_logging() {
    let Some(client) = std::env::var_os(LIBVFIO_USER_CLIENT) else {
        // Past the capture of the test's output: a skip should be seen.
        let line = format!("skipped: {LIBVFIO_USER_CLIENT} names no libvfio-user sample client\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    };
    let rig = Rig::new(Setup {
        // The ids that it asserts.
        overlay: vec![
            row(0x00, 4, 0xbeef_dead, !0, 0),
            row(0x2c, 4, 0xbabe_cafe, !0, 0),
        ],
        ..Setup::default()
    });
    let output = Command::new(&client).arg(&rig.path).output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let said = format!("{stdout}{stderr}");

    let bogus = "failed to read from region -559038737";
    let logging = "failed to start dirty page logging: Operation not supported";
    let complaints: Vec<&str> = stderr.lines().collect();
    assert_eq!(complaints.len(), 2, "{said}");
    assert!(complaints[0].contains(bogus), "{said}");
    assert!(complaints[1].ends_with(logging), "{said}");

    assert!(stdout.contains("num_regions 9, num_irqs 5"), "{said}");
    for (region, size) in [(0, 32), (1, 0), (4, BAR4_SIZE), (7, 256)] {
        let line = stdout
            .lines()
            .find(|line| line.contains(&format!("region_info[{region}]")));
        let found = line.is_some_and(|line| line.contains(&format!("size {size} cap_sz 0")));
        assert!(found, "region {region}: {said}");
    }
    assert!(stdout.contains("IRQ INTx: count=1 flags=0x7"), "{said}");
    assert!(stdout.contains("IRQ MSI-X: count=5 flags=0x1"), "{said}");
    assert!(rig.has_event("device-reset"));
    rig.await_event("client-disconnected");
    let irqs = rig.recorder.take_irqs();
    assert_eq!(irqs[0], "0/0 install +");
    // Twice as many as descriptors fit a message, a page each, each with its own descriptor.
    assert_eq!(rig.recorder.mapped(), 16);
    assert_eq!(rig.device.counters().protocol_errors, 0);
}
