use std::fmt;
use std::sync::Arc;

use crate::MappedWord;

/// Index of a virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

/// Takes notifications where the device's notify word is not memory: SoftNIC's queues, or an admin
/// command that stands in for a missing notify address.
pub trait Doorbell: Send + Sync {
    /// Tells the device that `queue` has work. Never blocks; an index without a queue is ignored.
    fn ring(&self, queue: QueueIndex);
}

/// Where a notification goes.
///
/// A soft device is not a plain word that somebody polls: a kick of queue 1 right after one of queue
/// 0 would overwrite it. So the target is either a real MMIO word or a [`Doorbell`].
#[derive(Clone)]
pub enum NotifyTarget {
    /// A 16-bit word of a mapped BAR.
    Word(Arc<MappedWord>),
    /// A doorbell object.
    Device(Arc<dyn Doorbell>),
}

impl NotifyTarget {
    /// Tells the device that `queue` has work. Never blocks, never allocates.
    #[inline]
    pub fn ring(&self, queue: QueueIndex) {
        match self {
            Self::Word(word) => word.store(queue.0),
            Self::Device(doorbell) => doorbell.ring(queue),
        }
    }
}

impl fmt::Debug for NotifyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Word(_) => "NotifyTarget::Word",
            Self::Device(_) => "NotifyTarget::Device",
        })
    }
}
