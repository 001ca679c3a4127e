use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use retrovf_pci::{NotifyTarget, QueueIndex};
use rustix::event::{eventfd, EventfdFlags};
use rustix::thread::{sched_setaffinity, CpuSet};

use crate::worker::{Command, Slot, SlotIndex, Worker};

/// The thread "retrovf-doorbell", which rings devices when eventfds are signalled.
///
/// The thread alone owns the table of what to ring; adding and removing an entry are commands to it.
/// It ends when the engine and all its [`Forward`]s are dropped.
pub struct Engine {
    /// `None` only while the engine is dropped.
    commands: Option<Sender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread waits for signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Sleeps. A kick of an idle guest costs the time that its CPU takes to wake up.
    #[default]
    Blocking,
    /// Looks without sleeping for so long after the last kick, then sleeps. Kicks of a busy guest
    /// find the thread awake.
    Adaptive {
        /// How long.
        spin: Duration,
    },
    /// Never sleeps: takes a whole CPU.
    Busy,
}

/// How to run the thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// How it waits.
    pub mode: Mode,
    /// The one CPU that it may run on; without it, any.
    pub cpu: Option<usize>,
}

impl Engine {
    /// Starts the thread, blocking and on any CPU.
    pub fn new() -> io::Result<Arc<Self>> {
        Self::with(EngineOptions::default())
    }

    /// Starts the thread. A CPU that this process may not use is an error.
    pub fn with(options: EngineOptions) -> io::Result<Arc<Self>> {
        let wake = Arc::new(new_eventfd()?);
        let (commands, inbox) = channel();
        let worker = Worker::new(Arc::clone(&wake), inbox, options.mode)?;
        let (bound, answer) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("retrovf-doorbell".into())
            .spawn(move || {
                let place = options.cpu.map_or(Ok(()), run_on);
                let failed = place.is_err();
                let _ = bound.send(place);
                if !failed {
                    worker.run();
                }
            })?;
        wait(&answer)??;
        Ok(Arc::new(Self {
            commands: Some(commands),
            wake,
            thread: Some(thread),
        }))
    }

    /// Makes an eventfd whose signals ring `target` with `queue`. Each ring adds 1 to `kicks`;
    /// signals that arrive together make one ring, as the device needs no more.
    pub fn forward(
        self: &Arc<Self>,
        target: NotifyTarget,
        queue: QueueIndex,
        kicks: Arc<AtomicU64>,
    ) -> io::Result<Forward> {
        if self.is_current_thread() {
            // Only the engine thread could answer the command.
            return Err(io::ErrorKind::Deadlock.into());
        }
        let fd = Arc::new(new_eventfd()?);
        let slot = Slot {
            fd: Arc::clone(&fd),
            target,
            queue,
            kicks,
        };
        let (reply, answer) = sync_channel(1);
        self.send(Command::Add { slot, reply })?;
        let slot = wait(&answer)??;
        Ok(Forward {
            fd,
            slot,
            engine: Arc::clone(self),
        })
    }

    fn remove(&self, slot: SlotIndex) {
        let (reply, answer) = sync_channel(1);
        let sent = self.send(Command::Remove { slot, reply });
        // A target that drops a forward from within its own ring cannot wait for itself; the entry
        // then ends right after that ring. An engine that has died rings nothing.
        if sent.is_ok() && !self.is_current_thread() {
            let _ = wait(&answer);
        }
    }

    fn send(&self, command: Command) -> io::Result<()> {
        let sent = self.commands.as_ref().map(|queue| queue.send(command));
        match sent {
            Some(Ok(())) => self.wake(),
            _ => Err(stopped()),
        }
    }

    fn wake(&self) -> io::Result<()> {
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn is_current_thread(&self) -> bool {
        let current = thread::current().id();
        self.thread
            .as_ref()
            .is_some_and(|own| own.thread().id() == current)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let on_its_own_thread = self.is_current_thread();
        // A queue without senders is what tells the thread to end.
        self.commands = None;
        let woken = self.wake();
        if let Some(thread) = self.thread.take() {
            if woken.is_ok() && !on_its_own_thread && thread.join().is_err() {
                log::error!("The doorbell thread panicked");
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// An eventfd that rings a device, until dropped.
///
/// A signal given before the drop is delivered; when the drop returns, the target is not rung any
/// more and no longer held.
#[derive(Debug)]
pub struct Forward {
    fd: Arc<OwnedFd>,
    slot: SlotIndex,
    engine: Arc<Engine>,
}

impl Forward {
    /// The eventfd to signal.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.engine.remove(self.slot);
    }
}

fn run_on(cpu: usize) -> io::Result<()> {
    // `CpuSet::set` wants an index inside the set.
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn wait<T>(answer: &Receiver<T>) -> io::Result<T> {
    answer.recv().map_err(|_| stopped())
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "The doorbell thread has stopped")
}
