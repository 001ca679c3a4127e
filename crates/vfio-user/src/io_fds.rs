use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use retrovf_doorbell::{Engine, EngineOptions, Forward};
use retrovf_pci::{Armed, NotifyTarget, QueueIndex};
use retrovf_spec::legacy::QUEUE_NOTIFY;
use rustix::event::{eventfd, EventfdFlags};

use crate::device::ServedDevice;
use crate::wire::{IO_FD_DATAMATCH, IO_FD_IOEVENTFD, IO_FD_PIO, IO_FD_SIZE};

/// The eventfds that a session gave to its client in GET_REGION_IO_FDS: one for each queue index,
/// made when first asked for, ended with the session.
#[derive(Default)]
pub(crate) struct IoFds {
    forwards: Vec<Forwarded>,
}

/// Who turns the signals of an eventfd into notifications.
enum Forwarder {
    /// The kernel, without a wake-up of this process.
    Kernel { _armed: Armed },
    /// The thread of the engine.
    Engine { _forward: Forward },
}

struct Forwarded {
    fd: Arc<OwnedFd>,
    _forwarder: Forwarder,
    /// Counts those alike.
    gauge: Arc<AtomicU64>,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One engine, and so one thread, forwards for all devices of the process.
static ENGINE: Mutex<Option<Arc<Engine>>> = Mutex::new(None);

fn engine() -> std::io::Result<Arc<Engine>> {
    let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = &*engine {
        return Ok(Arc::clone(engine));
    }
    Ok(Arc::clone(engine.insert(Engine::new()?)))
}

/// Starts the engine that forwards for all devices of the process. Without this call it starts when
/// it is first needed, blocking and on any CPU. There is only one: later calls fail with
/// `AlreadyExists`.
pub fn start_engine(options: EngineOptions) -> std::io::Result<()> {
    let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    if engine.is_some() {
        return Err(std::io::ErrorKind::AlreadyExists.into());
    }
    *engine = Some(Engine::with(options)?);
    Ok(())
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
            self.forwards.push(Forwarded::new(device, target, queue)?);
        }
        let fds = self.forwards.iter().take(count);
        Ok(fds.map(|forwarded| Arc::clone(&forwarded.fd)).collect())
    }
}

impl Forwarded {
    fn new(
        device: &ServedDevice,
        target: &NotifyTarget,
        queue: QueueIndex,
    ) -> std::io::Result<Self> {
        let counters = &device.counters;
        let (fd, forwarder, gauge) = match in_kernel(device, target, queue)? {
            Some(armed) => {
                let fd = Arc::clone(armed.fd());
                let gauge = &counters.kernel_doorbells;
                (fd, Forwarder::Kernel { _armed: armed }, gauge)
            }
            None => {
                let kicks = Arc::clone(&counters.notifies_forwarded);
                let forward = engine()?.forward(target.clone(), queue, kicks)?;
                let fd = Arc::clone(forward.fd());
                let forwarder = Forwarder::Engine { _forward: forward };
                (fd, forwarder, &counters.engine_doorbells)
            }
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            fd,
            _forwarder: forwarder,
            gauge: Arc::clone(gauge),
        })
    }
}

/// Has the kernel forward the queue, if the device has that way and the kernel room for it.
fn in_kernel(
    device: &ServedDevice,
    target: &NotifyTarget,
    queue: QueueIndex,
) -> std::io::Result<Option<Armed>> {
    // Without blocking: the kernel consumes the signals, but whoever holds the descriptor may read.
    let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    match target.arm(queue, &fd) {
        Some(Ok(armed)) => Ok(Some(armed)),
        Some(Err(error)) => {
            let bdf = device.member.bdf();
            log::debug!(
                "{bdf}: Queue {} is forwarded in user space: {error}",
                queue.0
            );
            Ok(None)
        }
        None => Ok(None),
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
