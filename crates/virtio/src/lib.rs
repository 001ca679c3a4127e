//! The driver side of virtio over PCI, as far as an owner of member devices needs it: the capability
//! walk, the common configuration structure ([`Transport`]) and the administration virtqueue
//! ([`AdminQueue`]).
//!
//! What is here are primitives: when to reset, which features to take and what the commands say is
//! decided above. The device is not trusted: whatever it puts into its configuration space, its
//! registers or its used ring ends in an error, never in a panic, an endless loop or an access
//! outside the memory given to it.
#![forbid(unsafe_code)]

mod admin;
mod capabilities;
mod command_doorbell;
mod error;
mod transport;

pub use admin::{AdminQueue, AdminQueueOptions, Completion, CompletionMode, Stats};
pub use command_doorbell::CommandDoorbell;
pub use error::{Error, Failure, Result};
pub use transport::Transport;
