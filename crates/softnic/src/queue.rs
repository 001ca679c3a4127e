//! The device side of a split virtqueue in guest memory. Everything read from there is hostile: it
//! may be wrong, and it may change between two reads.

use std::sync::atomic::{fence, Ordering};

use retrovf_pci::DmaSpace;
use retrovf_spec::virtio::{feature, ring};

use crate::registers::QueueView;

/// Why a queue cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    /// Guest memory could not be reached; the device may just be halted.
    #[error(transparent)]
    Dma(#[from] retrovf_pci::Error),
    /// The driver broke a rule.
    #[error("The driver's ring is malformed: {0}")]
    Malformed(&'static str),
}

type Result<T> = std::result::Result<T, QueueError>;

/// Entries in an indirect table: as many as QEMU takes.
const MAX_INDIRECT: u32 = 1024;

/// One run of memory of a descriptor chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) len: u32,
}

/// A descriptor chain: what the device may read, then what it may write.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
}

impl Chain {
    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
    }

    pub(crate) fn readable_len(&self) -> u64 {
        self.readable.iter().map(|s| u64::from(s.len)).sum()
    }

    pub(crate) fn writable_len(&self) -> u64 {
        self.writable.iter().map(|s| u64::from(s.len)).sum()
    }

    /// Copies the readable part to `out`, at most `limit` bytes of it.
    pub(crate) fn read(&self, dma: &DmaSpace, out: &mut Vec<u8>, limit: usize) -> Result<()> {
        let len = usize::try_from(self.readable_len())
            .unwrap_or(limit)
            .min(limit);
        out.clear();
        out.resize(len, 0);
        let mut rest = out.as_mut_slice();
        for segment in &self.readable {
            let n = rest.len().min(segment.len as usize);
            let (now, later) = rest.split_at_mut(n);
            dma.read(segment.address, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies `data` to the writable part; what doesn't fit is dropped. Returns the bytes written.
    pub(crate) fn write(&self, dma: &DmaSpace, data: &[u8]) -> Result<usize> {
        let mut rest = data;
        for segment in &self.writable {
            let n = rest.len().min(segment.len as usize);
            let (now, later) = rest.split_at(n);
            dma.write(segment.address, now)?;
            rest = later;
        }
        Ok(data.len() - rest.len())
    }
}

/// The device's place in a split virtqueue. A copy taken before a batch undoes the batch: nothing is
/// visible to the driver until [`Ring::publish`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ring {
    epoch: Option<u32>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    event_idx: bool,
    indirect: bool,
    notify_on_empty: bool,
    /// Chains taken.
    next_avail: u16,
    /// The driver's index at the last look.
    seen: u16,
    /// Used elements written.
    next_used: u16,
    /// `next_used` when the driver was last told or last found to want no interrupt.
    signalled: Option<u16>,
    /// The driver was told not to notify.
    suppressed: bool,
}

impl Ring {
    /// Follows the registers: starts over if the queue did.
    pub(crate) fn attach(&mut self, view: &QueueView) {
        if self.epoch != Some(view.epoch) {
            *self = Self {
                epoch: Some(view.epoch),
                size: view.size,
                desc: view.desc,
                avail: view.avail,
                used: view.used,
                ..Self::default()
            };
        }
        // A legacy driver may negotiate after it set the queue up.
        self.event_idx = view.has(feature::RING_EVENT_IDX);
        self.indirect = view.has(feature::RING_INDIRECT_DESC);
        self.notify_on_empty = view.has(feature::NOTIFY_ON_EMPTY);
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next chain; false if there is none.
    pub(crate) fn pop(&mut self, dma: &DmaSpace, chain: &mut Chain) -> Result<bool> {
        self.seen = dma.load_u16(self.avail.wrapping_add(2))?;
        match self.seen.wrapping_sub(self.next_avail) {
            0 => return Ok(false),
            waiting if waiting > self.size => {
                return Err(QueueError::Malformed("the available index ran ahead"))
            }
            _ => {}
        }
        let slot = u64::from(self.next_avail % self.size);
        let head = dma.load_u16(self.avail.wrapping_add(4 + 2 * slot))?;
        chain.clear(head);
        self.collect(dma, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Follows the descriptors of a chain. A chain has no more descriptors than its table, so a
    /// loop is one that goes on after that many.
    fn collect(&self, dma: &DmaSpace, chain: &mut Chain) -> Result<()> {
        let mut table = self.desc;
        let mut entries = u32::from(self.size);
        let mut index = chain.head;
        let mut steps = 0;
        let mut indirect = false;
        loop {
            if u32::from(index) >= entries {
                return Err(QueueError::Malformed("a descriptor index is out of range"));
            }
            steps += 1;
            if steps > entries {
                return Err(QueueError::Malformed("a descriptor chain loops"));
            }
            let descriptor = Descriptor::read(dma, table, index)?;
            if descriptor.has(ring::DESC_F_INDIRECT) {
                if !self.indirect || indirect || descriptor.has(ring::DESC_F_NEXT) {
                    return Err(QueueError::Malformed(
                        "an indirect descriptor is out of place",
                    ));
                }
                entries = descriptor.len / ring::DESC_SIZE as u32;
                let ragged = !descriptor.len.is_multiple_of(ring::DESC_SIZE as u32);
                if entries == 0 || entries > MAX_INDIRECT || ragged {
                    return Err(QueueError::Malformed("an indirect table has a bad size"));
                }
                (table, index, steps, indirect) = (descriptor.address, 0, 0, true);
                continue;
            }
            let segment = Segment {
                address: descriptor.address,
                len: descriptor.len,
            };
            if descriptor.has(ring::DESC_F_WRITE) {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::Malformed(
                    "a readable descriptor follows a writable one",
                ));
            }
            if !descriptor.has(ring::DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    /// Gives a chain back with `len` bytes written to it. The driver sees it after `publish`.
    pub(crate) fn push_used(&mut self, dma: &DmaSpace, head: u16, len: usize) -> Result<()> {
        let slot = u64::from(self.next_used % self.size);
        let mut element = [0; ring::USED_ELEM_SIZE as usize];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        element[4..].copy_from_slice(&len.to_le_bytes());
        let at = self.used.wrapping_add(4 + ring::USED_ELEM_SIZE * slot);
        dma.write(at, &element)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was pushed.
    pub(crate) fn publish(&self, dma: &DmaSpace) -> Result<()> {
        Ok(dma.store_u16(self.used.wrapping_add(2), self.next_used)?)
    }

    /// Whether the driver wants an interrupt for what was published since the last call that
    /// succeeded.
    pub(crate) fn wants_interrupt(&mut self, dma: &DmaSpace) -> Result<bool> {
        if self.untold() == 0 {
            return Ok(false);
        }
        let new = self.next_used;
        // Pairs with the driver's barrier: it writes its wish and then looks at the used index.
        fence(Ordering::SeqCst);
        let wanted = match self.signalled {
            None => true,
            Some(_) if self.notify_on_empty && self.is_empty(dma)? => true,
            Some(old) if self.event_idx => {
                let at = self.avail.wrapping_add(4 + 2 * u64::from(self.size));
                crosses(dma.load_u16(at)?, old, new)
            }
            Some(_) => dma.load_u16(self.avail)? & ring::AVAIL_F_NO_INTERRUPT == 0,
        };
        self.signalled = Some(new);
        Ok(wanted)
    }

    /// Chains given back since the driver was last told, or found not to care.
    pub(crate) fn untold(&self) -> u16 {
        self.next_used.wrapping_sub(self.signalled.unwrap_or(0))
    }

    fn is_empty(&self, dma: &DmaSpace) -> Result<bool> {
        Ok(dma.load_u16(self.avail.wrapping_add(2))? == self.next_avail)
    }

    /// Asks the driver not to notify while the queue is being served.
    pub(crate) fn suppress_notify(&mut self, dma: &DmaSpace) -> Result<()> {
        if !self.event_idx && !self.suppressed {
            dma.store_u16(self.used, ring::USED_F_NO_NOTIFY)?;
            self.suppressed = true;
        }
        Ok(())
    }

    /// Asks the driver to notify about chains after those seen. Returns true if there are some
    /// already, in which case it may not notify.
    pub(crate) fn enable_notify(&mut self, dma: &DmaSpace) -> Result<bool> {
        if self.event_idx {
            let at = self
                .used
                .wrapping_add(4 + ring::USED_ELEM_SIZE * u64::from(self.size));
            dma.store_u16(at, self.seen)?;
        } else if self.suppressed {
            dma.store_u16(self.used, 0)?;
            self.suppressed = false;
        }
        // Pairs with the driver's barrier: it writes its index and then looks at our wish.
        fence(Ordering::SeqCst);
        Ok(dma.load_u16(self.avail.wrapping_add(2))? != self.seen)
    }

    /// Keeps what the driver has been told when a batch is undone.
    pub(crate) fn undo(&mut self, before: Self) {
        *self = Self {
            seen: self.seen,
            suppressed: self.suppressed,
            ..before
        };
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.4, "Used Buffer
/// Notification Suppression").
fn crosses(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(dma: &DmaSpace, table: u64, index: u16) -> Result<Self> {
        let mut bytes = [0; ring::DESC_SIZE as usize];
        let at = table.wrapping_add(ring::DESC_SIZE * u64::from(index));
        dma.read(at, &mut bytes)?;
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Ok(Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::Role;
    use proptest::prelude::*;
    use retrovf_pci::{DmaAccess, DmaBacking, DmaMapping, SharedMemory};
    use std::sync::Arc;

    const SIZE: u16 = 4;
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const LEN: usize = 0x4000;

    fn ring(features: u64) -> (DmaSpace, Ring) {
        let dma = DmaSpace::new();
        let memory = Arc::new(SharedMemory::anonymous(LEN).unwrap());
        let mapping = DmaMapping {
            size: LEN as u64,
            access: DmaAccess::READ_WRITE,
            backing: DmaBacking::Shared { memory, offset: 0 },
        };
        dma.map(0, mapping).unwrap();
        let mut ring = Ring::default();
        ring.attach(&QueueView {
            index: 0,
            role: Role::Transmit,
            epoch: 1,
            size: SIZE,
            desc: 0,
            avail: AVAIL,
            used: USED,
            vector: 0,
            features,
        });
        (dma, ring)
    }

    fn describe(dma: &DmaSpace, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        dma.write(16 * index, &bytes).unwrap();
    }

    fn offer(dma: &DmaSpace, heads: &[u16]) {
        let index = dma.load_u16(AVAIL + 2).unwrap();
        for (i, head) in heads.iter().enumerate() {
            let slot = u64::from(index.wrapping_add(i as u16) % SIZE);
            dma.store_u16(AVAIL + 4 + 2 * slot, *head).unwrap();
        }
        let new = index.wrapping_add(heads.len() as u16);
        dma.store_u16(AVAIL + 2, new).unwrap();
    }

    #[test]
    fn chains_are_split_into_readable_and_writable_runs() {
        let (dma, mut ring) = ring(0);
        describe(&dma, 0, 0x3000, 8, 1, 2);
        describe(&dma, 2, 0x3100, 8, 3, 1);
        describe(&dma, 1, 0x3200, 4, 2, 0);
        offer(&dma, &[0]);
        let mut chain = Chain::default();
        assert!(ring.pop(&dma, &mut chain).unwrap());
        assert_eq!((chain.readable_len(), chain.writable_len()), (8, 12));
        assert_eq!(chain.write(&dma, &[7; 20]).unwrap(), 12);
        assert!(!ring.pop(&dma, &mut chain).unwrap());
    }

    #[test]
    fn malformed_chains_are_refused() {
        let indirect = 1 << feature::RING_INDIRECT_DESC;
        type Setup = fn(&DmaSpace);
        let cases: [(u64, Setup, &str); 9] = [
            (0, |dma| describe(dma, 0, 0, 8, 1, 0), "loops"),
            (0, |dma| describe(dma, 0, 0, 8, 1, SIZE), "out of range"),
            (0, |dma| offer(dma, &[SIZE]), "out of range"),
            (
                0,
                |dma| dma.store_u16(AVAIL + 2, SIZE + 2).unwrap(),
                "ran ahead",
            ),
            (0, |dma| describe(dma, 0, 0x3000, 16, 4, 0), "out of place"),
            (
                indirect,
                |dma| describe(dma, 0, 0x3000, 24, 4, 0),
                "bad size",
            ),
            (
                indirect,
                |dma| describe(dma, 0, 0x3000, 0x10_0000, 4, 0),
                "bad size",
            ),
            (
                indirect,
                |dma| {
                    describe(dma, 0, 16, 16, 4, 0);
                    describe(dma, 1, 0x3000, 16, 4, 0);
                },
                "out of place",
            ),
            (
                0,
                |dma| {
                    describe(dma, 0, 0x3000, 8, 3, 1);
                    describe(dma, 1, 0x3000, 8, 0, 0);
                },
                "follows a writable",
            ),
        ];
        for (features, setup, expected) in cases {
            let (dma, mut ring) = ring(features);
            setup(&dma);
            if dma.load_u16(AVAIL + 2).unwrap() == 0 {
                offer(&dma, &[0]);
            }
            let error = ring.pop(&dma, &mut Chain::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error} / {expected}");
        }
    }

    #[test]
    fn interrupts_follow_used_event_across_the_wrap() {
        assert!(crosses(5, 5, 6) && !crosses(6, 5, 6) && !crosses(4, 5, 6));
        assert!(crosses(0xffff, 0xfffe, 1) && crosses(0, 0xffff, 2) && !crosses(2, 0xffff, 2));
        let (dma, mut ring) = ring(1 << feature::RING_EVENT_IDX);
        ring.next_used = 0xfffe;
        ring.signalled = Some(0xfffe);
        let event = AVAIL + 4 + 2 * u64::from(SIZE);
        dma.store_u16(event, 0).unwrap();
        for (used, wanted) in [(0xffff, false), (0, false), (1, true), (2, false)] {
            ring.push_used(&dma, 0, 0).unwrap();
            assert_eq!(ring.next_used, used);
            assert_eq!(ring.wants_interrupt(&dma).unwrap(), wanted, "at {used}");
        }
    }

    #[test]
    fn interrupts_follow_the_flag_and_an_empty_queue_overrides_it_if_negotiated() {
        for (features, wanted) in [(0, false), (1 << feature::NOTIFY_ON_EMPTY, true)] {
            let (dma, mut ring) = ring(features);
            ring.push_used(&dma, 0, 0).unwrap();
            assert!(ring.wants_interrupt(&dma).unwrap());
            dma.store_u16(AVAIL, 1).unwrap();
            ring.push_used(&dma, 0, 0).unwrap();
            assert_eq!(ring.wants_interrupt(&dma).unwrap(), wanted);
        }
    }

    #[test]
    fn the_driver_is_asked_to_notify_about_what_was_not_seen() {
        let (dma, mut ring) = ring(1 << feature::RING_EVENT_IDX);
        describe(&dma, 0, 0x3000, 8, 0, 0);
        offer(&dma, &[0, 0]);
        let mut chain = Chain::default();
        ring.pop(&dma, &mut chain).unwrap();
        assert!(!ring.enable_notify(&dma).unwrap());
        let avail_event = USED + 4 + 8 * u64::from(SIZE);
        assert_eq!(dma.load_u16(avail_event).unwrap(), 2);
        offer(&dma, &[0]);
        assert!(ring.enable_notify(&dma).unwrap());
    }

    #[test]
    fn notifications_are_switched_by_flag_without_event_idx() {
        let (dma, mut ring) = ring(0);
        ring.suppress_notify(&dma).unwrap();
        assert_eq!(dma.load_u16(USED).unwrap(), 1);
        ring.enable_notify(&dma).unwrap();
        assert_eq!(dma.load_u16(USED).unwrap(), 0);
    }

    #[test]
    fn an_undone_batch_starts_again_at_the_same_chain() {
        let (dma, mut ring) = ring(0);
        describe(&dma, 0, 0x3000, 8, 0, 0);
        offer(&dma, &[0]);
        let before = ring;
        let mut chain = Chain::default();
        ring.pop(&dma, &mut chain).unwrap();
        ring.push_used(&dma, chain.head, 0).unwrap();
        ring.undo(before);
        assert!(ring.pop(&dma, &mut chain).unwrap());
        ring.push_used(&dma, chain.head, 0).unwrap();
        ring.publish(&dma).unwrap();
        assert_eq!(dma.load_u16(USED + 2).unwrap(), 1);
    }

    proptest! {
        #[test]
        fn no_memory_content_makes_the_ring_panic_or_spin(
            bytes in proptest::collection::vec(any::<u8>(), LEN),
            features in any::<u64>(),
        ) {
            let (dma, mut ring) = ring(features);
            dma.write(0, &bytes).unwrap();
            let mut chain = Chain::default();
            let mut data = Vec::new();
            for _ in 0..8 {
                match ring.pop(&dma, &mut chain) {
                    Ok(true) => {
                        prop_assert!(chain.readable.len() + chain.writable.len() <= 4 + 1024);
                        let _ = chain.read(&dma, &mut data, 70_000);
                        prop_assert!(data.len() <= 70_000);
                        let _ = chain.write(&dma, &[0; 12]);
                    }
                    Ok(false) => break,
                    Err(_) => break,
                }
            }
        }
    }
}
