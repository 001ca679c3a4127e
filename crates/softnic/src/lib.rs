//! SoftNIC: an SR-IOV virtio-net NIC in this process, behind [`retrovf_pci::Function`].
//!
//! The PF has an administration virtqueue with the legacy register commands; its VFs are modern
//! virtio-net functions that a legacy driver can drive through those commands. An embedded switch
//! joins PF, VFs and an optional uplink. It is a product and not a test double: it serves real
//! drivers in guest memory, and fails on request as hardware does ([`Fault`]).
//!
//! What the crate keeps true:
//! * Register state (`registers`) has a short lock that is never held while guest memory is
//!   touched, so register accesses and admin commands don't wait for a remote DMA peer.
//! * Queue state (`rings`) is held by a function's worker during DMA. Whoever has to wait for it,
//!   a reset or a queue being taken away, makes the DMA under way fail first (`Device::quiesced`).
//! * Lock order: rings, admin queue, registers, then the leaves (interrupts, a port's inbox).
//!   Interrupts are signalled and frames are forwarded with none of them held.
//! * The split ring is our own, not `virtio-queue` over `vm-memory`: guest memory may be remote
//!   (DMA by messages), mappings come and go page by page under a live device, and a file that its
//!   owner truncates must not raise SIGBUS. [`retrovf_pci::DmaSpace`] covers the three.
//!
//! Threads: one worker for each open function, one for the uplink. No PF or VF has an INTx pin.

mod admin;
mod config;
mod config_space;
mod device;
mod error;
mod faults;
mod function;
mod irqs;
mod kicks;
mod layout;
mod legacy;
mod modern;
mod net;
mod nic;
mod queue;
mod registers;
mod switch;
mod sync;
mod uplink;
mod worker;

pub use config::{Config, NotifyEntries, Uplink};
pub use error::Error;
pub use faults::{CommandFilter, Fault};
pub use nic::{FunctionStats, SoftNic};
pub use uplink::{GATEWAY_ADDRESS, GATEWAY_MAC};
