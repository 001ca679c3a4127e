//! MSI-X eventfds, or the lack of them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use retrovf_pci::Error;
use retrovf_vfio_user::Client;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};

use crate::Result;

/// The MSI-X index.
const MSIX: u32 = 2;

/// Which vector is for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vectors {
    pub(crate) config: u16,
    pub(crate) queues: [u16; 2],
}

/// The vectors in use: one for the configuration and one for each queue, or one for both queues.
#[derive(Debug)]
pub(crate) struct Interrupts {
    pub(crate) vectors: Vectors,
    fds: Vec<OwnedFd>,
}

impl Interrupts {
    /// Takes what `available` vectors allow; fewer than two are no use.
    pub(crate) fn new(available: u16) -> Result<Option<Self>> {
        let queues = match available {
            0 | 1 => return Ok(None),
            2 => [1, 1],
            _ => [1, 2],
        };
        let create = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let fds: rustix::io::Result<Vec<_>> = (0..=queues[1]).map(|_| create()).collect();
        Ok(Some(Self {
            vectors: Vectors { config: 0, queues },
            fds: fds.map_err(Error::io("Creating an eventfd"))?,
        }))
    }

    pub(crate) fn install(&self, client: &mut Client) -> Result<()> {
        let fds: Vec<_> = self.fds.iter().map(|fd| Some(fd.as_fd())).collect();
        Ok(client.set_irqs_eventfds(MSIX, 0, &fds)?)
    }

    pub(crate) fn disable(client: &mut Client) -> Result<()> {
        Ok(client.set_irqs_disable(MSIX)?)
    }
}

/// Waits until an interrupt has fired, the server has something for the client, or `until`. With
/// `interrupts` `None` only the server is waited for.
pub(crate) fn wait(client: &Client, interrupts: Option<&Interrupts>, until: Instant) -> Result<()> {
    let fds = interrupts.map_or(&[][..], |interrupts| &interrupts.fds);
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    polled.push(PollFd::new(client, PollFlags::IN));
    let timeout = timespec(until.saturating_duration_since(Instant::now()));
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(Error::io("Waiting for an interrupt")(errno).into()),
    }
    // Cleared before the caller looks at its rings: what happens later signals again.
    for fd in fds {
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
    Ok(())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
