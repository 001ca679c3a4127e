use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use retrovf_pci::{Doorbell, QueueIndex};
use retrovf_spec::{admin, legacy};

use crate::{AdminQueue, Failure, Result};

/// Rings a member by administration command: a write of Queue Notify in its legacy registers. For
/// members without a usable notify address.
///
/// A queue has at most one command under way; rings that come meanwhile are made up for by one more
/// command after it. So no ring is lost, and a guest that rings without end cannot fill the
/// owner's queue.
pub struct CommandDoorbell {
    queue: RwLock<Arc<AdminQueue>>,
    member: u64,
    lines: Box<[Line]>,
    failed: AtomicU64,
    this: Weak<Self>,
}

/// One queue of the member.
#[derive(Default)]
struct Line {
    state: AtomicU8,
    /// Commands in a row that the device wants tried again. The completion thread alone uses it.
    retries: AtomicU8,
}

/// No command under way.
const IDLE: u8 = 0;
/// A command is under way.
const SENT: u8 = 1;
/// A command is under way, and another ring came after it was sent.
const AGAIN: u8 = 2;

const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_RETRIES: u8 = 100;

impl CommandDoorbell {
    /// A doorbell for the queues 0 to `queues - 1` of member `member` (1 for the first VF).
    pub fn new(queue: Arc<AdminQueue>, member: u64, queues: u16) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            queue: RwLock::new(queue),
            member,
            lines: (0..queues).map(|_| Line::default()).collect(),
            failed: AtomicU64::new(0),
            this: Weak::clone(this),
        })
    }

    /// Sends the commands to come over another queue: the owner was brought up again. Rings that the
    /// old queue did not carry out are lost, as is all that its reset took from the member.
    pub fn set_queue(&self, queue: Arc<AdminQueue>) {
        let mut current = self.queue.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, queue);
        drop(current);
        // Not under the lock: the last handle closes the old queue and waits for its thread, which
        // may be about to send the next command of this doorbell.
        drop(old);
    }

    /// Commands that the device did not carry out.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The command under way for `queue` has ended.
    pub(crate) fn completed(&self, queue: QueueIndex, outcome: Result<Vec<u8>, Failure>) {
        let Some(line) = self.lines.get(usize::from(queue.0)) else {
            return;
        };
        let status = outcome.as_ref().ok().and_then(|answer| {
            let status = answer.get(..admin::RESULT_HEADER_SIZE)?;
            Some(u16::from_le_bytes(*status.first_chunk()?))
        });
        let retry = status == Some(admin::STATUS_EAGAIN)
            && line.retries.fetch_add(1, Ordering::Relaxed) < MAX_RETRIES;
        if !retry {
            line.retries.store(0, Ordering::Relaxed);
            if status != Some(admin::STATUS_OK) {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let step = |state| Some(if retry || state == AGAIN { SENT } else { IDLE });
        let previous = line.update(step);
        if retry || previous == AGAIN {
            self.send(line, queue);
        }
    }

    fn send(&self, line: &Line, queue: QueueIndex) {
        let header = admin::Header {
            opcode: admin::LEGACY_COMMON_CFG_WRITE,
            group_type: admin::GROUP_SRIOV,
            member: self.member,
        };
        let mut command = [0; admin::HEADER_SIZE + admin::LEGACY_WRITE_PREFIX + 2];
        command[..admin::HEADER_SIZE].copy_from_slice(&header.to_bytes());
        command[admin::HEADER_SIZE] = legacy::QUEUE_NOTIFY as u8;
        let data = admin::HEADER_SIZE + admin::LEGACY_WRITE_PREFIX;
        command[data..].copy_from_slice(&queue.0.to_le_bytes());
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let room = admin::RESULT_HEADER_SIZE;
        // Held over the post, not cloned: the last handle of a queue must not end up in a ring, which
        // would then close it.
        let admin_queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        if admin_queue
            .post(this, queue, &command, room, TIMEOUT)
            .is_err()
        {
            // The queue is closed or broken: nothing is under way, and nothing can be.
            self.failed.fetch_add(1, Ordering::Relaxed);
            line.state.store(IDLE, Ordering::Release);
        }
    }
}

impl Doorbell for CommandDoorbell {
    fn ring(&self, queue: QueueIndex) {
        let Some(line) = self.lines.get(usize::from(queue.0)) else {
            return;
        };
        if line.update(|state| Some(if state == IDLE { SENT } else { AGAIN })) == IDLE {
            self.send(line, queue);
        }
    }
}

impl Line {
    /// A read-modify-write even where the value stays: what the guest wrote before it rang is then
    /// ordered before the command that whoever changes the state next sends.
    fn update(&self, step: impl FnMut(u8) -> Option<u8>) -> u8 {
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
            .unwrap_or_else(|state| state)
    }
}

impl fmt::Debug for CommandDoorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandDoorbell")
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}
