//! PCI functions of the host, over VFIO.
//!
//! The crate opens a function that is bound to `vfio-pci`, by its IOMMU group or by its own node
//! with iommufd, and is a [`Function`](retrovf_pci::Function) over it. It owns the ioctls, the
//! bookkeeping of DMA mappings and interrupts that the two ways in have in common, and the events
//! of a function (the host wants it back, the bus reported an error). It knows nothing of virtio.
//!
//! The only unsafe code is in `ioctl`.

mod dma;
mod doorbell;
mod error;
mod events;
mod function;
mod host;
mod ioctl;
mod irqs;
mod open;
mod region;
mod token;

pub use error::{Error, Result};
pub use events::Event;
pub use function::{open, VfioFunction};
pub use host::Roots;
pub use open::{OpenOptions, Via};
pub use token::{Token, TokenSyntax};
