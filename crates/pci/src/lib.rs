//! A PCI function as userspace drives it.
//!
//! [`Function`] is the one interface to a device: VFIO hardware and SoftNIC both implement it, and
//! nothing above this crate knows which of them it drives. The crate owns the typed access to device
//! registers ([`Registers`], [`MappedWord`]), guest memory as the device sees it ([`DmaSpace`]) and
//! the configuration space overlay ([`Overlay`]). It knows nothing of virtio queues, sockets or
//! JavaScript.
//!
//! The only unsafe code is in `mapping`: memory maps of files and the volatile accesses to them.

mod bdf;
mod dma;
mod error;
mod function;
mod irq;
mod mapping;
mod notify;
mod overlay;
mod registers;

pub use bdf::{Bdf, BdfSyntax};
pub use dma::{DmaAccess, DmaBacking, DmaMapping, DmaSpace, RemoteMemory};
pub use error::{io_code, Error, Result};
pub use function::{Function, Region, RegionInfo};
pub use irq::{Interrupt, IrqAction, IrqIndex, IrqInfo, IrqRequest, Vectors};
pub use mapping::{MappedWord, SharedMemory};
pub use notify::{Armed, Doorbell, KernelDoorbell, NotifyTarget, QueueIndex};
pub use overlay::{ConfigWrite, Overlay, OverlayRow, Written};
pub use registers::Registers;
