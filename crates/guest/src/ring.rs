//! The driver side of a legacy ring (virtio 1.4, "Legacy Interfaces: A Note on Virtqueue Layout").
//!
//! A buffer has two descriptors: one for the network header and one for the frame, since a device
//! that was not told of ANY_LAYOUT may insist on it ("Legacy Interface: Framing Requirements"). The
//! two are adjacent in memory, so a buffer is read as one piece.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use retrovf_spec::legacy::{ring_layout, RingLayout, PFN_SHIFT};
use retrovf_spec::virtio::ring::{
    DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, USED_ELEM_SIZE, USED_F_NO_NOTIFY,
};

use crate::ram::{self, Ram, BUFFERS, BUFFER_SIZE, RING_ROOM};
use crate::{Error, Result};

/// Largest ring that the driver takes: a hostile device could ask for 32768 entries.
const MAX_SIZE: u16 = 1024;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

#[derive(Debug)]
pub(crate) struct Ring {
    ram: Arc<Ram>,
    queue: u16,
    size: u16,
    base: usize,
    layout: RingLayout,
    header: usize,
    /// The device writes the buffers.
    receives: bool,
    avail: u16,
    used: u16,
    /// Which buffers the device has.
    lent: Vec<bool>,
}

/// A buffer that the device has given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) buffer: u16,
    pub(crate) len: usize,
}

impl Ring {
    /// An empty ring with room for `header` bytes in front of each frame. The device has been reset.
    pub(crate) fn new(
        ram: Arc<Ram>,
        queue: u16,
        size: u16,
        header: usize,
        receives: bool,
    ) -> Result<Self> {
        if !size.is_power_of_two() || !(2..=MAX_SIZE).contains(&size) {
            return Err(Error::Refused {
                reason: "a queue size is not a power of two from 2 to 1024",
            });
        }
        let base = ram::ring(queue);
        ram.memory().write(base, &[0; RING_ROOM])?;
        Ok(Self {
            ram,
            queue,
            size,
            base,
            layout: ring_layout(size),
            header,
            receives,
            avail: 0,
            used: 0,
            lent: vec![false; usize::from((size / 2).min(BUFFERS))],
        })
    }

    /// What the queue address register takes.
    pub(crate) fn pfn(&self) -> u32 {
        (Ram::address(self.base) >> PFN_SHIFT) as u32
    }

    /// A buffer that the device does not have.
    pub(crate) fn free(&self) -> Option<u16> {
        let at = self.lent.iter().position(|lent| !lent)?;
        u16::try_from(at).ok()
    }

    /// Lends a buffer with room for `len` bytes behind the header, or that many bytes of frame.
    pub(crate) fn lend(&mut self, buffer: u16, len: usize) -> Result<()> {
        let place = self.lent.get_mut(usize::from(buffer));
        *place.ok_or(BROKEN)? = true;
        let at = ram::buffer(self.queue, buffer);
        let head = 2 * buffer;
        let direction = if self.receives { DESC_F_WRITE } else { 0 };
        self.write_descriptor(head, at, self.header, direction | DESC_F_NEXT, head + 1)?;
        self.write_descriptor(head + 1, at + self.header, len, direction, 0)?;
        let memory = self.ram.memory();
        let avail = self.base + self.layout.avail as usize;
        let entry = usize::from(self.avail % self.size);
        memory.store_u16(avail + ENTRIES + 2 * entry, head)?;
        self.avail = self.avail.wrapping_add(1);
        // Release: the device sees the buffer before the index that covers it.
        memory.store_u16(avail + INDEX, self.avail)?;
        Ok(())
    }

    /// Lends all free buffers, whole.
    pub(crate) fn lend_all(&mut self) -> Result<()> {
        while let Some(buffer) = self.free() {
            self.lend(buffer, BUFFER_SIZE - self.header)?;
        }
        Ok(())
    }

    /// Whether the device wants a notification for what has been lent.
    pub(crate) fn wants_notification(&self) -> Result<bool> {
        // Publish, then look: the device does it the other way round, and both need a full fence.
        fence(Ordering::SeqCst);
        let flags = self
            .ram
            .memory()
            .load_u16(self.base + self.layout.used as usize)?;
        Ok(flags & USED_F_NO_NOTIFY == 0)
    }

    /// Takes a buffer back that the device is done with.
    pub(crate) fn take(&mut self) -> Result<Option<Used>> {
        let used = self.base + self.layout.used as usize;
        // Acquire: what the device wrote before it raised the index is visible below.
        let index = self.ram.memory().load_u16(used + INDEX)?;
        let outstanding = self.lent.iter().filter(|lent| **lent).count();
        match usize::from(index.wrapping_sub(self.used)) {
            0 => return Ok(None),
            new if new > outstanding => return Err(BROKEN),
            _ => {}
        }
        let entry = usize::from(self.used % self.size) * USED_ELEM_SIZE as usize;
        let mut element = [0; USED_ELEM_SIZE as usize];
        self.ram
            .memory()
            .read(used + ENTRIES + entry, &mut element)?;
        let word = u64::from_le_bytes(element);
        let (id, len) = (word as u32, (word >> 32) as u32);
        self.used = self.used.wrapping_add(1);
        let buffer = u16::try_from(id / 2)
            .ok()
            .filter(|_| id % 2 == 0)
            .ok_or(BROKEN)?;
        match self.lent.get_mut(usize::from(buffer)) {
            Some(lent) if *lent => *lent = false,
            _ => return Err(BROKEN),
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(BUFFER_SIZE);
        Ok(Some(Used { buffer, len }))
    }

    /// Copies from a buffer, header included.
    pub(crate) fn read(&self, buffer: u16, out: &mut [u8]) -> Result<()> {
        Ok(self
            .ram
            .memory()
            .read(ram::buffer(self.queue, buffer), out)?)
    }

    /// Fills a buffer: a header of zeroes, then the frame.
    pub(crate) fn fill(&self, buffer: u16, frame: &[u8]) -> Result<()> {
        let at = ram::buffer(self.queue, buffer);
        self.ram.memory().write(at, &[0; 12])?;
        Ok(self.ram.memory().write(at + self.header, frame)?)
    }

    fn write_descriptor(
        &self,
        index: u16,
        offset: usize,
        len: usize,
        flags: u16,
        next: u16,
    ) -> Result<()> {
        let mut bytes = [0; DESC_SIZE as usize];
        bytes[..8].copy_from_slice(&Ram::address(offset).to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = self.base + usize::from(index) * DESC_SIZE as usize;
        Ok(self.ram.memory().write(at, &bytes)?)
    }
}

const BROKEN: Error = Error::Device {
    reason: "its used ring holds what the driver never gave it",
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(size: u16) -> (Arc<Ram>, Ring) {
        let ram = Arc::new(Ram::new().unwrap());
        let ring = Ring::new(Arc::clone(&ram), 1, size, 12, false).unwrap();
        (ram, ring)
    }

    /// Plays the device: gives back `id`.
    fn use_one(ram: &Ram, ring: &Ring, index: u16, id: u32, len: u32) {
        let used = ring.base + ring.layout.used as usize;
        let entry = usize::from(index % ring.size) * 8;
        let memory = ram.memory();
        memory.write(used + 4 + entry, &id.to_le_bytes()).unwrap();
        memory.write(used + 8 + entry, &len.to_le_bytes()).unwrap();
        memory.store_u16(used + 2, index.wrapping_add(1)).unwrap();
    }

    #[test]
    fn rings_are_where_the_legacy_layout_has_them() {
        let (ram, mut ring) = ring(256);
        assert_eq!(ring.pfn(), 0x110);
        ring.lend(0, 60).unwrap();
        let memory = ram.memory();
        assert_eq!(memory.load_u16(ring.base + 4096 + 2).unwrap(), 1);
        let mut descriptors = [0; 32];
        memory.read(ring.base, &mut descriptors).unwrap();
        assert_eq!(descriptors[8..16], [12, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(descriptors[24..], [60, 0, 0, 0, 0, 0, 0, 0]);
        use_one(&ram, &ring, 0, 0, 0);
        assert_eq!(memory.load_u16(ring.base + 8192 + 2).unwrap(), 1);
        assert_eq!(ring.take().unwrap(), Some(Used { buffer: 0, len: 0 }));
    }

    #[test]
    fn buffers_go_round_past_the_wrap_of_the_index() {
        let (ram, mut ring) = ring(4);
        for n in 0..70_000u32 {
            let buffer = ring.free().unwrap();
            ring.lend(buffer, 60).unwrap();
            use_one(&ram, &ring, n as u16, u32::from(buffer) * 2, n % 100);
            let len = (n % 100) as usize;
            assert_eq!(ring.take().unwrap(), Some(Used { buffer, len }));
            assert_eq!(ring.take().unwrap(), None);
        }
    }

    #[test]
    fn queue_sizes_that_no_driver_takes_are_refused() {
        let ram = Arc::new(Ram::new().unwrap());
        for size in [0, 1, 3, 100, 2048, 32768, 0xffff] {
            let error = Ring::new(Arc::clone(&ram), 0, size, 12, true).unwrap_err();
            assert_eq!(error.code(), "ERR_GUEST_REFUSED", "{size}");
        }
    }

    proptest! {
        #[test]
        fn a_device_gives_back_only_what_it_has(id: u32, len: u32, index in 0u16..6) {
            let (ram, mut ring) = ring(8);
            ring.lend(0, 60).unwrap();
            ring.lend(2, 60).unwrap();
            use_one(&ram, &ring, index, id, len);
            let used = ring.base + ring.layout.used as usize;
            // Entry 0 is looked at first, whatever the index says.
            ram.memory().write(used + 4, &id.to_le_bytes()).unwrap();
            match ring.take() {
                Ok(Some(Used { buffer, len })) => {
                    prop_assert!(index < 2 && (id == 0 || id == 4));
                    prop_assert_eq!(u32::from(buffer) * 2, id);
                    prop_assert!(len <= BUFFER_SIZE);
                }
                Ok(None) => prop_assert!(false, "the index has moved"),
                Err(error) => prop_assert_eq!(error.code(), "ERR_GUEST_DEVICE"),
            }
        }
    }
}
