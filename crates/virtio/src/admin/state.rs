//! Which commands there are and where each one stands. Everything here runs under the queue's lock
//! and waits for nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_histogram::Histogram;
use retrovf_pci::QueueIndex;

use super::ring::{Broken, Ring, PART_LIMIT};
use crate::{CommandDoorbell, Error, Failure, Result};

/// Commands that may wait for a free slot, without those of doorbells, which bound themselves.
pub(crate) const BACKLOG_LIMIT: usize = 1024;

pub(crate) type Outcome = Result<Vec<u8>, Failure>;

/// Who gets the answer.
#[derive(Debug)]
pub(crate) enum Recipient {
    /// The caller of `submit`, who is still inside it.
    Submitter(u64),
    /// The completion callback, with the caller's id.
    Callback(u64),
    /// A doorbell whose notify command this is.
    Doorbell(Arc<CommandDoorbell>, QueueIndex),
}

/// A command that has been submitted and not answered.
#[derive(Debug)]
struct Pending {
    recipient: Recipient,
    writable: usize,
    submitted: Instant,
    deadline: Instant,
}

#[derive(Debug)]
enum Slot {
    Free,
    /// The device has it.
    Pending(Pending),
    /// The device still has it, but nobody waits any more. Its memory may be written at any time,
    /// so the slot is not used again before the device gives it back.
    Quarantined,
    /// Answered while its submitter was still looking.
    Answered(Outcome),
}

/// A command that waits for a slot.
#[derive(Debug)]
struct Waiting {
    readable: Vec<u8>,
    pending: Pending,
}

/// An answer on its way to whoever gets it.
#[derive(Debug)]
pub(crate) enum Delivery {
    Callback(u64, Outcome),
    Doorbell(Arc<CommandDoorbell>, QueueIndex, Outcome),
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) timed_out: u64,
}

/// Where a new command went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    Slot(u16),
    Backlog,
}

pub(crate) struct State {
    ring: Ring,
    slots: Vec<Slot>,
    free: Vec<u16>,
    backlog: VecDeque<Waiting>,
    /// Why no more commands are taken.
    ended: Option<Failure>,
    deliveries: Vec<Delivery>,
    counters: Counters,
    /// When the completion thread looks by itself; `None`: not before it is woken.
    wakes_at: Option<Instant>,
}

impl State {
    pub(crate) fn new(ring: Ring, slots: u16) -> Self {
        Self {
            ring,
            slots: (0..slots).map(|_| Slot::Free).collect(),
            free: (0..slots).rev().collect(),
            backlog: VecDeque::new(),
            ended: None,
            deliveries: Vec::new(),
            counters: Counters::default(),
            wakes_at: None,
        }
    }

    /// Takes a command, into the ring if it has room. The device is not notified yet.
    pub(crate) fn add(
        &mut self,
        recipient: Recipient,
        readable: &[u8],
        writable: usize,
        timeout: Duration,
        now: Instant,
    ) -> Result<Placed> {
        let fits = 1..=PART_LIMIT;
        if !fits.contains(&readable.len()) || !fits.contains(&writable) {
            return Err(Error::Size {
                readable: readable.len(),
                writable,
                limit: PART_LIMIT,
            });
        }
        if let Some(failure) = self.ended {
            return Err(failure.into());
        }
        let pending = Pending {
            recipient,
            writable,
            submitted: now,
            deadline: now.checked_add(timeout).unwrap_or(now + FAR),
        };
        if self.backlog.is_empty() {
            if let Some(slot) = self.free.pop() {
                self.counters.submitted += 1;
                self.publish(slot, readable, pending);
                return Ok(Placed::Slot(slot));
            }
        }
        let of_callers = matches!(pending.recipient, Recipient::Submitter(_));
        if of_callers && self.backlog.len() >= BACKLOG_LIMIT {
            return Err(Error::Full {
                limit: BACKLOG_LIMIT,
            });
        }
        self.counters.submitted += 1;
        self.backlog.push_back(Waiting {
            readable: readable.to_vec(),
            pending: pending.left_by_submitter(),
        });
        Ok(Placed::Backlog)
    }

    /// Gives a command to the device. Should that fail, the command is answered as all others are.
    fn publish(&mut self, slot: u16, readable: &[u8], pending: Pending) {
        let published = self.ring.publish(slot, readable, pending.writable);
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = Slot::Pending(pending);
        }
        if published.is_err() {
            self.end(Failure::Device);
        }
    }

    /// Whether the device wants to be notified of what was published.
    pub(crate) fn wants_notification(&self) -> bool {
        self.ring.wants_notification()
    }

    /// Keeps the device from interrupting while a submitter is about to look at the used ring by
    /// itself. Each submitter that switches interrupts off switches them on again and then
    /// harvests, so whatever was answered silently meanwhile is found by the last of them.
    pub(crate) fn want_interrupts(&mut self, on: bool) {
        if self.ring.want_interrupts(on).is_err() {
            self.end(Failure::Device);
        }
    }

    /// Takes what the device has finished out of the used ring.
    pub(crate) fn harvest(&mut self, now: Instant, latency: &Histogram) {
        if self.ended.is_none() && self.try_harvest(now, latency).is_err() {
            log::error!("The device has corrupted its administration queue");
            self.end(Failure::Device);
        }
    }

    /// Ends after at most as many steps as the device holds commands, whatever it does meanwhile.
    fn try_harvest(&mut self, now: Instant, latency: &Histogram) -> Result<(), Broken> {
        loop {
            let outstanding = self.slots.len() - self.free.len() - self.answered();
            let Some((slot, len)) = self.ring.next_used(outstanding)? else {
                return Ok(());
            };
            let place = self.slots.get_mut(usize::from(slot)).ok_or(Broken)?;
            let writable = match place {
                Slot::Pending(pending) => pending.writable,
                Slot::Quarantined => 0,
                // It gave back what it was not given, or gave it back twice.
                Slot::Free | Slot::Answered(_) => return Err(Broken),
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(writable);
            let answer = self.ring.answer(slot, len)?;
            if let Slot::Pending(pending) = std::mem::replace(place, Slot::Free) {
                latency.record_duration(now.saturating_duration_since(pending.submitted));
                self.counters.completed += 1;
                if let Recipient::Submitter(_) = pending.recipient {
                    *place = Slot::Answered(Ok(answer));
                    continue;
                }
                self.deliver(pending.recipient, Ok(answer));
            }
            self.free.push(slot);
        }
    }

    fn answered(&self) -> usize {
        let answered = |slot: &&Slot| matches!(slot, Slot::Answered(_));
        self.slots.iter().filter(answered).count()
    }

    /// What has become of a command whose submitter has looked once; `None` if the answer comes
    /// later, by the callback.
    pub(crate) fn collect(&mut self, slot: u16) -> Option<Outcome> {
        let place = self.slots.get_mut(usize::from(slot))?;
        match std::mem::replace(place, Slot::Free) {
            Slot::Answered(outcome) => {
                self.free.push(slot);
                Some(outcome)
            }
            Slot::Pending(pending) => {
                *place = Slot::Pending(pending.left_by_submitter());
                None
            }
            other => {
                *place = other;
                None
            }
        }
    }

    /// Gives up on commands whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        let mut expired = Vec::new();
        for place in &mut self.slots {
            if matches!(place, Slot::Pending(pending) if pending.is_over(now)) {
                if let Slot::Pending(pending) = std::mem::replace(place, Slot::Quarantined) {
                    expired.push(pending);
                }
            }
        }
        let (over, waiting) = std::mem::take(&mut self.backlog)
            .into_iter()
            .partition::<VecDeque<_>, _>(|waiting| waiting.pending.is_over(now));
        self.backlog = waiting;
        expired.extend(over.into_iter().map(|waiting| waiting.pending));
        for pending in expired {
            self.counters.timed_out += 1;
            self.deliver(pending.recipient, Err(Failure::Timeout));
        }
    }

    /// Moves commands from the backlog into the ring; true if there were any.
    pub(crate) fn pump(&mut self) -> bool {
        let mut moved = false;
        while !self.backlog.is_empty() {
            let Some(slot) = self.free.pop() else {
                break;
            };
            if let Some(Waiting { readable, pending }) = self.backlog.pop_front() {
                self.publish(slot, &readable, pending);
                moved = true;
            }
        }
        moved
    }

    /// Takes no more commands and answers all there are with `failure`; false if that was done.
    pub(crate) fn end(&mut self, failure: Failure) -> bool {
        if self.ended == Some(Failure::Closed) {
            return false;
        }
        self.ended = Some(failure);
        let mut unanswered = Vec::new();
        for place in &mut self.slots {
            match std::mem::replace(place, Slot::Quarantined) {
                Slot::Pending(pending) => match pending.recipient {
                    Recipient::Submitter(_) => *place = Slot::Answered(Err(failure)),
                    _ => unanswered.push(pending),
                },
                Slot::Quarantined => {}
                other => *place = other,
            }
        }
        unanswered.extend(self.backlog.drain(..).map(|waiting| waiting.pending));
        for pending in unanswered {
            self.deliver(pending.recipient, Err(failure));
        }
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.ended == Some(Failure::Closed)
    }

    pub(crate) fn take_deliveries(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Commands submitted and not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending().count()
    }

    /// Whether the device holds any command.
    pub(crate) fn device_is_busy(&self) -> bool {
        let held = |slot: &Slot| matches!(slot, Slot::Pending(_) | Slot::Quarantined);
        self.ended.is_none() && self.slots.iter().any(held)
    }

    /// Notes when the completion thread looks again: at `poll` or at the nearest deadline.
    pub(crate) fn plan(&mut self, poll: Option<Instant>) -> Option<Instant> {
        let deadlines = self.pending().map(|pending| pending.deadline);
        self.wakes_at = deadlines.chain(poll).min();
        self.wakes_at
    }

    /// Whether the completion thread has to be woken for what a submitter left behind.
    pub(crate) fn needs_wake(&self) -> bool {
        let nearest = self.pending().map(|pending| pending.deadline).min();
        let too_late = match (nearest, self.wakes_at) {
            (Some(nearest), Some(planned)) => nearest < planned,
            (nearest, None) => nearest.is_some(),
            (None, Some(_)) => false,
        };
        too_late || !self.deliveries.is_empty() || !self.backlog.is_empty() && !self.free.is_empty()
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        let in_slots = self.slots.iter().filter_map(|slot| match slot {
            Slot::Pending(pending) => Some(pending),
            _ => None,
        });
        in_slots.chain(self.backlog.iter().map(|waiting| &waiting.pending))
    }

    fn deliver(&mut self, recipient: Recipient, outcome: Outcome) {
        self.deliveries.push(match recipient {
            Recipient::Submitter(id) | Recipient::Callback(id) => Delivery::Callback(id, outcome),
            Recipient::Doorbell(doorbell, queue) => Delivery::Doorbell(doorbell, queue, outcome),
        });
    }
}

/// Later than any command waits.
const FAR: Duration = Duration::from_secs(1 << 30);

impl Pending {
    fn left_by_submitter(mut self) -> Self {
        if let Recipient::Submitter(id) = self.recipient {
            self.recipient = Recipient::Callback(id);
        }
        self
    }

    /// A submitter that is still looking ends its own wait.
    fn is_over(&self, now: Instant) -> bool {
        self.deadline <= now && !matches!(self.recipient, Recipient::Submitter(_))
    }
}
