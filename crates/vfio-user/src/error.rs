use std::io;
use std::path::PathBuf;

use crate::wire::Command;

/// What can go wrong in setting up a device or its server.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// Somebody serves this path already.
    #[error("Socket {} is in use by a running server", path.display())]
    SocketInUse { path: PathBuf },
    /// Something that we would not remove has this name.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    /// The path does not fit a socket address.
    #[error("Socket path {} is longer than the 107 bytes that the kernel allows", path.display())]
    PathTooLong { path: PathBuf },
    /// The device is served already.
    #[error("The device is already served on another socket")]
    AlreadyServed,
    /// The description of the device contradicts itself.
    #[error("The device cannot be served: {reason}")]
    Config { reason: String },
    /// The server's threads did not end in time.
    #[error(
        "The server did not end within {seconds} seconds; its thread is left to end by itself"
    )]
    CloseTimeout { seconds: u64 },
    /// The PCI function failed.
    #[error(transparent)]
    Pci(#[from] retrovf_pci::Error),
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
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// The errno that describes the failure to a client; never 0.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Pci(error) => error.errno(),
            _ => libc::EIO,
        }
    }

    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SocketInUse { .. } => "ERR_SOCKET_IN_USE",
            Self::NotASocket { .. } | Self::PathTooLong { .. } => "ERR_SOCKET_PATH",
            Self::AlreadyServed => "ERR_DEVICE_BUSY",
            Self::Config { .. } => "ERR_DEVICE_CONFIG",
            Self::CloseTimeout { .. } => "ERR_CLOSE_TIMEOUT",
            Self::Pci(error) => error.code(),
            Self::Io { source, .. } => retrovf_pci::io_code(source),
        }
    }
}

/// What can go wrong for a client.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum ClientError {
    /// The socket cannot be reached.
    #[error("Connecting to {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The server answered with an error.
    #[error("The server refused {command}: {}", io::Error::from_raw_os_error(*errno))]
    Refused { command: Command, errno: i32 },
    /// No answer in time.
    #[error("The server did not answer {command} in time")]
    TimedOut { command: Command },
    /// The server closed the connection.
    #[error("The server closed the connection")]
    Closed,
    /// The server broke the protocol.
    #[error("The server broke the protocol: {what}")]
    Protocol { what: String },
    /// A system call failed.
    #[error("{what}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl ClientError {
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    pub(crate) fn protocol(what: impl ToString) -> Self {
        Self::Protocol {
            what: what.to_string(),
        }
    }

    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "ERR_VFIO_USER_CONNECT",
            Self::Refused { .. } => "ERR_VFIO_USER_REFUSED",
            Self::TimedOut { .. } => "ERR_VFIO_USER_TIMEOUT",
            Self::Closed => "ERR_VFIO_USER_CLOSED",
            Self::Protocol { .. } => "ERR_VFIO_USER_PROTOCOL",
            Self::Io { source, .. } => retrovf_pci::io_code(source),
        }
    }
}

/// A peer broke the framing, so that nothing behind it can be trusted: the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a message of {size} bytes is shorter than its header")]
    ShorterThanHeader { size: u32 },
    #[error("a message of {size} bytes is longer than the limit of {limit}")]
    TooLong { size: u32, limit: usize },
    #[error("a message carries more than 8 descriptors, or descriptors are exhausted")]
    DescriptorsLost,
    #[error("descriptors came in the middle of a message")]
    StrayDescriptors,
}
