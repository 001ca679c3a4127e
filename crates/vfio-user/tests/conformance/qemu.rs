//! QEMU 10.2's client from start to machine reset, message by message.

use std::os::fd::{AsFd, BorrowedFd};

use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{Client, RawMessage};

use crate::fixture::{eventfd, memory_file, message, Rig, Setup, MSIX};

/// QEMU's half of a connection.
struct Qemu {
    client: Client,
    id: u16,
}

impl Qemu {
    fn send(&mut self, command: Command, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.id += 1;
        let bytes = message(self.id, command, flags, payload);
        self.client.send_raw(&bytes, fds).unwrap();
    }

    /// A command that QEMU waits for, into a buffer of its own size or of `room`: a longer reply would
    /// cost it the connection.
    fn wait(
        &mut self,
        command: Command,
        payload: &[u8],
        room: usize,
        fds: &[BorrowedFd<'_>],
    ) -> RawMessage {
        self.send(command, 0, payload, fds);
        let reply = self.client.receive_raw().unwrap();
        assert_eq!((reply.header.id, reply.header.command), (self.id, command));
        assert_eq!(reply.header.flags & TYPE_MASK, TYPE_REPLY);
        let buffer = HEADER_SIZE + payload.len().max(room);
        assert!(reply.header.size as usize <= buffer, "{command}");
        assert!(reply.fds.is_empty());
        // QEMU takes ERROR with errno 0 for success.
        assert_eq!(reply.header.flags & ERROR != 0, reply.header.error != 0);
        reply
    }

    fn ok(&mut self, command: Command, payload: &[u8]) -> Vec<u8> {
        let reply = self.wait(command, payload, 0, &[]);
        assert_eq!(reply.header.error, 0, "{command}");
        reply.payload
    }

    fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let access = RegionAccess {
            offset,
            region,
            count,
        };
        let room = ACCESS_SIZE + count as usize;
        let reply = self.wait(Command::REGION_READ, &access.encode(), room, &[]);
        assert_eq!(reply.header.error, 0, "region {region} at {offset:#x}");
        assert_eq!(RegionAccess::parse(&reply.payload), Some(access));
        reply.payload[ACCESS_SIZE..].to_vec()
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8], flags: u32) {
        let access = RegionAccess {
            offset,
            region,
            count: data.len() as u32,
        };
        let payload = [&access.encode()[..], data].concat();
        if flags & NO_REPLY != 0 {
            self.send(Command::REGION_WRITE, flags, &payload, &[]);
            return;
        }
        let reply = self.ok(Command::REGION_WRITE, &payload);
        assert_eq!(RegionAccess::parse(&reply), Some(access));
    }

    fn set_irqs(&mut self, flags: u32, index: u32, start: u32, count: u32, fds: &[BorrowedFd<'_>]) {
        // argsz is always 20.
        let payload: Vec<u8> = words([20, flags, index, start, count]).collect();
        let reply = self.wait(Command::SET_IRQS, &payload, 0, fds);
        assert_eq!(reply.header.error, 0);
    }
}

fn dma_map(offset: u64, address: u64, size: u64, flags: u32) -> Vec<u8> {
    let mut payload: Vec<u8> = words([32, flags]).collect();
    payload.extend(
        [offset, address, size]
            .into_iter()
            .flat_map(u64::to_ne_bytes),
    );
    payload
}

#[test]
fn realize_run_and_machine_reset() {
    let rig = Rig::new(Setup::default());
    let mut qemu = Qemu {
        client: rig.raw(),
        id: 0,
    };
    let version = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\
        \"max_dma_maps\":65535,\"pgsizes\":4096,\"migration\":{\"pgsize\":4096,\
        \"max_bitmap_size\":268435456},\"write_multiple\":true}}\0";
    qemu.ok(Command::VERSION, version);

    // All guest memory before GET_INFO, with only the last map waited for; a ROM is read-only.
    let ram = memory_file(0x20_0000);
    for (offset, address, size, flags) in [
        (0, 0, 0xc_0000, 3),
        (0xc_0000, 0xc_0000, 0x4_0000, 1),
        (0x10_0000, 0x10_0000, 0x8_0000, 3),
    ] {
        let payload = dma_map(offset, address, size, flags);
        qemu.send(Command::DMA_MAP, 0, &payload, &[ram.as_fd()]);
    }
    let last = dma_map(0x18_0000, 0x18_0000, 0x8_0000, 3);
    qemu.send(Command::DMA_MAP, 0, &last, &[ram.as_fd()]);
    for id in 2..=5 {
        let reply = qemu.client.receive_raw().unwrap().header;
        assert_eq!((reply.id, reply.flags), (id, TYPE_REPLY));
    }

    let info = qemu.ok(
        Command::GET_INFO,
        &words([16, 0, 0, 0]).collect::<Vec<u8>>(),
    );
    assert_eq!(u32_at(&info, 4), Some(DEVICE_RESETS | DEVICE_PCI));
    assert!((8..100).contains(&u32_at(&info, 8).unwrap()));
    assert!((3..50).contains(&u32_at(&info, 12).unwrap()));
    for region in [0, 1, 2, 3, 4, 5, 7] {
        let request: Vec<u8> = words([32, 0, region, 0, 0, 0, 0, 0]).collect();
        let info = qemu.ok(Command::REGION_INFO, &request);
        let size = u64_at(&info, 16).unwrap();
        assert!(size == 0 || size.is_power_of_two(), "region {region}");
        assert_eq!(
            u32_at(&info, 4).unwrap() & !(REGION_READABLE | REGION_WRITABLE),
            0
        );
    }
    for index in [3, 2, 0] {
        let request: Vec<u8> = words([16, 0, index, 0]).collect();
        let info = qemu.ok(Command::IRQ_INFO, &request);
        assert_eq!(u32_at(&info, 4).unwrap() & IRQ_NORESIZE, 0);
    }

    // Configuration space in one read, the probe of the ROM, the kinds of the BARs.
    assert_eq!(qemu.read(7, 0, 256)[..4], [0xf4, 0x1a, 0x00, 0x10]);
    let rom = qemu.read(7, 0x30, 4);
    qemu.write(7, 0x30, &[0xff; 4], 0);
    qemu.read(7, 0x30, 4);
    qemu.write(7, 0x30, &rom, 0);
    assert_eq!(qemu.read(7, 0x10, 4)[0] & 1, 1);
    assert_eq!(qemu.read(7, 0x20, 4)[0] & 1, 0);
    qemu.read(7, u64::from(MSIX) + 2, 2);
    qemu.read(7, 0x3d, 1);
    let error = eventfd();
    qemu.set_irqs(
        IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER,
        3,
        0,
        1,
        &[error.as_fd()],
    );

    // The guest: BAR writes are forwarded though QEMU emulates their reads, COMMAND is read back.
    qemu.write(7, 0x10, &[0xff; 4], 0);
    qemu.write(7, 0x10, &0xc001u32.to_le_bytes(), 0);
    qemu.write(7, 4, &[7, 0], 0);
    assert_eq!(qemu.read(7, 4, 2), [7, 0]);
    assert_eq!(qemu.read(0, 0, 4).len(), 4);
    qemu.write(0, 18, &[1], 0);
    // MSI-X: the configuration write first, then one vector without descriptor, then the vectors.
    qemu.write(7, u64::from(MSIX) + 2, &[4, 0x80], 0);
    assert!(rig.device.msix_enabled());
    let trigger = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
    qemu.set_irqs(trigger, 2, 0, 1, &[]);
    let vectors: Vec<_> = (0..3).map(|_| eventfd()).collect();
    for (n, vector) in (0..).zip(&vectors) {
        qemu.set_irqs(trigger, 2, n, 1, &[vector.as_fd()]);
    }
    // Kicks of port I/O are full round trips, writes to memory BARs are posted, and the PBA is read.
    qemu.write(0, 16, &[1, 0], 0);
    qemu.write(4, 0x1000, &[1, 2, 3, 4], NO_REPLY);
    assert_eq!(qemu.read(4, 0x1000, 8), [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(rig.kicks(), [1]);

    // Machine reset.
    qemu.set_irqs(IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, 2, 0, 0, &[]);
    qemu.write(7, 4, &[0, 0], 0);
    qemu.ok(Command::RESET, &[]);
    for bar in 0..6 {
        qemu.write(7, 0x10 + 4 * bar, &[0; 4], 0);
    }
    assert!(!rig.device.io_enabled());
    // The memory is still the guest's.
    rig.recorder.dma.write(0x18_0000, b"ram").unwrap();
    let mut out = [0; 3];
    rustix::io::pread(&ram, &mut out, 0x18_0000).unwrap();
    assert_eq!(&out, b"ram");

    // A memory region goes in one unmap, and everything with flag 2.
    let mut unmap: Vec<u8> = words([24, 0]).collect();
    unmap.extend([0u64, 0x100_0000].into_iter().flat_map(u64::to_ne_bytes));
    assert_eq!(qemu.ok(Command::DMA_UNMAP, &unmap), unmap);
    let all: Vec<u8> = words([24, UNMAP_ALL, 0, 0, 0, 0]).collect();
    assert_eq!(qemu.ok(Command::DMA_UNMAP, &all), all);
    assert_eq!(rig.device.counters().protocol_errors, 0);
}
