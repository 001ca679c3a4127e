//! The thread that notices answers and deadlines, and the only one that calls back.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_pci::Error;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::state::Delivery;
use super::{Completion, OnComplete, Shared};

/// First and longest pause between two looks in poll mode: 20 us is the time of the fastest answer
/// from hardware, 1 ms costs little while a slow one is waited for.
const POLL_MIN: Duration = Duration::from_micros(20);
const POLL_MAX: Duration = Duration::from_millis(1);

pub(crate) struct Completer {
    shared: Arc<Shared>,
    /// `None`: poll.
    interrupt: Option<OwnedFd>,
    on_complete: OnComplete,
    pause: Duration,
    seen: (u64, u64),
}

/// An eventfd that nobody blocks on.
pub(crate) fn new_eventfd() -> Result<OwnedFd, Error> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(Error::io("Creating an eventfd"))
}

impl Completer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        interrupt: Option<OwnedFd>,
        on_complete: OnComplete,
    ) -> Self {
        Self {
            shared,
            interrupt,
            on_complete,
            pause: POLL_MIN,
            seen: (0, 0),
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            // Before the rings are looked at: what happens later signals again.
            self.clear_signals();
            let mut state = self.shared.lock();
            let now = Instant::now();
            // Answers before deadlines, so that an interrupt that was lost costs time, not commands.
            state.harvest(now, &self.shared.latency);
            state.expire(now);
            let notify = state.pump() && state.wants_notification();
            let deliveries = state.take_deliveries();
            let closed = state.is_closed();
            drop(state);
            if notify {
                self.shared.notify();
            }
            let idle = deliveries.is_empty();
            for delivery in deliveries {
                self.deliver(delivery);
            }
            if !idle {
                // What was delivered may have made more work.
                continue;
            }
            if closed {
                return;
            }
            self.wait();
        }
    }

    fn deliver(&self, delivery: Delivery) {
        match delivery {
            Delivery::Callback(id, outcome) => (self.on_complete)(Completion { id, outcome }),
            Delivery::Doorbell(doorbell, queue, outcome) => doorbell.completed(queue, outcome),
        }
    }

    fn wait(&mut self) {
        let mut state = self.shared.lock();
        let look = self.interrupt.is_none() && state.device_is_busy();
        let counters = state.counters();
        let seen = (counters.submitted, counters.completed);
        self.pause = match look && seen == self.seen {
            true => (self.pause * 2).min(POLL_MAX),
            false => POLL_MIN,
        };
        self.seen = seen;
        let until = state.plan(look.then(|| Instant::now() + self.pause));
        drop(state);
        // A submitter that saw another plan has signalled, so the wait below does not last.
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        fds.extend(
            self.interrupt
                .as_ref()
                .map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                // Only a lack of kernel memory is possible; looking again later is all there is.
                log::error!("Waiting for the administration queue: {errno}");
                std::thread::sleep(POLL_MAX);
            }
        }
    }

    fn clear_signals(&self) {
        for fd in [Some(&self.shared.wake), self.interrupt.as_ref()]
            .into_iter()
            .flatten()
        {
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
