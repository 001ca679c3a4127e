//! Registers and capabilities.

use std::sync::Arc;

use crate::support::{Pf, ADMIN_INDEX};
use retrovf_pci::Function;
use retrovf_spec::{pci, virtio};
use retrovf_virtio::{AdminQueueOptions, CompletionMode, Transport};

fn open(pf: &Arc<Pf>) -> Result<Transport, retrovf_virtio::Error> {
    Transport::open(Arc::clone(pf) as Arc<dyn Function>)
}

fn refused(pf: &Arc<Pf>, reason: &str) {
    let error = open(pf).unwrap_err();
    assert_eq!(error.code(), "ERR_VIRTIO_CAPABILITIES");
    assert!(error.to_string().contains(reason), "{error}");
}

#[test]
fn features_status_and_counts_go_to_and_come_from_the_device() {
    let pf = Pf::new();
    let transport = open(&pf).unwrap();
    assert_eq!(
        transport.device_features().unwrap(),
        1 << 41 | 1 << 37 | 1 << 32 | 1 << 5
    );
    transport
        .set_driver_features(1 << 41 | 1 << 32 | 1 << 5)
        .unwrap();
    assert_eq!(
        transport.driver_features().unwrap(),
        1 << 41 | 1 << 32 | 1 << 5
    );
    transport.set_status(virtio::status::ACKNOWLEDGE).unwrap();
    assert_eq!(transport.status().unwrap(), 1);
    assert_eq!(transport.num_queues().unwrap(), 3);
    assert_eq!(transport.config_generation().unwrap(), 7);
    assert_eq!(transport.device_config_length(), 12);
    assert_eq!(transport.admin_queues().unwrap(), Some((ADMIN_INDEX, 1)));
}

#[test]
fn opening_lets_the_device_decode_memory_and_resets_nothing() {
    let pf = Pf::new();
    let transport = open(&pf).unwrap();
    transport.set_status(7).unwrap();
    assert_eq!(open(&pf).unwrap().status().unwrap(), 7);
    let mut command = [0; 2];
    pf.config_read(pci::COMMAND, &mut command).unwrap();
    assert_eq!(command, pci::COMMAND_MEMORY.to_le_bytes());
}

#[test]
fn a_common_structure_without_the_admin_fields_has_no_admin_queues() {
    let pf = Pf::new();
    pf.patch_config(0x40 + virtio::cap::LENGTH, &60u32.to_le_bytes());
    assert_eq!(open(&pf).unwrap().admin_queues().unwrap(), None);
}

#[test]
fn functions_without_usable_structures_are_refused() {
    let pf = Pf::new();
    pf.patch_config(pci::STATUS, &[0]);
    refused(&pf, "no capability list");

    let pf = Pf::new();
    pf.patch_config(0x61, &[0x40]);
    refused(&pf, "loop");

    let pf = Pf::new();
    pf.patch_config(0x40 + virtio::cap::LENGTH, &u32::MAX.to_le_bytes());
    refused(&pf, "common");

    let pf = Pf::new();
    pf.patch_config(0x40 + virtio::cap::LENGTH, &40u32.to_le_bytes());
    refused(&pf, "common");

    let pf = Pf::new();
    pf.patch_config(0x60 + virtio::cap::BAR, &[2]);
    refused(&pf, "notification");

    let pf = Pf::new();
    pf.patch_config(0x60 + virtio::cap::LEN, &[16]);
    refused(&pf, "notification");
}

#[test]
fn the_first_usable_capability_of_a_kind_counts() {
    let pf = Pf::new();
    let mut common = [0; 16];
    pf.config_read(0x40, &mut common).unwrap();
    common[1] = 0x40;
    common[virtio::cap::BAR] = 7;
    pf.patch_config(0x80, &common);
    pf.patch_config(pci::CAPABILITY_LIST, &[0x80]);
    assert_eq!(open(&pf).unwrap().num_queues().unwrap(), 3);
}

#[track_caller]
fn queue_refused(pf: &Arc<Pf>, options: AdminQueueOptions, reason: &str) {
    let error = open(pf)
        .unwrap()
        .create_admin_queue(options, Box::new(|_| {}))
        .unwrap_err();
    assert_eq!(error.code(), "ERR_ADMIN_QUEUE");
    assert!(error.to_string().contains(reason), "{error}");
    assert_eq!(pf.dma.unmap(0, u64::MAX).unwrap(), 0, "memory is left");
    assert!(!pf.interrupt_installed());
}

#[test]
fn a_queue_that_cannot_be_used_is_refused_and_leaves_nothing_behind() {
    let good = AdminQueueOptions {
        index: ADMIN_INDEX,
        ..AdminQueueOptions::default()
    };
    let absent = AdminQueueOptions { index: 2, ..good };
    queue_refused(&Pf::new(), absent, "does not exist");
    let vector = AdminQueueOptions { vector: 2, ..good };
    queue_refused(&Pf::new(), vector, "interrupt vector");
    let tiny = AdminQueueOptions { size: 1, ..good };
    queue_refused(&Pf::new(), tiny, "two entries");

    let pf = Pf::new();
    pf.set_queue_size(0xffff);
    queue_refused(&pf, good, "32768");
    let pf = Pf::new();
    pf.patch_config(0x60 + virtio::cap::LENGTH, &21u32.to_le_bytes());
    queue_refused(&pf, good, "notify address");
    let pf = Pf::new();
    pf.patch_config(
        0x60 + virtio::cap::NOTIFY_MULTIPLIER,
        &u32::MAX.to_le_bytes(),
    );
    queue_refused(&pf, good, "notify address");
}

#[test]
fn a_queue_in_use_is_refused() {
    let pf = Pf::new();
    let transport = open(&pf).unwrap();
    let options = AdminQueueOptions {
        index: ADMIN_INDEX,
        completion: CompletionMode::Poll,
        ..AdminQueueOptions::default()
    };
    let queue = transport
        .create_admin_queue(options, Box::new(|_| {}))
        .unwrap();
    let error = transport
        .create_admin_queue(options, Box::new(|_| {}))
        .unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    queue.close();
    transport
        .create_admin_queue(options, Box::new(|_| {}))
        .unwrap();
}
