use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use retrovf_pci::{Doorbell, Error, KernelDoorbell, QueueIndex, Result};

use crate::function::DeviceFile;
use crate::ioctl;

/// A notify address of a function, by system call: for BARs that cannot be mapped, and to have the
/// kernel write there by itself.
pub(crate) struct NotifyAddress {
    pub(crate) device: Arc<DeviceFile>,
    /// In the device's file.
    pub(crate) offset: u64,
}

impl Doorbell for NotifyAddress {
    fn ring(&self, queue: QueueIndex) {
        // What can fail here is a device that is gone or has no power, and has no queues either.
        let _ = rustix::io::pwrite(&self.device.fd, &queue.0.to_le_bytes(), self.offset);
    }
}

impl KernelDoorbell for NotifyAddress {
    fn arm(&self, queue: QueueIndex, fd: &OwnedFd) -> Result<()> {
        let armed = ioctl::ioeventfd(&self.device.fd, self.offset, queue.0, Some(fd.as_fd()));
        armed.map_err(|source| Error::Io {
            what: "Having the kernel forward notifications",
            source,
        })
    }

    fn disarm(&self, queue: QueueIndex, _fd: &OwnedFd) {
        if let Err(error) = ioctl::ioeventfd(&self.device.fd, self.offset, queue.0, None) {
            log::warn!(
                "Notifications of queue {} stay with the kernel: {error}",
                queue.0
            );
        }
    }
}
