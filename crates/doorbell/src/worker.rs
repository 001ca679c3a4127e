use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::Instant;

use retrovf_pci::{NotifyTarget, QueueIndex};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use crate::Mode;

/// What the thread knows of one [`crate::Forward`].
pub(crate) struct Slot {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) target: NotifyTarget,
    pub(crate) queue: QueueIndex,
    pub(crate) kicks: Arc<AtomicU64>,
}

/// Place of a [`Slot`] in the thread's table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotIndex(usize);

pub(crate) enum Command {
    Add {
        slot: Slot,
        reply: SyncSender<io::Result<SlotIndex>>,
    },
    Remove {
        slot: SlotIndex,
        reply: SyncSender<()>,
    },
}

/// The state of the doorbell thread.
pub(crate) struct Worker {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Command>,
    slots: Vec<Option<Slot>>,
    free: Vec<SlotIndex>,
    mode: Mode,
    hot: Hot,
}

/// The slot that is looked at by itself while the thread does not sleep: a queue that kicks goes on to
/// kick, and looking at its counter takes half as long as asking which of all counters are up.
#[derive(Default)]
struct Hot {
    slot: usize,
    /// It is out of the epoll set: a `write` to its eventfd then has nobody to wake, which takes a kick
    /// from 630 to 565 ns, what a loop of nothing but reads has.
    alone: bool,
    /// Signals of this slot since one of another; once it is alone, of others since one of this.
    streak: u32,
}

/// Signals taken from the kernel at a time.
const BATCH: usize = 64;
/// Looks at the counter of the slot that was signalled last, between two looks at all.
const LOOKS: usize = 32;
/// Signals in a row that make a slot hot and alone, or end that: changing the epoll set costs as much
/// as a kick.
const STREAK: u32 = 16;
/// Event data of the wake eventfd; no slot has this index.
const WAKE: u64 = u64::MAX;

impl Worker {
    pub(crate) fn new(
        wake: Arc<OwnedFd>,
        inbox: Receiver<Command>,
        mode: Mode,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            inbox,
            slots: Vec::new(),
            free: Vec::new(),
            mode,
            hot: Hot::default(),
        })
    }

    /// The loop. Between `wait` and the next `wait` only commands lock or allocate, and they are
    /// looked at only if the wake eventfd says that there are some.
    ///
    /// Commands run after all signals of a batch. So a slot is never taken away, nor its place given
    /// to another, while an event that names it is still to come: once removed from the epoll set,
    /// it is in no later batch.
    pub(crate) fn run(mut self) {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        let mut patience = Patience::new(self.mode);
        loop {
            let mut timeout = patience.timeout();
            if timeout.is_some() {
                if self.look() {
                    patience.renew();
                }
            } else if !self.rejoin() {
                timeout = Some(&LOOK);
            }
            let ready = match epoll::wait(&self.epoll, &mut events, timeout) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    log::error!("The doorbell thread ends: waiting for signals: {errno}");
                    return;
                }
            };
            if !ready.is_empty() {
                patience.renew();
            }
            let mut woken = false;
            for event in ready {
                match event.data.u64() {
                    WAKE => woken = true,
                    at => {
                        let at = usize::try_from(at).unwrap_or(usize::MAX);
                        if let Some(Some(slot)) = self.slots.get(at) {
                            slot.deliver();
                            self.signalled(at);
                        }
                    }
                }
            }
            if woken && !self.obey() {
                return;
            }
        }
    }

    /// Looks at the hot slot; bounded, so that the others get their turn. True if it was signalled.
    fn look(&mut self) -> bool {
        let Some(Some(slot)) = self.slots.get(self.hot.slot) else {
            return false;
        };
        let signals = (0..LOOKS).filter(|_| slot.deliver()).count() as u32;
        if self.hot.alone {
            if signals > 0 {
                self.hot.streak = 0;
            }
            return signals > 0;
        }
        self.hot.streak = self.hot.streak.saturating_add(signals);
        if self.hot.streak >= STREAK {
            match epoll::delete(&self.epoll, &*slot.fd) {
                Ok(()) => (self.hot.alone, self.hot.streak) = (true, 0),
                Err(errno) => log::error!("Ending the watch of a doorbell: {errno}"),
            }
        }
        signals > 0
    }

    /// Takes note of a signal that came through the epoll set.
    fn signalled(&mut self, at: usize) {
        if self.hot.alone {
            self.hot.streak += 1;
            if self.hot.streak < STREAK || !self.rejoin() {
                return;
            }
        }
        if at != self.hot.slot {
            (self.hot.slot, self.hot.streak) = (at, 0);
        }
    }

    /// Puts the hot slot back into the epoll set; false if that fails, and it has to be looked at.
    ///
    /// A kick meanwhile is not lost: a counter above 0 is reported as soon as it is in the set.
    fn rejoin(&mut self) -> bool {
        if !self.hot.alone {
            return true;
        }
        let watched = match self.slots.get(self.hot.slot) {
            Some(Some(slot)) => watch(&self.epoll, slot, SlotIndex(self.hot.slot)),
            _ => Ok(()),
        };
        (self.hot.alone, self.hot.streak) = (watched.is_err(), 0);
        watched.is_ok()
    }

    /// Carries out what is in the inbox; false when there is nobody left to send more.
    fn obey(&mut self) -> bool {
        // Read before the inbox is looked at: a command sent later signals again.
        let _ = take_signals(&self.wake);
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Add { slot, reply }) => {
                    let _ = reply.send(self.add(slot));
                }
                Ok(Command::Remove { slot, reply }) => {
                    self.remove(slot);
                    let _ = reply.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, slot: Slot) -> io::Result<SlotIndex> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            SlotIndex(self.slots.len() - 1)
        });
        if let Err(errno) = watch(&self.epoll, &slot, index) {
            self.free.push(index);
            return Err(errno.into());
        }
        if let Some(place) = self.slots.get_mut(index.0) {
            *place = Some(slot);
        }
        Ok(index)
    }

    fn remove(&mut self, index: SlotIndex) {
        let Some(slot) = self.slots.get_mut(index.0).and_then(Option::take) else {
            return;
        };
        if self.hot.slot == index.0 && self.hot.alone {
            self.hot = Hot::default();
        } else if let Err(errno) = epoll::delete(&self.epoll, &*slot.fd) {
            // The peer may keep its copy of the eventfd open, so closing ours would not end the watch.
            log::error!("Ending the watch of a doorbell: {errno}");
        }
        // Signals that the batch before this command was too early for.
        slot.deliver();
        self.free.push(index);
    }
}

fn watch(epoll: &OwnedFd, slot: &Slot, index: SlotIndex) -> rustix::io::Result<()> {
    let data = EventData::new_u64(index.0 as u64);
    // Level triggered: a counter that is not 0 is reported until it has been read.
    epoll::add(epoll, &*slot.fd, data, EventFlags::IN)
}

/// Decides whether to look for signals or to wait for them.
struct Patience {
    mode: Mode,
    until: Option<Instant>,
}

/// A wait of no time at all.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

impl Patience {
    fn new(mode: Mode) -> Self {
        Self { mode, until: None }
    }

    /// There was a signal; more may follow.
    #[inline]
    fn renew(&mut self) {
        if let Mode::Adaptive { spin } = self.mode {
            self.until = Some(Instant::now() + spin);
        }
    }

    #[inline]
    fn timeout(&self) -> Option<&'static Timespec> {
        let look = match self.mode {
            Mode::Blocking => false,
            Mode::Busy => true,
            Mode::Adaptive { .. } => self.until.is_some_and(|until| Instant::now() < until),
        };
        look.then_some(&LOOK)
    }
}

impl Slot {
    /// Rings if the eventfd has been signalled, and says whether it has.
    ///
    /// No kick is lost, because the counter is read before the ring: a kick before the read is
    /// covered by this ring, and one after it leaves the counter above 0, so that the next wait
    /// reports it. Read after the ring, a kick in between would be cleared and never rung.
    ///
    /// What the guest wrote to its rings before the kick is visible to the device before the ring:
    /// write and read of an eventfd take the same lock in the kernel, which orders the guest's
    /// stores before our store to the device, and x86 keeps stores in order. The device then reads
    /// the rings itself.
    #[inline]
    fn deliver(&self) -> bool {
        let signalled = take_signals(&self.fd);
        if signalled {
            self.target.ring(self.queue);
            self.kicks.fetch_add(1, Ordering::Relaxed);
        }
        signalled
    }
}

/// Sets the counter of an eventfd to 0 and tells whether it was above.
///
/// `O_NONBLOCK` belongs to the open file, so a peer that holds a copy of the descriptor can clear
/// it, read the counter itself, and so leave us blocked in a plain read. NOWAIT rules that out.
#[inline]
fn take_signals(fd: impl AsFd) -> bool {
    let mut counter = [0; 8];
    let mut buffers = [IoSliceMut::new(&mut counter)];
    // An offset of u64::MAX stands for "none", as a stream needs it.
    rustix::io::preadv2(fd, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT) == Ok(counter.len())
}
