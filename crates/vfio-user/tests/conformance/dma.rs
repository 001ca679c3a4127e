//! DMA_MAP and DMA_UNMAP.

use std::os::fd::AsFd;

use retrovf_pci::DmaAccess;
use retrovf_vfio_user::wire::*;

use crate::fixture::{errno, memory_file, message, open_fds, Rig, Setup};

const RW: DmaAccess = DmaAccess::READ_WRITE;

#[test]
fn a_mapped_file_is_the_devices_memory() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x4000);
    client
        .dma_map(0x10_0000, 0x2000, RW, Some((file.as_fd(), 0x1000)))
        .unwrap();
    rig.recorder.dma.write(0x10_0010, b"hello").unwrap();
    let mut out = [0; 5];
    rustix::io::pread(&file, &mut out, 0x1010).unwrap();
    assert_eq!(&out, b"hello");
    assert!(rig.recorder.dma.write(0x10_2000, b"x").is_err());
}

#[test]
fn a_read_only_section_cannot_be_written_by_the_device() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x1000);
    let rom = DmaAccess {
        read: true,
        write: false,
    };
    client
        .dma_map(0xe_0000, 0x1000, rom, Some((file.as_fd(), 0)))
        .unwrap();
    assert!(rig.recorder.dma.read(0xe_0000, &mut [0; 4]).is_ok());
    assert!(rig.recorder.dma.write(0xe_0000, &[0; 4]).is_err());
}

#[test]
fn thousands_of_pages_of_one_file_take_one_descriptor_of_ours() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let pages = 4000;
    let file = memory_file(pages * 4096);
    let before = open_fds();
    for page in 0..pages {
        // As a vIOMMU does: any page anywhere.
        let from = (page * 7919) % pages;
        let iova = 0x1_0000_0000 + page * 8192;
        client
            .dma_map(iova, 4096, RW, Some((file.as_fd(), from * 4096)))
            .unwrap();
    }
    // Other tests open descriptors at the same time, but not thousands.
    assert!(open_fds() < before + 1000);
    rig.recorder
        .dma
        .store_u16(0x1_0000_0000 + 3 * 8192, 0xabcd)
        .unwrap();
    let mut out = [0; 2];
    rustix::io::pread(&file, &mut out, 3 * 7919 % pages * 4096).unwrap();
    assert_eq!(out, [0xcd, 0xab]);
    assert_eq!(
        client.dma_unmap(0x1_0000_0000, pages * 8192).unwrap(),
        pages * 8192
    );
}

#[test]
fn a_file_that_grew_is_mapped_anew() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(4096);
    client
        .dma_map(0, 4096, RW, Some((file.as_fd(), 0)))
        .unwrap();
    rustix::fs::ftruncate(&file, 8192).unwrap();
    client
        .dma_map(4096, 4096, RW, Some((file.as_fd(), 4096)))
        .unwrap();
    rig.recorder.dma.write(4094, b"both").unwrap();
    let mut out = [0; 4];
    rustix::io::pread(&file, &mut out, 4094).unwrap();
    assert_eq!(&out, b"both");
}

#[test]
fn an_overlapping_map_is_eexist_and_one_outside_the_file_einval() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x2000);
    client
        .dma_map(0x1000, 0x1000, RW, Some((file.as_fd(), 0)))
        .unwrap();
    let overlap = client.dma_map(0x1800, 0x1000, RW, Some((file.as_fd(), 0x1000)));
    assert_eq!(errno(overlap), libc::EEXIST);
    for (address, size, offset) in [
        (0x8000, 0x2000, 0x1000),
        (0x8000, 0, 0),
        (0x8000, 0x1000, u64::MAX - 0xfff),
        (u64::MAX - 0xfff, 0x2000, 0),
        (0x8000, u64::MAX, 0),
    ] {
        let map = client.dma_map(address, size, RW, Some((file.as_fd(), offset)));
        assert_eq!(errno(map), libc::EINVAL, "{address:#x}+{size:#x}");
    }
    let none = DmaAccess {
        read: false,
        write: false,
    };
    let map = client.dma_map(0x8000, 0x1000, none, Some((file.as_fd(), 0)));
    assert_eq!(errno(map), libc::EINVAL);
}

#[test]
fn a_descriptor_that_cannot_be_mapped_is_refused_and_two_are_too_many() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let map = client.dma_map(0, 4096, RW, Some((pipe.as_fd(), 0)));
    assert_ne!(errno(map), 0);
    let file = memory_file(4096);
    let payload: Vec<u8> = words([32, 3, 0, 0, 0, 0, 4096, 0]).collect();
    let bytes = message(9, Command::DMA_MAP, 0, &payload);
    client
        .send_raw(&bytes, &[file.as_fd(), file.as_fd()])
        .unwrap();
    assert_eq!(
        client.receive_raw().unwrap().header.error,
        libc::EINVAL as u32
    );
    client
        .dma_map(0, 4096, RW, Some((file.as_fd(), 0)))
        .unwrap();
}

#[test]
fn one_client_cannot_take_all_descriptors_with_its_memory() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let mut refused = None;
    for n in 0..600 {
        let file = memory_file(4096);
        let map = client.dma_map(n * 4096, 4096, RW, Some((file.as_fd(), 0)));
        if map.is_err() {
            refused = Some((n, errno(map)));
            break;
        }
    }
    assert_eq!(refused, Some((512, libc::ENOSPC)));
    // Room again, once something is gone.
    client.dma_unmap(0, 4096).unwrap();
    let file = memory_file(4096);
    client
        .dma_map(0, 4096, RW, Some((file.as_fd(), 0)))
        .unwrap();
}

#[test]
fn qemu_unmaps_supersets_holes_and_what_was_never_mapped() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x10000);
    for iova in [0x1000, 0x2000, 0x8000] {
        client
            .dma_map(iova, 0x1000, RW, Some((file.as_fd(), iova)))
            .unwrap();
    }
    // The reply is the entry of the request.
    assert_eq!(client.dma_unmap(0x10_0000, 0x1000).unwrap(), 0x1000);
    assert_eq!(client.dma_unmap(0, 0x1_0000_0000).unwrap(), 0x1_0000_0000);
    assert!(rig.recorder.dma.read(0x1000, &mut [0]).is_err());
    assert!(rig.recorder.dma.read(0x8000, &mut [0]).is_err());
    // The last page of the address space ends at 2^64.
    assert_eq!(client.dma_unmap(u64::MAX - 0xfff, 0x1000).unwrap(), 0x1000);
}

#[test]
fn an_unmap_that_cuts_a_mapping_is_refused_and_changes_nothing() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x2000);
    client
        .dma_map(0x1000, 0x2000, RW, Some((file.as_fd(), 0)))
        .unwrap();
    assert_eq!(errno(client.dma_unmap(0x1000, 0x1000)), libc::EINVAL);
    assert_eq!(errno(client.dma_unmap(0x2000, 0x8000)), libc::EINVAL);
    assert_eq!(errno(client.dma_unmap(u64::MAX, 2)), libc::EINVAL);
    assert!(rig.recorder.dma.read(0x1000, &mut [0; 0x2000]).is_ok());
}

#[test]
fn unmap_all_takes_address_and_size_0_only() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let file = memory_file(0x2000);
    client
        .dma_map(0x1000, 0x2000, RW, Some((file.as_fd(), 0)))
        .unwrap();
    for (flags, address, size) in [
        (2, 0x1000, 0x2000),
        (2, 0, 1),
        (1, 0, 0),
        (4, 0, 0),
        (0, 0, 0),
    ] {
        let mut payload: Vec<u8> = words([24, flags]).collect();
        payload.extend([address, size].into_iter().flat_map(u64::to_ne_bytes));
        client
            .send_raw(&message(3, Command::DMA_UNMAP, 0, &payload), &[])
            .unwrap();
        let reply = client.receive_raw().unwrap().header;
        assert_eq!(reply.error, libc::EINVAL as u32, "flags {flags}");
    }
    assert!(rig.recorder.dma.read(0x1000, &mut [0]).is_ok());
    client.unmap_all().unwrap();
    assert!(rig.recorder.dma.read(0x1000, &mut [0]).is_err());
}

#[test]
fn qemus_start_sends_maps_without_waiting_and_each_descriptor_finds_its_map() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let files: Vec<_> = (0..20).map(|_| memory_file(4096)).collect();
    for (n, file) in files.iter().enumerate() {
        // Two messages without descriptors in between, so that receives see them mixed.
        for _ in 0..2 {
            let info = message(200, Command::GET_INFO, NO_REPLY, &[0; 16]);
            client.send_raw(&info, &[]).unwrap();
        }
        let mut payload: Vec<u8> = words([32, 3]).collect();
        payload.extend(
            [0, n as u64 * 4096, 4096]
                .into_iter()
                .flat_map(u64::to_ne_bytes),
        );
        let bytes = message(n as u16, Command::DMA_MAP, 0, &payload);
        client.send_raw(&bytes, &[file.as_fd()]).unwrap();
    }
    for n in 0..20 {
        let reply = client.receive_raw().unwrap().header;
        assert_eq!((reply.id, reply.flags, reply.size), (n, TYPE_REPLY, 16));
    }
    for (n, file) in files.iter().enumerate() {
        rig.recorder
            .dma
            .write(n as u64 * 4096, &[n as u8 + 1])
            .unwrap();
        let mut byte = [0];
        rustix::io::pread(file, &mut byte, 0).unwrap();
        assert_eq!(byte[0], n as u8 + 1);
    }
}
