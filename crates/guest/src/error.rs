use retrovf_vfio_user::ClientError;

/// What can go wrong for a guest. The message of each variant names its fields.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant says what its fields are"
)]
pub enum Error {
    /// The device is not one that the driver can drive.
    #[error("The driver does not take the device: {reason}")]
    Refused { reason: &'static str },
    /// The device broke the rules of the interface.
    #[error("The device misbehaves: {reason}")]
    Device { reason: &'static str },
    /// The call comes too early or too late.
    #[error("The guest is not ready: {reason}")]
    State { reason: &'static str },
    /// Nothing came in time.
    #[error("No {what} within {milliseconds} ms")]
    TimedOut {
        what: &'static str,
        milliseconds: u128,
    },
    /// The frame does not fit an Ethernet of 1500 bytes.
    #[error("A frame of {size} bytes cannot be sent: it has 14 to 1514")]
    FrameSize { size: usize },
    /// The vfio-user connection failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest's own memory failed.
    #[error(transparent)]
    Memory(#[from] retrovf_pci::Error),
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A stable name for the kind of failure; JavaScript sees it as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "ERR_GUEST_REFUSED",
            Self::Device { .. } => "ERR_GUEST_DEVICE",
            Self::State { .. } => "ERR_GUEST_STATE",
            Self::TimedOut { .. } => "ERR_GUEST_TIMEOUT",
            Self::FrameSize { .. } => "ERR_GUEST_FRAME",
            Self::Client(error) => error.code(),
            Self::Memory(error) => error.code(),
        }
    }
}
