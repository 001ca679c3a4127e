//! What can be served, and the device without a client.

use std::sync::Arc;

use retrovf_pci::{Function, OverlayRow, QueueIndex, Region};
use retrovf_vfio_user::{ControlAccess, ControlPlane, DeviceConfig, ServedDevice};

use crate::fixture::{Recorder, Rig, Setup};

struct Nobody;

impl ControlPlane for Nobody {
    fn access(&self, _: ControlAccess) {}
}

/// The reason for which a changed description is refused.
fn refused(change: impl FnOnce(&mut DeviceConfig)) -> String {
    let mut config = DeviceConfig {
        member: Recorder::new(),
        overlay: Vec::new(),
        config_size: 256,
        msix_capability: None,
        bar0_size: Some(32),
        notify: None,
        queues: 0,
    };
    change(&mut config);
    let error = ServedDevice::new(config, Arc::new(Nobody)).unwrap_err();
    assert_eq!(error.code(), "ERR_DEVICE_CONFIG");
    error.to_string()
}

#[test]
fn a_description_that_no_client_could_use_is_refused_with_its_reason() {
    for size in [0, 16, 24, 33, 512, u32::MAX] {
        let reason = refused(|config| config.bar0_size = Some(size));
        assert!(reason.contains("BAR0"), "{reason}");
    }
    for size in [0, 255, 512, 8192] {
        let reason = refused(|config| config.config_size = size);
        assert!(reason.contains("configuration space"), "{reason}");
    }
    let reason = refused(|config| config.queues = 1025);
    assert!(reason.contains("queues"), "{reason}");
    let row = OverlayRow {
        offset: 254,
        width: 4,
        value: 0,
        mask: 0,
        writable: 0,
        forward: false,
        resets: false,
        flr: 0,
    };
    let reason = refused(|config| config.overlay = vec![row]);
    assert!(reason.contains("254"), "{reason}");
}

#[test]
fn a_bar_whose_size_is_no_power_of_two_is_refused_since_qemu_aborts_on_it() {
    let recorder = Recorder::new();
    recorder.set_bar4_size(0x3000);
    assert_eq!(recorder.region(Region::bar(4)).unwrap().size, 0x3000);
    let reason = refused(|config| config.member = recorder);
    assert!(reason.contains("BAR4 has 0x3000 bytes"), "{reason}");
}

#[test]
fn the_device_can_be_driven_without_a_client() {
    let rig = Rig::new(Setup::default());
    let device = &rig.device;
    device.config_write(4, &[7, 0]).unwrap();
    let mut id = [0; 6];
    device.config_read(0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x00, 0x10, 7, 0]);
    assert_eq!(device.region(Region(0)).unwrap().size, 32);
    device.region_write(Region::bar(4), 4, b"bar4").unwrap();
    let mut out = [0; 4];
    device.region_read(Region::bar(4), 4, &mut out).unwrap();
    assert_eq!(&out, b"bar4");
    device.notify_target().unwrap().ring(QueueIndex(2));
    assert_eq!(rig.kicks(), [2]);
    assert_eq!(device.counters().notifies, 0, "no message came");
    device.reset().unwrap();
    assert!(!device.io_enabled());
    let code = |error: retrovf_vfio_user::Error| error.code();
    let own_bar0 = device.region_read(Region(0), 0, &mut out).map_err(code);
    assert_eq!(own_bar0, Err("ERR_NO_SUCH_REGION"));
    let outside = device.config_read(254, &mut out).map_err(code);
    assert_eq!(outside, Err("ERR_OUT_OF_RANGE"));
}
