use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Error, Result, SharedMemory};

/// What a device may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaAccess {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

impl DmaAccess {
    /// Both directions.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };
}

/// Memory that only its owner can touch: a vfio-user client's guest memory that came without a file
/// descriptor, reached with DMA_READ and DMA_WRITE messages.
pub trait RemoteMemory: Send + Sync {
    /// Reads at the peer's address. Returns within a bounded time, and at once with an error when
    /// `cancel` is set and [`RemoteMemory::wake`] is called.
    fn read(&self, address: u64, out: &mut [u8], cancel: &AtomicBool) -> Result<()>;
    /// Writes at the peer's address, as [`RemoteMemory::read`].
    fn write(&self, address: u64, data: &[u8], cancel: &AtomicBool) -> Result<()>;
    /// Makes waiting calls look at their `cancel` flag again.
    fn wake(&self);
}

/// What is behind a DMA mapping.
#[derive(Clone)]
pub enum DmaBacking {
    /// Mapped memory, from `offset` on.
    Shared {
        /// The memory.
        memory: Arc<SharedMemory>,
        /// First byte.
        offset: u64,
    },
    /// The peer's memory; addresses are those of the device.
    Remote(Arc<dyn RemoteMemory>),
}

impl fmt::Debug for DmaBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared { .. } => "Shared",
            Self::Remote(_) => "Remote",
        })
    }
}

/// A range of memory given to a device.
#[derive(Debug, Clone)]
pub struct DmaMapping {
    /// Bytes.
    pub size: u64,
    /// Allowed directions.
    pub access: DmaAccess,
    /// The memory.
    pub backing: DmaBacking,
}

/// The address space of an emulated device: what an IOMMU is to hardware.
///
/// Mappings come and go from one thread while the device works on others. Removing a mapping waits
/// for copies under way (short), never for a remote peer.
#[derive(Debug)]
pub struct DmaSpace {
    maps: RwLock<BTreeMap<u64, DmaMapping>>,
    halted: AtomicBool,
    limit: usize,
}

impl Default for DmaSpace {
    fn default() -> Self {
        Self::with_limit(MAX_MAPPINGS)
    }
}

/// As many mappings as `dma_entry_limit` of the kernel's type1 driver allows by default.
const MAX_MAPPINGS: usize = 65535;

impl DmaSpace {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty address space for so many mappings.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            maps: RwLock::default(),
            halted: AtomicBool::new(false),
            limit,
        }
    }

    /// Adds a mapping; it may not overlap another.
    pub fn map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        let size = mapping.size;
        let Some(end) = iova.checked_add(size).filter(|_| size > 0) else {
            return Err(Error::DmaRange { iova, size });
        };
        if let DmaBacking::Shared { memory, offset } = &mapping.backing {
            if offset
                .checked_add(size)
                .is_none_or(|end| end > memory.len() as u64)
            {
                return Err(Error::DmaRange { iova, size });
            }
        }
        let mut maps = self.write_maps();
        let before = maps.range(..end).next_back();
        if before.is_some_and(|(start, other)| start + other.size > iova) {
            return Err(Error::DmaOverlap { iova, size });
        }
        if maps.len() >= self.limit {
            return Err(Error::DmaLimit { limit: self.limit });
        }
        maps.insert(iova, mapping);
        Ok(())
    }

    /// Removes all mappings inside the range and returns their bytes; refuses to cut one.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<u64> {
        let mut maps = self.write_maps();
        let doomed = inside(&maps, iova, size)?;
        for (start, _) in &doomed {
            maps.remove(start);
        }
        Ok(doomed.iter().map(|(_, size)| size).sum())
    }

    /// Start and size of each mapping inside the range; as [`DmaSpace::unmap`], refuses to cut one.
    pub fn within(&self, iova: u64, size: u64) -> Result<Vec<(u64, u64)>> {
        inside(&self.read_maps(), iova, size)
    }

    /// Start and size of each mapping.
    pub fn mappings(&self) -> Vec<(u64, u64)> {
        let maps = self.read_maps();
        maps.iter().map(|(start, map)| (*start, map.size)).collect()
    }

    /// Removes all mappings.
    pub fn unmap_all(&self) {
        self.write_maps().clear();
    }

    /// Makes all accesses fail at once, those under way at a remote peer included, until
    /// [`DmaSpace::resume`]. A reset uses it so as not to wait for a peer.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        let maps = self.read_maps();
        for map in maps.values() {
            if let DmaBacking::Remote(remote) = &map.backing {
                remote.wake();
            }
        }
    }

    /// Ends [`DmaSpace::halt`].
    pub fn resume(&self) {
        self.halted.store(false, Ordering::SeqCst);
    }

    /// Copies from the device's address `iova`, across adjacent mappings.
    pub fn read(&self, iova: u64, out: &mut [u8]) -> Result<()> {
        let len = out.len();
        self.walk(
            iova,
            len,
            |access| access.read,
            |backing, at, range| match backing {
                Place::Shared(memory, offset) => memory.read(offset, &mut out[range]),
                Place::Remote(remote) => remote.read(at, &mut out[range], &self.halted),
            },
        )
    }

    /// Copies to the device's address `iova`, across adjacent mappings.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<()> {
        self.walk(
            iova,
            data.len(),
            |access| access.write,
            |backing, at, range| match backing {
                Place::Shared(memory, offset) => memory.write(offset, &data[range]),
                Place::Remote(remote) => remote.write(at, &data[range], &self.halted),
            },
        )
    }

    /// Loads a 16-bit ring index or flag with acquire ordering.
    pub fn load_u16(&self, iova: u64) -> Result<u16> {
        let mut value = None;
        self.walk(
            iova,
            2,
            |access| access.read,
            |backing, _, range| match backing {
                Place::Shared(memory, offset) if range == (0..2) => {
                    value = Some(memory.load_u16(offset)?);
                    Ok(())
                }
                _ => Ok(()),
            },
        )?;
        if let Some(value) = value {
            return Ok(value);
        }
        let mut bytes = [0; 2];
        self.read(iova, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Stores a 16-bit ring index or flag with release ordering.
    pub fn store_u16(&self, iova: u64, value: u16) -> Result<()> {
        let mut stored = false;
        self.walk(
            iova,
            2,
            |access| access.write,
            |backing, _, range| match backing {
                Place::Shared(memory, offset) if range == (0..2) => {
                    stored = true;
                    memory.store_u16(offset, value)
                }
                _ => Ok(()),
            },
        )?;
        if stored {
            return Ok(());
        }
        self.write(iova, &value.to_le_bytes())
    }

    /// Visits the pieces of a range. Shared memory is visited under the lock, so that an unmap
    /// returns only when no copy touches it; a remote peer is asked without the lock, since its
    /// answer arrives on the thread that may be about to unmap.
    fn walk(
        &self,
        iova: u64,
        len: usize,
        allowed: impl Fn(DmaAccess) -> bool,
        mut visit: impl FnMut(Place<'_>, u64, std::ops::Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let fault = Error::DmaFault {
            iova,
            len: len as u64,
        };
        let mut done = 0;
        while done < len {
            if self.halted.load(Ordering::Relaxed) {
                return Err(fault);
            }
            let Some(at) = iova.checked_add(done as u64) else {
                return Err(fault);
            };
            let maps = self.read_maps();
            let Some((start, map)) = maps.range(..=at).next_back() else {
                return Err(fault);
            };
            let skip = at - start;
            if skip >= map.size || !allowed(map.access) {
                return Err(fault);
            }
            let left = usize::try_from(map.size - skip).unwrap_or(usize::MAX);
            let range = done..done + left.min(len - done);
            done = range.end;
            match &map.backing {
                DmaBacking::Shared { memory, offset } => {
                    let offset = usize::try_from(offset + skip).unwrap_or(usize::MAX);
                    visit(Place::Shared(memory, offset), at, range)?;
                }
                DmaBacking::Remote(remote) => {
                    let remote = Arc::clone(remote);
                    drop(maps);
                    visit(Place::Remote(&*remote), at, range)?;
                }
            }
        }
        Ok(())
    }

    // A poisoned lock means that a thread panicked between two map operations; the map itself is
    // whole, since no operation panics half-way.
    fn read_maps(&self) -> RwLockReadGuard<'_, BTreeMap<u64, DmaMapping>> {
        self.maps
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write_maps(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, DmaMapping>> {
        self.maps
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn inside(maps: &BTreeMap<u64, DmaMapping>, iova: u64, size: u64) -> Result<Vec<(u64, u64)>> {
    // A range may end at 2^64 exactly, which a u64 cannot say: compare last bytes.
    let Some(last) = size.checked_sub(1).and_then(|n| iova.checked_add(n)) else {
        return Err(Error::DmaRange { iova, size });
    };
    let cuts_front = maps
        .range(..iova)
        .next_back()
        .is_some_and(|(start, map)| start + (map.size - 1) >= iova);
    let cuts_back = maps
        .range(iova..=last)
        .next_back()
        .is_some_and(|(start, map)| start + (map.size - 1) > last);
    if cuts_front || cuts_back {
        return Err(Error::DmaRange { iova, size });
    }
    let found = maps.range(iova..=last);
    Ok(found.map(|(start, map)| (*start, map.size)).collect())
}

enum Place<'a> {
    Shared(&'a SharedMemory, usize),
    Remote(&'a dyn RemoteMemory),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(space: &DmaSpace, iova: u64) -> Result<()> {
        let memory = Arc::new(SharedMemory::anonymous(4096).unwrap());
        let backing = DmaBacking::Shared { memory, offset: 0 };
        space.map(
            iova,
            DmaMapping {
                size: 4096,
                access: DmaAccess::READ_WRITE,
                backing,
            },
        )
    }

    #[test]
    fn copies_cross_adjacent_mappings_and_stop_at_holes() {
        let space = DmaSpace::new();
        page(&space, 0x1000).unwrap();
        page(&space, 0x2000).unwrap();
        space.write(0x1ffe, b"abcd").unwrap();
        let mut out = [0; 4];
        space.read(0x1ffe, &mut out).unwrap();
        assert_eq!(&out, b"abcd");
        assert!(space.write(0x2ffe, b"abcd").is_err());
        assert!(space.read(u64::MAX, &mut out).is_err());
        space.store_u16(0x1fff, 0x0102).unwrap();
        assert_eq!(space.load_u16(0x1fff).unwrap(), 0x0102);
    }

    #[test]
    fn overlaps_wraps_and_empty_ranges_are_refused() {
        let space = DmaSpace::new();
        page(&space, 0x1000).unwrap();
        assert!(matches!(
            page(&space, 0x1fff),
            Err(Error::DmaOverlap { .. })
        ));
        assert!(matches!(
            page(&space, 0x0001),
            Err(Error::DmaOverlap { .. })
        ));
        assert!(matches!(
            page(&space, u64::MAX),
            Err(Error::DmaRange { .. })
        ));
    }

    #[test]
    fn an_unmap_may_cover_several_mappings_holes_or_nothing_but_not_cut_one() {
        let space = DmaSpace::new();
        page(&space, 0x1000).unwrap();
        page(&space, 0x3000).unwrap();
        assert!(space.unmap(0x1800, 0x10000).is_err());
        assert!(space.unmap(0, 0x1800).is_err());
        assert_eq!(space.unmap(0x8000, 0x1000).unwrap(), 0);
        assert_eq!(space.unmap(0, u64::MAX).unwrap(), 8192);
        assert_eq!(space.unmap(0x1000, u64::MAX - 0xfff).unwrap(), 0);
    }

    #[test]
    fn read_only_memory_cannot_be_written_by_the_device() {
        let space = DmaSpace::new();
        let memory = Arc::new(SharedMemory::anonymous(4096).unwrap());
        let access = DmaAccess {
            read: true,
            write: false,
        };
        let backing = DmaBacking::Shared { memory, offset: 0 };
        space
            .map(
                0,
                DmaMapping {
                    size: 4096,
                    access,
                    backing,
                },
            )
            .unwrap();
        assert!(space.load_u16(0).is_ok());
        assert!(space.store_u16(0, 1).is_err());
        space.halt();
        assert!(space.load_u16(0).is_err());
        space.resume();
        assert!(space.load_u16(0).is_ok());
    }
}
