use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{MappedWord, Result};

/// Index of a virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

/// Takes notifications where the device's notify word is not memory: SoftNIC's queues, or an admin
/// command that stands in for a missing notify address.
pub trait Doorbell: Send + Sync {
    /// Tells the device that `queue` has work. Never blocks; an index without a queue is ignored.
    fn ring(&self, queue: QueueIndex);
}

/// Has the kernel ring the device: an eventfd whose signals become stores to the notify address
/// without a process in between (`VFIO_DEVICE_IOEVENTFD`).
pub trait KernelDoorbell: Send + Sync {
    /// From now on each signal of `fd` rings `queue`; nobody else may read `fd`. Fails where the
    /// kernel cannot, or has too many already.
    fn arm(&self, queue: QueueIndex, fd: &OwnedFd) -> Result<()>;
    /// Ends that.
    fn disarm(&self, queue: QueueIndex, fd: &OwnedFd);
}

/// Where a notification goes.
///
/// A soft device is not a plain word that somebody polls: a kick of queue 1 right after one of queue
/// 0 would overwrite it. So the target is either a real MMIO word or a [`Doorbell`]; and hardware may
/// have a [`KernelDoorbell`] besides.
#[derive(Clone)]
pub struct NotifyTarget {
    bell: Bell,
    kernel: Option<Arc<dyn KernelDoorbell>>,
}

#[derive(Clone)]
enum Bell {
    Word(Arc<MappedWord>),
    Device(Arc<dyn Doorbell>),
}

impl NotifyTarget {
    /// A 16-bit word of a mapped BAR.
    pub fn word(word: Arc<MappedWord>) -> Self {
        let bell = Bell::Word(word);
        Self { bell, kernel: None }
    }

    /// A doorbell object.
    pub fn device(doorbell: Arc<dyn Doorbell>) -> Self {
        let bell = Bell::Device(doorbell);
        Self { bell, kernel: None }
    }

    /// The same, with a way through the kernel besides.
    pub fn with_kernel(self, kernel: Arc<dyn KernelDoorbell>) -> Self {
        let kernel = Some(kernel);
        Self { kernel, ..self }
    }

    /// Tells the device that `queue` has work. Never blocks, never allocates.
    #[inline]
    pub fn ring(&self, queue: QueueIndex) {
        match &self.bell {
            Bell::Word(word) => word.store(queue.0),
            Bell::Device(doorbell) => doorbell.ring(queue),
        }
    }

    /// The word of a mapped BAR, if that is what rings.
    pub fn mapped(&self) -> Option<&Arc<MappedWord>> {
        match &self.bell {
            Bell::Word(word) => Some(word),
            Bell::Device(_) => None,
        }
    }

    /// Has the kernel ring `queue` at each signal of `fd`. `None`: this target has no such way.
    pub fn arm(&self, queue: QueueIndex, fd: &Arc<OwnedFd>) -> Option<Result<Armed>> {
        let kernel = Arc::clone(self.kernel.as_ref()?);
        let armed = kernel.arm(queue, fd).map(|()| Armed {
            kernel: Arc::clone(&kernel),
            queue,
            fd: Arc::clone(fd),
        });
        Some(armed)
    }
}

impl fmt::Debug for NotifyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.bell {
            Bell::Word(_) => "NotifyTarget::word",
            Bell::Device(_) => "NotifyTarget::device",
        })
    }
}

/// An eventfd that the kernel forwards, until dropped.
pub struct Armed {
    kernel: Arc<dyn KernelDoorbell>,
    queue: QueueIndex,
    fd: Arc<OwnedFd>,
}

impl Armed {
    /// The eventfd to signal.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.kernel.disarm(self.queue, &self.fd);
    }
}

impl fmt::Debug for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Armed")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}
