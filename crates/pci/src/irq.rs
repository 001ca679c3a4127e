use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::{Bdf, Error, Result};

/// An interrupt index, numbered as VFIO does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IrqIndex(pub u32);

impl IrqIndex {
    /// INTx.
    pub const INTX: Self = Self(0);
    /// MSI.
    pub const MSI: Self = Self(1);
    /// MSI-X.
    pub const MSIX: Self = Self(2);
    /// Device errors (AER).
    pub const ERR: Self = Self(3);
    /// The host asks for the device.
    pub const REQ: Self = Self(4);
    /// Number of indexes.
    pub const COUNT: u32 = 5;
}

/// What an interrupt index offers; `count` 0 means absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors.
    pub count: u32,
    /// Can be masked and unmasked.
    pub maskable: bool,
    /// Masks itself when it fires.
    pub automasked: bool,
    /// The set of vectors cannot grow while enabled.
    pub noresize: bool,
}

/// Signals one interrupt to whoever waits on the eventfd.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<OwnedFd>);

impl Interrupt {
    /// Takes an eventfd. Other kinds of file are refused: a peer could make writes to a pipe or a
    /// file block or grow.
    pub fn new(bdf: Bdf, fd: OwnedFd) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let link =
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|source| {
                Error::Io {
                    what: "Reading the kind of a file descriptor",
                    source,
                }
            })?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(Error::Irq {
                bdf,
                reason: "a descriptor is not an eventfd",
            });
        }
        Ok(Self(Arc::new(fd)))
    }

    /// Fires. A counter that is already at its limit stays pending and the call returns at once.
    ///
    /// A peer that shares the eventfd in blocking mode could still fill it between the check and the
    /// write, so call this without locks held and only from a thread of the peer's own device.
    pub fn signal(&self) {
        use rustix::event::{poll, PollFd, PollFlags, Timespec};
        let mut ready = [PollFd::new(&self.0, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if matches!(poll(&mut ready, Some(&now)), Ok(1)) {
            // The one failure left is a counter at its limit: the interrupt is pending already.
            let _ = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
        }
    }
}

/// Which vectors of a request, from its first on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vectors {
    /// So many.
    Count(u32),
    /// One flag a vector.
    Flags(Vec<bool>),
}

/// What to do with the vectors of a request.
#[derive(Debug)]
pub enum IrqAction {
    /// Sends vector `start + i` to eventfd i; `None` detaches the vector. Enables the index.
    Install(Vec<Option<OwnedFd>>),
    /// Disables the index and detaches all its vectors.
    Disable,
    /// Fires `count` vectors from software, or those whose flag is set.
    Fire(Vectors),
    /// Masks the vectors.
    Mask(Vectors),
    /// Unmasks the vectors; a level that is still up fires again.
    Unmask(Vectors),
    /// Unmasks whenever the eventfd is signalled; `None` detaches it.
    UnmaskOn(Option<OwnedFd>),
}

/// A request to change interrupts.
#[derive(Debug)]
pub struct IrqRequest {
    /// Which kind of interrupt.
    pub index: IrqIndex,
    /// First vector.
    pub start: u32,
    /// What to do.
    pub action: IrqAction,
}
