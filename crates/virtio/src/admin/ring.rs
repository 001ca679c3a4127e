//! The driver side of a split ring (virtio 1.4, "Split Virtqueues") with a fixed slot for each
//! command: descriptor 2n is the readable part of slot n, 2n + 1 the writable part.
//!
//! The device can write all of the memory, so nothing is read back but the used ring, and of that
//! nothing is believed.

use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;

use retrovf_pci::SharedMemory;
use retrovf_spec::virtio::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, USED_ELEM_SIZE, USED_F_NO_NOTIFY,
};

/// Most bytes of each part of a command.
pub(crate) const PART_LIMIT: usize = 512;
const SLOT_SIZE: usize = 2 * PART_LIMIT;
const PAGE: usize = 4096;

/// Offsets within the memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    size: u16,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    slots: usize,
    pub(crate) total: usize,
}

/// Flags, then index, then entries; so in both rings.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

impl Layout {
    /// `size` is a power of two, and at least 2.
    pub(crate) fn new(size: u16) -> Self {
        let n = usize::from(size);
        let avail = n * DESC_SIZE as usize;
        let used = (avail + ENTRIES + 2 * n + 2).next_multiple_of(4);
        let slots = (used + ENTRIES + n * USED_ELEM_SIZE as usize + 2).next_multiple_of(64);
        Self {
            size,
            avail,
            used,
            slots,
            total: (slots + n / 2 * SLOT_SIZE).next_multiple_of(PAGE),
        }
    }

    pub(crate) fn slot_count(&self) -> u16 {
        self.size / 2
    }

    fn readable(&self, slot: u16) -> usize {
        self.slots + usize::from(slot) * SLOT_SIZE
    }

    fn writable(&self, slot: u16) -> usize {
        self.readable(slot) + PART_LIMIT
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    memory: Arc<SharedMemory>,
    layout: Layout,
    iova: u64,
    /// Whether answers interrupt at all.
    interrupts: bool,
    /// Commands made available, ever, modulo 2^16; likewise those found used.
    avail: u16,
    used: u16,
}

/// The device broke the rules of the ring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl From<retrovf_pci::Error> for Broken {
    // All offsets are ours and in range, so an error here is as good as a broken ring.
    fn from(_: retrovf_pci::Error) -> Self {
        Self
    }
}

impl Ring {
    /// `memory` is zeroed and has `layout.total` bytes, which the device sees at `iova`.
    pub(crate) fn new(
        memory: Arc<SharedMemory>,
        layout: Layout,
        iova: u64,
        interrupts: bool,
    ) -> Result<Self, Broken> {
        if !interrupts {
            memory.store_u16(layout.avail + FLAGS, AVAIL_F_NO_INTERRUPT)?;
        }
        Ok(Self {
            memory,
            layout,
            iova,
            interrupts,
            avail: 0,
            used: 0,
        })
    }

    /// Makes a command available to the device.
    pub(crate) fn publish(
        &mut self,
        slot: u16,
        readable: &[u8],
        writable: usize,
    ) -> Result<(), Broken> {
        let (from, to) = (self.layout.readable(slot), self.layout.writable(slot));
        self.memory.write(from, readable)?;
        // The answer to an earlier command must not show through if the device claims more bytes
        // than it writes.
        self.memory
            .write(to, [0; PART_LIMIT].get(..writable).ok_or(Broken)?)?;

        let head = 2 * slot;
        self.write_descriptor(head, from, readable.len(), DESC_F_NEXT, head + 1)?;
        self.write_descriptor(head + 1, to, writable, DESC_F_WRITE, 0)?;
        let entry = usize::from(self.avail % self.layout.size);
        let entries = self.layout.avail + ENTRIES;
        self.memory.store_u16(entries + 2 * entry, head)?;
        self.avail = self.avail.wrapping_add(1);
        // Release: the device sees the command before the index that covers it.
        self.memory
            .store_u16(self.layout.avail + INDEX, self.avail)?;
        Ok(())
    }

    fn write_descriptor(
        &self,
        index: u16,
        offset: usize,
        len: usize,
        flags: u16,
        next: u16,
    ) -> Result<(), Broken> {
        let mut bytes = [0; DESC_SIZE as usize];
        bytes[..8].copy_from_slice(&(self.iova + offset as u64).to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = usize::from(index) * DESC_SIZE as usize;
        Ok(self.memory.write(at, &bytes)?)
    }

    /// Whether the device wants a notification for what has been published.
    pub(crate) fn wants_notification(&self) -> bool {
        // The device clears its flag and then looks for commands; we publish and then look at the
        // flag. Both need a full fence in between, or each could miss the other.
        fence(Ordering::SeqCst);
        let flags = self.memory.load_u16(self.layout.used + FLAGS);
        flags.is_ok_and(|flags| flags & USED_F_NO_NOTIFY == 0)
    }

    /// Asks the device to interrupt, or not to, for a time during which the used ring is going to be
    /// looked at anyway. Look once more after switching interrupts on.
    pub(crate) fn want_interrupts(&self, on: bool) -> Result<(), Broken> {
        if self.interrupts {
            let flags = if on { 0 } else { AVAIL_F_NO_INTERRUPT };
            self.memory.store_u16(self.layout.avail + FLAGS, flags)?;
            // The device raises its index and then looks at our flag; we change the flag and then
            // look at the index. With full fences on both sides one of us sees the other.
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    /// The next command that the device has finished: its slot and how many bytes it wrote.
    /// `outstanding` is how many it holds.
    pub(crate) fn next_used(&mut self, outstanding: usize) -> Result<Option<(u16, u32)>, Broken> {
        // Acquire: what the device wrote before it raised the index is visible below.
        let index = self.memory.load_u16(self.layout.used + INDEX)?;
        match usize::from(index.wrapping_sub(self.used)) {
            0 => return Ok(None),
            new if new > outstanding => return Err(Broken),
            _ => {}
        }
        let entry = usize::from(self.used % self.layout.size) * USED_ELEM_SIZE as usize;
        let mut element = [0; USED_ELEM_SIZE as usize];
        self.memory
            .read(self.layout.used + ENTRIES + entry, &mut element)?;
        let word = u64::from_le_bytes(element);
        let (id, len) = (word as u32, (word >> 32) as u32);
        self.used = self.used.wrapping_add(1);
        match u16::try_from(id) {
            Ok(head) if head < self.layout.size && head % 2 == 0 => Ok(Some((head / 2, len))),
            _ => Err(Broken),
        }
    }

    /// The first `len` bytes of a slot's writable part.
    pub(crate) fn answer(&self, slot: u16, len: usize) -> Result<Vec<u8>, Broken> {
        let mut bytes = vec![0; len.min(PART_LIMIT)];
        self.memory.read(self.layout.writable(slot), &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(size: u16) -> (Arc<SharedMemory>, Layout, Ring) {
        let layout = Layout::new(size);
        let memory = Arc::new(SharedMemory::anonymous(layout.total).unwrap());
        let ring = Ring::new(Arc::clone(&memory), layout, 0x10_0000, true).unwrap();
        (memory, layout, ring)
    }

    #[test]
    fn parts_of_the_layout_are_aligned_and_do_not_overlap() {
        for size in (1..=10).map(|n| 1 << n) {
            let n = usize::from(size);
            let layout = Layout::new(size);
            assert!(16 * n <= layout.avail && layout.avail.is_multiple_of(2));
            assert!(layout.avail + 6 + 2 * n <= layout.used && layout.used.is_multiple_of(4));
            assert!(layout.used + 6 + 8 * n <= layout.slots);
            assert!(layout.writable(layout.slot_count() - 1) + PART_LIMIT <= layout.total);
        }
    }

    #[test]
    fn a_command_is_a_chain_of_a_readable_and_a_writable_descriptor() {
        let (memory, layout, mut ring) = ring(8);
        ring.publish(1, b"question", 24).unwrap();
        let mut descriptors = [0; 32];
        memory.read(2 * 16, &mut descriptors).unwrap();
        let (read, write) = descriptors.split_at(16);
        assert_eq!(read[8..], [8, 0, 0, 0, 1, 0, 3, 0]);
        assert_eq!(write[8..], [24, 0, 0, 0, 2, 0, 0, 0]);
        let address = u64::from_le_bytes(read[..8].try_into().unwrap());
        let mut text = [0; 8];
        memory
            .read((address - 0x10_0000) as usize, &mut text)
            .unwrap();
        assert_eq!(&text, b"question");
        assert_eq!(memory.load_u16(layout.avail + INDEX).unwrap(), 1);
        assert_eq!(memory.load_u16(layout.avail + ENTRIES).unwrap(), 2);
    }

    #[test]
    fn the_device_can_ask_not_to_be_notified() {
        let (memory, layout, ring) = ring(8);
        assert!(ring.wants_notification());
        memory.store_u16(layout.used, USED_F_NO_NOTIFY).unwrap();
        assert!(!ring.wants_notification());
    }

    #[test]
    fn a_ring_without_interrupts_never_asks_for_one() {
        let layout = Layout::new(8);
        let memory = Arc::new(SharedMemory::anonymous(layout.total).unwrap());
        let ring = Ring::new(Arc::clone(&memory), layout, 0, false).unwrap();
        assert_eq!(memory.load_u16(layout.avail).unwrap(), AVAIL_F_NO_INTERRUPT);
        ring.want_interrupts(true).unwrap();
        assert_eq!(memory.load_u16(layout.avail).unwrap(), AVAIL_F_NO_INTERRUPT);
    }

    proptest! {
        #[test]
        fn no_used_ring_yields_a_slot_that_does_not_exist(
            index: u16,
            id: u32,
            len: u32,
            outstanding in 0usize..8,
        ) {
            let (memory, layout, mut ring) = ring(8);
            memory.store_u16(layout.used + INDEX, index).unwrap();
            for entry in 0..8 {
                let at = layout.used + ENTRIES + 8 * entry;
                memory.write(at, &id.to_le_bytes()).unwrap();
                memory.write(at + 4, &len.to_le_bytes()).unwrap();
            }
            match ring.next_used(outstanding) {
                Ok(None) => prop_assert_eq!(index, 0),
                Ok(Some((slot, _))) => {
                    prop_assert!(usize::from(index) <= outstanding);
                    prop_assert_eq!(u32::from(slot) * 2, id);
                    prop_assert!(slot < layout.slot_count());
                }
                Err(Broken) => {
                    prop_assert!(usize::from(index) > outstanding || id >= 8 || id % 2 == 1);
                }
            }
        }
    }
}
