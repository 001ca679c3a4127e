//! The vfio-user protocol: a PCI function, and the transitional device in front of it, served to a
//! virtual machine monitor over a UNIX socket.
//!
//! [`ServedDevice`] is what a client sees: a [`Function`](retrovf_pci::Function) under a
//! configuration space overlay, with an I/O BAR0 whose register accesses go to a [`ControlPlane`].
//! [`Server`] serves it, one client at a time; [`Client`] is the other end. Notify writes are rung in
//! the thread that reads the socket and never reach the control plane.
//!
//! Every byte from a peer is hostile: sizes are checked before anything is allocated, descriptors are
//! owned from the moment they arrive, and a client that breaks the protocol loses its connection and
//! nothing else.

mod acceptor;
mod client;
mod commands;
mod control;
mod counters;
mod device;
mod error;
mod io_fds;
mod irqs;
mod link;
mod memory;
mod output;
mod receiver;
mod server;
mod session;
mod socket;
mod version;
pub mod wire;

pub use client::{
    Client, ClientIrqInfo, ClientMemory, ClientOptions, ClientRegionInfo, DeviceInfo, IoFd,
    RawMessage,
};
pub use control::{ControlAccess, ControlKind, ControlPlane};
pub use counters::DeviceCounters;
pub use device::{DeviceConfig, ServedDevice};
pub use error::{ClientError, Error, Result};
pub use io_fds::start_engine;
pub use retrovf_doorbell::{EngineOptions, Mode};
pub use server::{Server, ServerEvent, ServerOptions};
pub use version::PeerVersion;
