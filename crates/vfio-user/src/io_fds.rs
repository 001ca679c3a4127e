use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use retrovf_doorbell::{Engine, Forward};
use retrovf_pci::QueueIndex;
use retrovf_spec::legacy::QUEUE_NOTIFY;

use crate::device::ServedDevice;
use crate::wire::{IO_FD_DATAMATCH, IO_FD_IOEVENTFD, IO_FD_PIO, IO_FD_SIZE};

/// The eventfds that a session gave to its client in GET_REGION_IO_FDS: one for each queue index,
/// made when first asked for, ended with the session.
#[derive(Default)]
pub(crate) struct IoFds {
    forwards: Vec<(Forward, Arc<OwnedFd>)>,
}

/// One engine, and so one thread, forwards for all devices of the process.
fn engine() -> std::io::Result<Arc<Engine>> {
    static ENGINE: Mutex<Option<Arc<Engine>>> = Mutex::new(None);
    let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = &*engine {
        return Ok(Arc::clone(engine));
    }
    Ok(Arc::clone(engine.insert(Engine::new()?)))
}

impl IoFds {
    /// The eventfds for the first `count` queues.
    pub(crate) fn eventfds(
        &mut self,
        device: &ServedDevice,
        count: usize,
    ) -> std::io::Result<Vec<Arc<OwnedFd>>> {
        let Some(target) = &device.notify else {
            return Ok(Vec::new());
        };
        while self.forwards.len() < count {
            let Ok(queue) = u16::try_from(self.forwards.len()).map(QueueIndex) else {
                break;
            };
            let kicks = Arc::clone(&device.counters.notifies_forwarded);
            let forward = engine()?.forward(target.clone(), queue, kicks)?;
            let fd = forward.fd().try_clone_to_owned()?;
            self.forwards.push((forward, Arc::new(fd)));
        }
        let fds = self.forwards.iter().take(count);
        Ok(fds.map(|(_, fd)| Arc::clone(fd)).collect())
    }
}

/// The entry of a queue: signal descriptor `queue` when that number is written to Queue Notify.
pub(crate) fn entry(queue: u32) -> [u8; IO_FD_SIZE] {
    let mut entry = [0; IO_FD_SIZE];
    entry[0..8].copy_from_slice(&QUEUE_NOTIFY.to_ne_bytes());
    entry[8..16].copy_from_slice(&2u64.to_ne_bytes());
    entry[16..20].copy_from_slice(&queue.to_ne_bytes());
    entry[20..24].copy_from_slice(&IO_FD_IOEVENTFD.to_ne_bytes());
    entry[24..28].copy_from_slice(&(IO_FD_DATAMATCH | IO_FD_PIO).to_ne_bytes());
    entry[32..40].copy_from_slice(&u64::from(queue).to_ne_bytes());
    entry
}
