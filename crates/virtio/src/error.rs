use retrovf_pci::Bdf;

/// What can go wrong on the way to a virtio device. The message of each variant names its fields.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// The function does not have the structures of a modern virtio device.
    #[error("{bdf} is no usable modern virtio device: {reason}")]
    Capabilities { bdf: Bdf, reason: &'static str },
    /// The queue cannot be set up.
    #[error("Queue {index} of {bdf} cannot be used for administration: {reason}")]
    Queue {
        bdf: Bdf,
        index: u16,
        reason: &'static str,
    },
    /// A part of the command is empty or too long.
    #[error("A command of {readable} readable and {writable} writable bytes does not fit: each part has 1 to {limit}")]
    Size {
        readable: usize,
        writable: usize,
        limit: usize,
    },
    /// Ring and backlog are full.
    #[error("{limit} commands wait for the device already")]
    Full { limit: usize },
    /// The queue does not take commands any more.
    #[error(transparent)]
    Admin(#[from] Failure),
    /// An access to the function failed.
    #[error(transparent)]
    Function(#[from] retrovf_pci::Error),
}

/// How a command ended that the device did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer until the deadline.
    #[error("The device did not answer the administration command in time")]
    Timeout,
    /// The queue was closed.
    #[error("The administration queue is closed")]
    Closed,
    /// The device broke the rules of the ring, so nothing in it can be trusted any more.
    #[error("The device has corrupted the administration queue")]
    Device,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Capabilities { .. } => "ERR_VIRTIO_CAPABILITIES",
            Self::Queue { .. } => "ERR_ADMIN_QUEUE",
            Self::Size { .. } => "ERR_ADMIN_SIZE",
            Self::Full { .. } => "ERR_ADMIN_FULL",
            Self::Admin(failure) => failure.code(),
            Self::Function(error) => error.code(),
        }
    }
}

impl Failure {
    /// As [`Error::code`].
    pub fn code(self) -> &'static str {
        match self {
            Self::Timeout => "ERR_ADMIN_TIMEOUT",
            Self::Closed => "ERR_ADMIN_CLOSED",
            Self::Device => "ERR_ADMIN_DEVICE",
        }
    }
}
