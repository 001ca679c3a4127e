//! From the write of an eventfd to the store in a device's notify word.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use retrovf_doorbell::{Engine, EngineOptions, Forward, Mode};
use retrovf_pci::{MappedWord, NotifyTarget, QueueIndex, SharedMemory};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{eventfd, EventfdFlags, Timespec};
use serde_json::Value;

use crate::placement::{cpu_time, on_server_cpu, run_on, thread_of, Placement, CLIENT_CPU};
use crate::series::{self, Contender, Plan, Resting};
use crate::Result;

/// The queue that rings; the word holds something else before.
const QUEUE: u16 = 5;
const NOTHING: u16 = 0xffff;
/// A kick that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn measure(plan: &Plan) -> Result<Vec<Value>> {
    run_on(CLIENT_CPU)?;
    let sleeping = series::measure(
        "forwarder, sleeping",
        "eventfd write to the store; the forwarder sleeps on another CPU",
        plan,
        &mut [
            Box::new(Kick::engine("retrovf, blocking", Mode::Blocking)?),
            Box::new(Kick::engine(
                "retrovf, adaptive",
                Mode::Adaptive { spin: SPIN },
            )?),
            Box::new(Kick::bare("bare epoll loop", epoll_loop)?),
            Box::new(Kick::bare("bare blocking read", read_loop)?),
        ],
    )?;
    let mut paths = vec![sleeping];
    // A spinning thread has a CPU for itself, so these two never run at the same time.
    let busy = series::measure(
        "forwarder, busy polling",
        "eventfd write to the store; the forwarder spins on another CPU",
        plan,
        &mut [
            Box::new(Resting::new("retrovf, busy", || {
                Kick::engine("", Mode::Busy)
            })),
            Box::new(Resting::new("bare spinning read", || {
                Kick::bare("", spin_loop)
            })),
        ],
    )?;
    paths.push(busy);
    Ok(paths)
}

const SPIN: Duration = Duration::from_micros(50);

/// Rings through an eventfd and watches the word.
struct Kick {
    name: String,
    memory: Arc<SharedMemory>,
    fd: OwnedFd,
    thread: u32,
    _forwarder: Forwarder,
}

enum Forwarder {
    Engine { _forward: Forward },
    Bare { _bare: Bare },
}

fn word() -> Result<(Arc<SharedMemory>, MappedWord)> {
    let memory = SharedMemory::anonymous(rustix::param::page_size())?;
    let word = MappedWord::map(memory.fd(), 0)?;
    Ok((Arc::new(memory), word))
}

impl Kick {
    fn engine(name: &str, mode: Mode) -> Result<Self> {
        let (memory, word) = word()?;
        let options = EngineOptions {
            mode,
            cpu: Some(Placement::Across.server_cpu()),
        };
        let (engine, thread) = thread_of("retrovf-doorbell", || Ok(Engine::with(options)?))?;
        let target = NotifyTarget::word(Arc::new(word));
        let kicks = Arc::new(AtomicU64::new(0));
        let forward = engine.forward(target, QueueIndex(QUEUE), kicks)?;
        Ok(Self {
            name: name.to_owned(),
            memory,
            fd: forward.fd().try_clone()?,
            thread,
            _forwarder: Forwarder::Engine { _forward: forward },
        })
    }

    fn bare(name: &str, run: fn(&OwnedFd, &MappedWord, &AtomicBool)) -> Result<Self> {
        let (memory, word) = word()?;
        let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (bare, thread) = thread_of("bench-bare", || {
            on_server_cpu(Placement::Across, || {
                let (fd, stop) = (Arc::clone(&fd), Arc::clone(&stop));
                let thread = std::thread::Builder::new().name("bench-bare".into());
                Ok(thread.spawn(move || run(&fd, &word, &stop))?)
            })
        })?;
        let bare = Bare {
            fd: Arc::clone(&fd),
            stop,
            thread: Some(bare),
        };
        Ok(Self {
            name: name.to_owned(),
            memory,
            fd: fd.try_clone()?,
            thread,
            _forwarder: Forwarder::Bare { _bare: bare },
        })
    }
}

impl Contender for Kick {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample(&mut self) -> Result<Duration> {
        self.memory.store_u16(0, NOTHING)?;
        let start = Instant::now();
        rustix::io::write(&self.fd, &1u64.to_ne_bytes())?;
        while self.memory.load_u16(0)? != QUEUE {
            if start.elapsed() > PATIENCE {
                return Err(format!("{} lost a kick", self.name).into());
            }
        }
        Ok(start.elapsed())
    }

    fn server_cpu(&self) -> Option<Duration> {
        cpu_time(self.thread)
    }
}

/// A thread with a loop of the shortest kind.
struct Bare {
    fd: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it; a failure would be a full counter, and then it is awake.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn take(fd: &OwnedFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

fn epoll_loop(fd: &OwnedFd, word: &MappedWord, stop: &AtomicBool) {
    let Ok(set) = epoll::create(CreateFlags::CLOEXEC) else {
        return;
    };
    if epoll::add(&set, fd, EventData::new_u64(0), EventFlags::IN).is_err() {
        return;
    }
    let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 8];
    while !stop.load(Ordering::Relaxed) {
        if epoll::wait(&set, &mut events, None::<&Timespec>).is_ok() && take(fd) {
            word.store(QUEUE);
        }
    }
}

fn read_loop(fd: &OwnedFd, word: &MappedWord, stop: &AtomicBool) {
    use rustix::fs::{fcntl_setfl, OFlags};
    if fcntl_setfl(fd.as_fd(), OFlags::empty()).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        if take(fd) {
            word.store(QUEUE);
        }
    }
}

fn spin_loop(fd: &OwnedFd, word: &MappedWord, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if take(fd) {
            word.store(QUEUE);
        }
    }
}
