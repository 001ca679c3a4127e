//! Takes a notification and rings the device.
//!
//! An [`Engine`] is one thread that waits on the eventfds of any number of devices and queues and
//! rings the [`retrovf_pci::NotifyTarget`] of each. A peer (a VMM's ioeventfd, for instance) holds
//! the eventfd, so everything that it can do to an eventfd is expected here. The crate knows nothing
//! of sockets, virtio or JavaScript.
//!
//! Between a kick and the store in the device there is no lock, no allocation and no log line.
#![forbid(unsafe_code)]

mod engine;
mod worker;

pub use engine::{Engine, EngineOptions, Forward, Mode};
