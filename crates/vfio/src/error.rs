use std::fmt;
use std::io;
use std::path::PathBuf;

use retrovf_pci::Bdf;

/// Why a function of the host cannot be opened. The message of each variant names its fields.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// No such function.
    #[error("There is no PCI function {bdf}")]
    NoSuchDevice { bdf: Bdf },
    /// Another driver has it, or none.
    #[error("{bdf} is bound to {}, not to vfio-pci", .driver.as_deref().unwrap_or("no driver"))]
    NotBound { bdf: Bdf, driver: Option<String> },
    /// The kernel has put it in no IOMMU group, or in one without an IOMMU.
    #[error("{bdf} has no IOMMU group")]
    NoIommu { bdf: Bdf },
    /// Other devices of its group have drivers that are not VFIO's.
    #[error("IOMMU group {group} of {bdf} is not viable: {}", Offenders(.offenders))]
    GroupNotViable {
        bdf: Bdf,
        group: String,
        /// Devices and their drivers.
        offenders: Vec<(String, String)>,
    },
    /// The IOMMU does not isolate interrupts.
    #[error("{bdf} cannot be isolated: the IOMMU does not remap interrupts")]
    UnsafeInterrupts { bdf: Bdf },
    /// This process may not open a node.
    #[error("{bdf}: {} may not be opened", .path.display())]
    Permission {
        bdf: Bdf,
        path: PathBuf,
        source: io::Error,
    },
    /// Somebody else has the function or its group.
    #[error("{bdf} is in use: {} is open already", .path.display())]
    Busy { bdf: Bdf, path: PathBuf },
    /// The PF asks for another token, or for one at all.
    #[error(
        "{bdf} was refused: the VF token {}",
        if *.given { "is not the one of its PF" } else { "of its PF is needed" }
    )]
    Token { bdf: Bdf, given: bool },
    /// The kernel lacks what is needed.
    #[error("VFIO cannot be used for {bdf}: {reason}")]
    Unavailable { bdf: Bdf, reason: String },
    /// A file of sysfs.
    #[error("{} cannot be read", .path.display())]
    Sysfs { path: PathBuf, source: io::Error },
    /// A system call failed.
    #[error("{bdf}: {what}")]
    Io {
        bdf: Bdf,
        what: &'static str,
        source: io::Error,
    },
    /// The function itself.
    #[error(transparent)]
    Pci(#[from] retrovf_pci::Error),
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSuchDevice { .. } => "ERR_NO_SUCH_DEVICE",
            Self::NotBound { .. } => "ERR_VFIO_NOT_BOUND",
            Self::NoIommu { .. } => "ERR_VFIO_NO_IOMMU",
            Self::GroupNotViable { .. } => "ERR_VFIO_GROUP_NOT_VIABLE",
            Self::UnsafeInterrupts { .. } => "ERR_VFIO_UNSAFE_INTERRUPTS",
            Self::Permission { .. } => "ERR_VFIO_PERMISSION",
            Self::Busy { .. } => "ERR_DEVICE_BUSY",
            Self::Token { .. } => "ERR_VFIO_TOKEN",
            Self::Unavailable { .. } => "ERR_VFIO_UNAVAILABLE",
            Self::Sysfs { .. } => "ERR_SYSFS",
            Self::Io { .. } => "ERR_IO",
            Self::Pci(error) => error.code(),
        }
    }
}

struct Offenders<'a>(&'a [(String, String)]);

impl fmt::Display for Offenders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a device of it has a driver other than VFIO's");
        }
        for (i, (device, driver)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{device} is bound to {driver}")?;
        }
        Ok(())
    }
}
