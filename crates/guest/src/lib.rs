//! A guest: a virtio 0.9.5 network driver that reaches its device through a vfio-user client, as a
//! virtual machine's driver reaches it through the VMM.
//!
//! It does what Linux's legacy driver does, in the same order and with the same access widths, so
//! that the demo, the tests and the benches see a device as a guest sees it, without a VMM. It owns
//! the guest's memory, its driver and its network stack, and knows nothing of the server's inside.
//! The device is not trusted: it can make calls fail, but not panic or wait without end.
#![forbid(unsafe_code)]

mod bus;
mod driver;
mod enumerate;
mod error;
mod guest;
mod interrupts;
mod ram;
mod ring;
mod stack;

pub use bus::{Access, AccessRegion};
pub use driver::Started;
pub use enumerate::Identity;
pub use error::{Error, Result};
pub use guest::{Guest, GuestOptions};
pub use stack::{Lease, PingReport};
