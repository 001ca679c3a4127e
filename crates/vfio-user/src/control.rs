use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use retrovf_spec::legacy::IO_BAR_MAX;

use crate::counters::{count, Counters};
use crate::link::Link;
use crate::wire::{Header, RegionAccess, ACCESS_SIZE, HEADER_SIZE};

/// Takes the accesses to the legacy registers of BAR0.
pub trait ControlPlane: Send + Sync {
    /// One access, to be answered with [`ServedDevice::respond`](crate::ServedDevice::respond), from
    /// any thread, also from within this call. There is never a second one before the first is
    /// answered or has timed out. Must not block: the thread serves the client.
    fn access(&self, access: ControlAccess);
}

/// An access to BAR0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlAccess {
    /// Names the access in its answer.
    pub id: u64,
    /// Read or write.
    pub kind: ControlKind,
    /// First byte; the access lies inside BAR0.
    pub offset: u64,
    /// The guest's MSI-X enable bit, which moves the device's own registers from 20 to 24.
    pub msix_enabled: bool,
}

/// What an access to BAR0 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlKind {
    /// Reads so many bytes.
    Read {
        /// Bytes.
        length: usize,
    },
    /// Writes these bytes.
    Write(Vec<u8>),
}

/// The one access under way. It is answered once: by the control plane, by the session when its time
/// is over, or by nobody when the session ends; whoever takes it out of the slot does it.
#[derive(Debug, Default)]
pub(crate) struct ControlSlot {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    current: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    since: Instant,
    /// Other messages wait for the answer.
    wake: bool,
    answer: Answer,
}

/// Where the answer goes.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) link: Arc<Link>,
    pub(crate) request: Header,
    pub(crate) access: RegionAccess,
    pub(crate) write: bool,
}

impl Answer {
    /// Sends the reply. A read without data, or with data of the wrong length, is all ones: what an
    /// absent register reads as.
    fn send(&self, data: Option<&[u8]>) {
        if self.request.no_reply() {
            return;
        }
        let length = if self.write {
            0
        } else {
            self.access.count as usize
        };
        let mut message = [0xff; HEADER_SIZE + ACCESS_SIZE + IO_BAR_MAX as usize];
        let (head, body) = message.split_at_mut(HEADER_SIZE + ACCESS_SIZE);
        let header = self.request.reply(ACCESS_SIZE + length);
        head.copy_from_slice(&self.access.message(&header));
        match data {
            Some(data) if data.len() == length => {
                if let Some(body) = body.get_mut(..length) {
                    body.copy_from_slice(data);
                }
            }
            Some(data) => log::error!("{} bytes answer a BAR0 access of {length}", data.len()),
            None => {}
        }
        if let Some(message) = message.get(..HEADER_SIZE + ACCESS_SIZE + length) {
            self.link.output.send(message);
        }
    }
}

impl ControlSlot {
    /// Starts an access and returns its id. The slot is free: the session asked.
    pub(crate) fn begin(&self, answer: Answer) -> u64 {
        let mut state = self.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.current = Some(Pending {
            id,
            since: Instant::now(),
            wake: false,
            answer,
        });
        id
    }

    pub(crate) fn is_pending(&self, id: u64) -> bool {
        self.lock().current.as_ref().is_some_and(|p| p.id == id)
    }

    /// Asks for the session to be woken by the answer; false if it has been given already.
    pub(crate) fn wake_when_done(&self, id: u64) -> bool {
        let mut state = self.lock();
        match &mut state.current {
            Some(pending) if pending.id == id => {
                pending.wake = true;
                true
            }
            _ => false,
        }
    }

    /// The control plane's answer. Sent under the lock, so that the session goes on to the next
    /// access only behind it; sending never blocks.
    pub(crate) fn respond(&self, id: u64, data: Option<&[u8]>, counters: &Counters) -> bool {
        let mut state = self.lock();
        let Some(pending) = state.current.take_if(|pending| pending.id == id) else {
            count(&counters.late_answers);
            return false;
        };
        counters
            .control_latency
            .record_duration(pending.since.elapsed());
        pending.answer.send(data);
        if pending.wake {
            pending.answer.link.output.wake();
        }
        true
    }

    /// Answers for a control plane that took too long: reads are all ones, writes succeed. Returns
    /// false if it has answered after all.
    pub(crate) fn expire(&self, id: u64, counters: &Counters) -> bool {
        let pending = self.lock().current.take_if(|pending| pending.id == id);
        let Some(pending) = pending else {
            return false;
        };
        counters.timed_out_accesses.fetch_add(1, Ordering::Relaxed);
        pending.answer.send(None);
        true
    }

    /// Drops the access under way, unanswered.
    pub(crate) fn forget(&self) {
        self.lock().current = None;
    }

    // No operation panics half-way, so a poisoned state is a whole one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
