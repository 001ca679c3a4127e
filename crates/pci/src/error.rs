use std::io;

use crate::{Bdf, Region};

/// What can go wrong between us and a PCI function. The message of each variant names its fields.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// An access outside a region.
    #[error("Access of {len} bytes at {offset:#x} is outside {region} of {bdf} ({size:#x} bytes)")]
    OutOfRange {
        bdf: Bdf,
        region: Region,
        offset: u64,
        len: u64,
        size: u64,
    },
    /// The region does not exist on this function.
    #[error("{bdf} has no {region}")]
    NoSuchRegion { bdf: Bdf, region: Region },
    /// The region cannot be mapped into this process.
    #[error("{region} of {bdf} cannot be mapped")]
    NotMappable { bdf: Bdf, region: Region },
    /// The interrupt request does not fit the function.
    #[error("{bdf}: interrupt request refused: {reason}")]
    Irq { bdf: Bdf, reason: &'static str },
    /// A DMA mapping overlaps one that exists.
    #[error("DMA range {iova:#x}+{size:#x} overlaps a mapping")]
    DmaOverlap { iova: u64, size: u64 },
    /// A DMA range is empty, wraps, or is not aligned.
    #[error("DMA range {iova:#x}+{size:#x} is invalid")]
    DmaRange { iova: u64, size: u64 },
    /// More DMA mappings than the limit.
    #[error("More than {limit} DMA mappings")]
    DmaLimit { limit: usize },
    /// A DMA range that the host's IOMMU cannot serve, such as the window of MSI addresses.
    #[error(
        "DMA range {iova:#x}+{size:#x} cannot be mapped for {bdf}: the host reserves part of it"
    )]
    DmaReserved { bdf: Bdf, iova: u64, size: u64 },
    /// The memory would have to be locked, and the limit does not allow it.
    #[error(
        "Locking {size:#x} bytes for DMA of {bdf} exceeds the limit on locked memory ({limit} bytes)"
    )]
    DmaLocked { bdf: Bdf, size: u64, limit: u64 },
    /// Memory of another process without a file descriptor, out of a real device's reach.
    #[error("DMA range {iova:#x}+{size:#x} came without a file descriptor: {bdf} cannot reach it")]
    DmaNotShared { bdf: Bdf, iova: u64, size: u64 },
    /// The device touched memory that is not mapped, or not for this direction.
    #[error("DMA access of {len} bytes at {iova:#x} met no usable mapping")]
    DmaFault { iova: u64, len: u64 },
    /// The function no longer answers.
    #[error("{bdf} is gone")]
    Gone { bdf: Bdf },
    /// The function cannot do this.
    #[error("{bdf} does not support {what}")]
    Unsupported { bdf: Bdf, what: &'static str },
    /// A system call failed.
    #[error("{what}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Names the failed call.
    pub fn io(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    /// The errno that describes the failure to a vfio-user peer; never 0.
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfRange { .. }
            | Self::Irq { .. }
            | Self::DmaRange { .. }
            | Self::DmaReserved { .. }
            | Self::NoSuchRegion { .. } => libc::EINVAL,
            Self::NotMappable { .. } | Self::Unsupported { .. } | Self::DmaNotShared { .. } => {
                libc::EOPNOTSUPP
            }
            Self::DmaLocked { .. } => libc::ENOMEM,
            Self::DmaOverlap { .. } => libc::EEXIST,
            Self::DmaLimit { .. } => libc::ENOSPC,
            Self::DmaFault { .. } => libc::EFAULT,
            Self::Gone { .. } => libc::ENODEV,
            Self::Io { source, .. } => source
                .raw_os_error()
                .filter(|&errno| errno != 0)
                .unwrap_or(libc::EIO),
        }
    }

    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OutOfRange { .. } => "ERR_OUT_OF_RANGE",
            Self::NoSuchRegion { .. } => "ERR_NO_SUCH_REGION",
            Self::NotMappable { .. } => "ERR_NOT_MAPPABLE",
            Self::Irq { .. } => "ERR_IRQ",
            Self::DmaOverlap { .. } | Self::DmaRange { .. } | Self::DmaReserved { .. } => {
                "ERR_DMA_MAP"
            }
            Self::DmaLimit { .. } => "ERR_DMA_LIMIT",
            Self::DmaLocked { .. } => "ERR_DMA_LOCKED",
            Self::DmaNotShared { .. } => "ERR_DMA_NOT_SHARED",
            Self::DmaFault { .. } => "ERR_DMA_FAULT",
            Self::Gone { .. } => "ERR_DEVICE_GONE",
            Self::Unsupported { .. } => "ERR_UNSUPPORTED",
            Self::Io { source, .. } => io_code(source),
        }
    }
}

/// The code of a failed system call: whoever may not do something needs other help than whoever
/// met a failure.
pub fn io_code(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "ERR_NOT_PERMITTED",
        _ => "ERR_IO",
    }
}
