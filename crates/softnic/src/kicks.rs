use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};

use crate::Error;

/// Work for a thread: a bit for each queue and for the other reasons to run, and an eventfd to wake
/// it. Raising a bit never blocks nor allocates, and no bit overwrites another.
#[derive(Debug)]
pub(crate) struct Kicks {
    words: [AtomicU64; 3],
    /// The thread is about to sleep or sleeps: raising a bit has to write the eventfd.
    asleep: AtomicBool,
    stop: AtomicBool,
    event: OwnedFd,
}

/// The port's inbox has frames.
pub(crate) const INBOX: u16 = 191;
/// Tell the driver of a configuration change.
pub(crate) const CONFIG_CHANGE: u16 = 190;
/// Tell whoever holds the function of an error.
pub(crate) const FUNCTION_ERROR: u16 = 189;
/// Look at the timers again.
pub(crate) const TIMERS: u16 = 188;

impl Kicks {
    pub(crate) fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io("Creating an eventfd"))?;
        Ok(Self {
            words: Default::default(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            event,
        })
    }

    /// Raises a bit and wakes the thread. Bits past the last one are ignored.
    pub(crate) fn raise(&self, bit: u16) {
        self.mark(bit);
        self.wake();
    }

    /// Raises a bit for the thread itself to find.
    pub(crate) fn mark(&self, bit: u16) {
        if let Some(word) = self.words.get(usize::from(bit / 64)) {
            word.fetch_or(1 << (bit % 64), SeqCst);
        }
    }

    /// Takes all bits.
    pub(crate) fn take(&self) -> Pending {
        Pending([0, 1, 2].map(|i: usize| self.words.get(i).map_or(0, |word| word.swap(0, SeqCst))))
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, SeqCst);
        self.wake();
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Forgets everything, before a thread starts.
    pub(crate) fn clear(&self) {
        self.take();
        self.stop.store(false, SeqCst);
    }

    /// Sleeps until a bit is raised, `other` is ready, or the time is over. Says what `other` is
    /// ready for.
    pub(crate) fn sleep(
        &self,
        other: Option<(BorrowedFd<'_>, PollFlags)>,
        timeout: Option<Duration>,
    ) -> PollFlags {
        self.asleep.store(true, SeqCst);
        let mut ready = PollFlags::empty();
        // SeqCst on both sides: either we see the bit, or whoever raised it sees us asleep.
        let work = self.stopping() || self.words.iter().any(|word| word.load(SeqCst) != 0);
        let zero = Duration::ZERO;
        let timeout = if work { Some(zero) } else { timeout };
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let mut own = [PollFd::new(&self.event, PollFlags::IN)];
        let mut woken = false;
        // Failures other than an interruption would mean wrong arguments; the caller's loop looks
        // at its bits in any case.
        match other {
            Some((fd, flags)) => {
                let [own] = own;
                let mut fds = [own, PollFd::from_borrowed_fd(fd, flags)];
                if poll(&mut fds, timeout.as_ref()).is_ok() {
                    woken = !fds[0].revents().is_empty();
                    ready = fds[1].revents();
                }
            }
            None if work => {}
            None => {
                let _ = poll(&mut own, timeout.as_ref());
                woken = !own[0].revents().is_empty();
            }
        }
        self.asleep.store(false, SeqCst);
        // A wake-up that comes only now ends the next sleep.
        if woken {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        ready
    }

    fn wake(&self) {
        if self.asleep.swap(false, SeqCst) {
            // A full counter would be a wake-up as well.
            let _ = rustix::io::write(self.event.as_fd(), &1u64.to_ne_bytes());
        }
    }
}

/// Bits taken from [`Kicks`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending([u64; 3]);

impl Pending {
    pub(crate) fn is_empty(self) -> bool {
        self.0 == [0; 3]
    }

    pub(crate) fn has(self, bit: u16) -> bool {
        self.0
            .get(usize::from(bit / 64))
            .is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// The queues below `count` whose bit is set.
    pub(crate) fn queues(self, count: u16) -> impl Iterator<Item = u16> {
        (0..count).filter(move |&queue| self.has(queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn two_kicks_before_the_thread_looks_are_both_kept() {
        let kicks = Kicks::new().unwrap();
        kicks.raise(0);
        kicks.raise(129);
        kicks.raise(u16::MAX);
        let pending = kicks.take();
        assert_eq!(pending.queues(130).collect::<Vec<_>>(), [0, 129]);
        assert!(kicks.take().is_empty());
    }

    #[test]
    fn a_kick_before_or_during_sleep_ends_it() {
        let kicks = Kicks::new().unwrap();
        let long = Some(Duration::from_secs(20));
        let start = Instant::now();
        kicks.raise(3);
        kicks.sleep(None, long);
        assert!(kicks.take().has(3));
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| kicks.sleep(None, long));
            std::thread::sleep(Duration::from_millis(20));
            kicks.raise(5);
            sleeper.join().unwrap();
        });
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
