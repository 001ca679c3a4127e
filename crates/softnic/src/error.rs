use std::io;

use retrovf_pci::Bdf;

/// Why SoftNIC refused a request.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// The configuration contradicts itself or a limit.
    #[error("The SoftNIC configuration is invalid: {reason}")]
    Config { reason: &'static str },
    /// No function has this address, or the VF is not enabled.
    #[error("SoftNIC has no function {bdf}")]
    NoSuchFunction { bdf: Bdf },
    /// The function is open already.
    #[error("{bdf} is in use")]
    Busy { bdf: Bdf },
    /// The function was taken away by a fault.
    #[error("{bdf} is gone")]
    Gone { bdf: Bdf },
    /// More VFs than the PF has.
    #[error("{asked} VFs were asked for, the PF has {total}")]
    TooManyVfs { asked: u16, total: u16 },
    /// `close` was called.
    #[error("The SoftNIC is closed")]
    Closed,
    /// A system call failed.
    #[error("{what}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl Error {
    /// Names the failed call.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "ERR_SOFTNIC_CONFIG",
            Self::NoSuchFunction { .. } => "ERR_NO_SUCH_FUNCTION",
            Self::Busy { .. } => "ERR_DEVICE_BUSY",
            Self::Gone { .. } => "ERR_DEVICE_GONE",
            Self::TooManyVfs { .. } => "ERR_TOO_MANY_VFS",
            Self::Closed => "ERR_SOFTNIC_CLOSED",
            Self::Io { source, .. } => retrovf_pci::io_code(source),
        }
    }
}
