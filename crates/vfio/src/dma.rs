use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use retrovf_pci::{Bdf, DmaBacking, DmaMapping, DmaSpace, Error, Result};
use rustix::process::{getrlimit, Resource};

use crate::ioctl::{self, Range};
use crate::open::Space;

/// The DMA mappings of a function.
///
/// What is mapped is known here as well as in the kernel: an unmap may cover several mappings, holes
/// or nothing, which type1 and iommufd each answer in their own way, so the kernel is only ever asked
/// to take away exactly what it was given. The record also keeps the memory mapped in this process
/// for as long as the device has it. The device itself needs that no longer once its pages are
/// pinned, nor does it notice if a peer truncates the file behind them: the pages stay, and the peer
/// has merely lost them.
#[derive(Debug)]
pub(crate) struct Dma {
    bdf: Bdf,
    space: Space,
    record: DmaSpace,
    limit: usize,
    /// Held over a change of both the record and the kernel's tables.
    changes: Mutex<()>,
}

/// iommufd has no limit of its own; a client's mappings are memory of ours all the same.
const MAX_MAPPINGS: usize = 1 << 20;

impl Dma {
    /// `limit`: how many mappings the kernel allows, if it says.
    pub(crate) fn new(bdf: Bdf, space: Space, limit: Option<usize>) -> Self {
        let limit = match space {
            Space::Type1(_) => limit.map_or(MAX_MAPPINGS, |limit| limit.min(MAX_MAPPINGS)),
            Space::Ioas { .. } => MAX_MAPPINGS,
        };
        Self {
            bdf,
            space,
            record: DmaSpace::with_limit(limit),
            limit,
            changes: Mutex::new(()),
        }
    }

    pub(crate) fn map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        let bdf = self.bdf;
        let DmaMapping { size, access, .. } = mapping;
        let invalid = Error::DmaRange { iova, size };
        let DmaBacking::Shared { memory, offset } = &mapping.backing else {
            return Err(Error::DmaNotShared { bdf, iova, size });
        };
        let Some(range) = Range::of(memory, *offset, iova, size, access) else {
            return Err(invalid);
        };
        let page = rustix::param::page_size() as u64;
        if !range.is_aligned(page) || !(access.read || access.write) {
            return Err(invalid);
        }
        let _changing = self.lock();
        self.record.map(iova, mapping)?;
        let mapped = match &self.space {
            Space::Type1(container) => ioctl::type1_map(container, &range),
            Space::Ioas { iommufd, id } => ioctl::ioas_map(iommufd, *id, &range),
        };
        mapped.map_err(|source| {
            // It was added a moment ago, so it is there.
            let _ = self.record.unmap(iova, size);
            self.map_error(iova, size, source)
        })
    }

    pub(crate) fn unmap(&self, iova: u64, size: u64) -> Result<u64> {
        let _changing = self.lock();
        self.take(self.record.within(iova, size)?)
    }

    pub(crate) fn unmap_all(&self) -> Result<()> {
        let _changing = self.lock();
        self.take(self.record.mappings()).map(drop)
    }

    fn take(&self, doomed: Vec<(u64, u64)>) -> Result<u64> {
        let mut bytes = 0;
        for (iova, size) in doomed {
            let unmapped = match &self.space {
                Space::Type1(container) => ioctl::type1_unmap(container, iova, size),
                Space::Ioas { iommufd, id } => ioctl::ioas_unmap(iommufd, *id, iova, size),
            };
            unmapped.map_err(|source| Error::Io {
                what: "Taking memory away from the device",
                source,
            })?;
            bytes += self.record.unmap(iova, size)?;
        }
        Ok(bytes)
    }

    fn map_error(&self, iova: u64, size: u64, source: io::Error) -> Error {
        let bdf = self.bdf;
        match source.raw_os_error() {
            Some(libc::EINVAL) => Error::DmaReserved { bdf, iova, size },
            Some(libc::EEXIST) => Error::DmaOverlap { iova, size },
            Some(libc::ENOSPC) => Error::DmaLimit { limit: self.limit },
            Some(libc::ENOMEM) => {
                let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
                Error::DmaLocked { bdf, size, limit }
            }
            _ => Error::Io {
                what: "Giving memory to the device",
                source,
            },
        }
    }

    // Whoever panicked here did so between two changes.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retrovf_pci::{DmaAccess, SharedMemory};
    use std::sync::Arc;

    /// No container: the kernel refuses the ioctls with ENOTTY.
    fn dma() -> Dma {
        let null = std::fs::File::open("/dev/null").unwrap();
        Dma::new(Bdf::new(0, 1, 0, 1), Space::Type1(null.into()), Some(4))
    }

    fn mapping(offset: u64, size: u64) -> DmaMapping {
        let memory = Arc::new(SharedMemory::anonymous(8192).unwrap());
        DmaMapping {
            size,
            access: DmaAccess::READ_WRITE,
            backing: DmaBacking::Shared { memory, offset },
        }
    }

    #[test]
    fn what_the_page_tables_cannot_describe_never_reaches_the_kernel() {
        let dma = dma();
        for (iova, offset, size) in [
            (0x1001, 0, 4096),
            (0x1000, 1, 4096),
            (0x1000, 0, 100),
            (0x1000, 0, 0),
            (0x1000, 4096, 8192),
            (u64::MAX - 4095, 0, 8192),
        ] {
            let refused = dma.map(iova, mapping(offset, size));
            assert!(
                matches!(refused, Err(Error::DmaRange { .. })),
                "{iova:#x} {refused:?}"
            );
        }
    }

    #[test]
    fn a_mapping_that_the_kernel_refuses_is_forgotten() {
        let dma = dma();
        for _ in 0..2 {
            let refused = dma.map(0x1000, mapping(0, 4096));
            assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        }
        assert_eq!(dma.unmap(0, u64::MAX).unwrap(), 0);
        dma.unmap_all().unwrap();
    }

    #[test]
    fn refusals_of_the_kernel_have_their_reasons() {
        let dma = dma();
        let code = |errno| {
            dma.map_error(0, 1, io::Error::from_raw_os_error(errno))
                .code()
        };
        assert_eq!(code(libc::ENOMEM), "ERR_DMA_LOCKED");
        assert_eq!(code(libc::ENOSPC), "ERR_DMA_LIMIT");
        assert_eq!(code(libc::EINVAL), "ERR_DMA_MAP");
        assert_eq!(code(libc::EFAULT), "ERR_IO");
    }
}
