//! The guest's memory: where rings and buffers are.

use std::os::fd::AsFd;

use retrovf_pci::{DmaAccess, SharedMemory};
use retrovf_vfio_user::{Client, ClientMemory};

use crate::Result;

/// Guest-physical address of the memory, above what a PC uses for itself.
const BASE: u64 = 0x10_0000;
const SIZE: usize = 0x10_0000;

/// Rings come first, each with room for the largest that the driver takes.
pub(crate) const RING_ROOM: usize = 0x1_0000;
/// Bytes of a buffer: a frame with its header, in half a page.
pub(crate) const BUFFER_SIZE: usize = 2048;
/// Buffers of each queue.
pub(crate) const BUFFERS: u16 = 64;

/// Offset of the ring of a queue.
pub(crate) const fn ring(queue: u16) -> usize {
    queue as usize * RING_ROOM
}

/// Offset of a buffer of a queue.
pub(crate) const fn buffer(queue: u16, index: u16) -> usize {
    2 * RING_ROOM + (queue as usize * BUFFERS as usize + index as usize) * BUFFER_SIZE
}

const _: () = assert!(buffer(1, BUFFERS) <= SIZE);

#[derive(Debug)]
pub(crate) struct Ram(SharedMemory);

impl Ram {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(SharedMemory::anonymous(SIZE)?))
    }

    /// Offers the memory to the device: its file, or, without, by messages.
    pub(crate) fn map(&self, client: &mut Client, shared: bool) -> Result<()> {
        let file = shared.then(|| (self.0.fd().as_fd(), 0));
        client.dma_map(BASE, SIZE as u64, DmaAccess::READ_WRITE, file)?;
        Ok(())
    }

    /// The address of an offset as the device has it.
    pub(crate) const fn address(offset: usize) -> u64 {
        BASE + offset as u64
    }

    pub(crate) fn memory(&self) -> &SharedMemory {
        &self.0
    }

    fn offset(address: u64) -> Option<usize> {
        usize::try_from(address.checked_sub(BASE)?).ok()
    }
}

impl ClientMemory for Ram {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        Self::offset(address).is_some_and(|at| self.0.read(at, out).is_ok())
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        Self::offset(address).is_some_and(|at| self.0.write(at, data).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_outside_the_memory_are_refused() {
        let ram = Ram::new().unwrap();
        assert!(ram.write(BASE + 5, b"abc"));
        let mut out = [0; 3];
        assert!(ram.read(BASE + 5, &mut out));
        assert_eq!(&out, b"abc");
        assert!(!ram.read(BASE - 1, &mut out));
        assert!(!ram.write(BASE + SIZE as u64 - 2, b"abc"));
        assert!(!ram.read(u64::MAX, &mut out));
    }
}
