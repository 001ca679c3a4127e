//! The administration virtqueue (virtio 1.4, "Administration Virtqueues").

mod completer;
mod device;
mod ring;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use retrovf_histogram::{Histogram, Snapshot};
use retrovf_pci::{NotifyTarget, QueueIndex};
use rustix::fd::OwnedFd;

use self::completer::{new_eventfd, Completer};
use self::device::QueueDevice;
use self::state::{Placed, Recipient, State};
use crate::{CommandDoorbell, Failure, Result, Transport};

/// How answers are noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CompletionMode {
    /// By an MSI-X vector.
    #[default]
    Interrupt,
    /// By looking, while commands are in flight.
    Poll,
}

/// How to set an admin queue up.
#[derive(Debug, Clone, Copy)]
pub struct AdminQueueOptions {
    /// Which queue, see [`Transport::admin_queues`].
    pub index: u16,
    /// Most ring entries; a command takes two. The device may have fewer.
    pub size: u16,
    /// How answers are noticed.
    pub completion: CompletionMode,
    /// The MSI-X vector for [`CompletionMode::Interrupt`].
    pub vector: u16,
    /// Where the device sees the queue's memory.
    pub iova: u64,
}

impl Default for AdminQueueOptions {
    fn default() -> Self {
        Self {
            index: 0,
            size: 64,
            completion: CompletionMode::Interrupt,
            vector: 0,
            iova: 0x10_0000,
        }
    }
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The caller's id of the command.
    pub id: u64,
    /// The writable bytes that the device says it wrote, or why there are none.
    pub outcome: Result<Vec<u8>, Failure>,
}

/// What a queue has done so far.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Commands taken.
    pub submitted: u64,
    /// Commands that the device answered in time.
    pub completed: u64,
    /// Commands that it did not.
    pub timed_out: u64,
    /// Commands without an answer as yet.
    pub in_flight: usize,
    /// From submission to answer, in nanoseconds.
    pub latency: Snapshot,
}

/// An administration virtqueue in use. Any thread may submit; answers that are not there at once
/// arrive on the queue's own thread, "retrovf-admin". Dropping it closes it.
pub struct AdminQueue {
    shared: Arc<Shared>,
    device: QueueDevice,
    /// Locked for as long as a close takes.
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
}

/// What submitters and the completion thread share.
struct Shared {
    state: Mutex<State>,
    latency: Histogram,
    wake: OwnedFd,
    target: NotifyTarget,
    index: QueueIndex,
}

type OnComplete = Box<dyn Fn(Completion) + Send + Sync>;

impl Transport {
    /// Sets an admin queue up on a device whose features are negotiated, and lets the device master
    /// the bus. `on_complete` is called on the queue's thread and may use the queue. If the device
    /// has been touched when this fails, it is reset.
    pub fn create_admin_queue(
        &self,
        options: AdminQueueOptions,
        on_complete: Box<dyn Fn(Completion) + Send + Sync>,
    ) -> Result<Arc<AdminQueue>> {
        AdminQueue::open(self, &options, on_complete)
    }
}

impl AdminQueue {
    fn open(
        transport: &Transport,
        options: &AdminQueueOptions,
        on_complete: OnComplete,
    ) -> Result<Arc<Self>> {
        let interrupt = match options.completion {
            CompletionMode::Interrupt => Some(new_eventfd()?),
            CompletionMode::Poll => None,
        };
        let device = QueueDevice::map(transport, options)?;
        let (ring, slots) = device.ring(interrupt.is_some())?;
        let target = device.enable(interrupt.as_ref())?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(ring, slots)),
            latency: Histogram::new(),
            wake: new_eventfd()?,
            target,
            index: QueueIndex(options.index),
        });
        let completer = Completer::new(Arc::clone(&shared), interrupt, on_complete);
        let thread = thread::Builder::new()
            .name("retrovf-admin".into())
            .spawn(move || completer.run())
            .map_err(|source| retrovf_pci::Error::Io {
                what: "Starting the thread of an administration queue",
                source,
            })?;
        Ok(Arc::new(Self {
            shared,
            device,
            thread_id: thread.thread().id(),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Gives the device a command: `readable` whole, and room for `writable` bytes of answer.
    ///
    /// Returns the answer if the device gave it at once, as a device in this process does. Otherwise
    /// the completion callback gets it, exactly once, by `timeout` at the latest. A command that the
    /// ring has no room for waits; more than 1024 that wait are refused.
    pub fn submit(
        &self,
        id: u64,
        readable: &[u8],
        writable: usize,
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let mut state = self.shared.lock();
        let recipient = Recipient::Submitter(id);
        let mut answer = None;
        if let Placed::Slot(slot) =
            state.add(recipient, readable, writable, timeout, Instant::now())?
        {
            let notify = state.wants_notification();
            state.want_interrupts(false);
            drop(state);
            // Without the lock: a device in this process may do the whole command in here.
            if notify {
                self.shared.notify();
            }
            state = self.shared.lock();
            state.want_interrupts(true);
            state.harvest(Instant::now(), &self.shared.latency);
            answer = state.collect(slot).transpose()?;
        }
        let wake = state.needs_wake();
        drop(state);
        if wake {
            self.shared.wake();
        }
        Ok(answer)
    }

    /// Sends the notify command of a doorbell, which hears of its end. Does not wait for anything.
    pub(crate) fn post(
        &self,
        doorbell: Arc<CommandDoorbell>,
        queue: QueueIndex,
        readable: &[u8],
        writable: usize,
        timeout: Duration,
    ) -> Result<()> {
        let recipient = Recipient::Doorbell(doorbell, queue);
        let mut state = self.shared.lock();
        let placed = state.add(recipient, readable, writable, timeout, Instant::now())?;
        let notify = placed != Placed::Backlog && state.wants_notification();
        let wake = state.needs_wake();
        drop(state);
        if notify {
            self.shared.notify();
        }
        if wake {
            self.shared.wake();
        }
        Ok(())
    }

    /// What the queue has done so far.
    pub fn stats(&self) -> Stats {
        let state = self.shared.lock();
        let counters = state.counters();
        let in_flight = state.in_flight();
        drop(state);
        Stats {
            submitted: counters.submitted,
            completed: counters.completed,
            timed_out: counters.timed_out,
            in_flight,
            latency: self.shared.latency.snapshot(),
        }
    }

    /// Ends the queue: resets the device, answers what is in flight with [`Failure::Closed`] and
    /// takes the queue's memory away from the device. When it returns, the callback is not called
    /// any more, unless it is the callback that calls. May be called again.
    pub fn close(&self) {
        let on_its_own_thread = thread::current().id() == self.thread_id;
        let mut thread = if on_its_own_thread {
            // Whoever holds the lock closes the queue, and waits for this thread.
            match self.thread.try_lock() {
                Ok(thread) => thread,
                Err(_) => return,
            }
        } else {
            self.thread.lock().unwrap_or_else(PoisonError::into_inner)
        };
        if self.shared.lock().end(Failure::Closed) {
            self.device.release();
        }
        self.shared.wake();
        if on_its_own_thread {
            return;
        }
        if let Some(thread) = thread.take() {
            if thread.join().is_err() {
                log::error!("The thread of an administration queue panicked");
            }
        }
    }
}

impl Drop for AdminQueue {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for AdminQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminQueue")
            .field("index", &self.shared.index)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn notify(&self) {
        self.target.ring(self.index);
    }

    fn wake(&self) {
        // The one failure left is a counter at its limit: the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    // Nothing under the lock panics half-way through a change, and the queue must stay closable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
