use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::Header;

/// The memory of a client that maps it without a descriptor: the server asks for each access.
pub trait ClientMemory: Send + Sync {
    /// Reads; false if the range is not memory.
    fn read(&self, address: u64, out: &mut [u8]) -> bool;
    /// Writes; false if the range is not memory.
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

/// How to connect.
#[derive(Clone)]
pub struct ClientOptions {
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Serves the server's DMA_READ and DMA_WRITE, whenever this client waits for an answer and in
    /// [`Client::serve`](crate::Client::serve); without it they are refused.
    pub memory: Option<Arc<dyn ClientMemory>>,
}

impl Default for ClientOptions {
    /// QEMU's timeout, and no memory.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            memory: None,
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("timeout", &self.timeout)
            .field("memory", &self.memory.is_some())
            .finish()
    }
}

/// The answer to GET_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Flags, [`DEVICE_RESETS`](crate::wire::DEVICE_RESETS) and [`DEVICE_PCI`](crate::wire::DEVICE_PCI).
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
}

/// The answer to GET_REGION_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRegionInfo {
    /// Flags, [`REGION_READABLE`](crate::wire::REGION_READABLE) and [`REGION_WRITABLE`](crate::wire::REGION_WRITABLE).
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

/// The answer to GET_IRQ_INFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIrqInfo {
    /// Flags, [`IRQ_EVENTFD`](crate::wire::IRQ_EVENTFD) and those behind it.
    pub flags: u32,
    /// Number of vectors.
    pub count: u32,
}

/// An entry of GET_REGION_IO_FDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoFd {
    /// First byte in the region.
    pub offset: u64,
    /// Bytes of the access.
    pub size: u64,
    /// Kind of descriptor, [`IO_FD_IOEVENTFD`](crate::wire::IO_FD_IOEVENTFD).
    pub kind: u32,
    /// Flags, [`IO_FD_DATAMATCH`](crate::wire::IO_FD_DATAMATCH) and [`IO_FD_PIO`](crate::wire::IO_FD_PIO).
    pub flags: u32,
    /// The value that signals.
    pub datamatch: u64,
}

/// A message as it came.
#[derive(Debug)]
pub struct RawMessage {
    /// Its header.
    pub header: Header,
    /// What is behind the header.
    pub payload: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}
