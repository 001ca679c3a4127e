//! Delivery of kicks.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use retrovf_doorbell::{Engine, EngineOptions, Forward, Mode};
use retrovf_pci::{Doorbell, MappedWord, NotifyTarget, QueueIndex, SharedMemory};

/// A device whose queues are counters: a ring makes it see all the work there is.
#[derive(Default)]
struct Device {
    work: [AtomicU64; 4],
    seen: [AtomicU64; 4],
    rings: AtomicU64,
}

impl Doorbell for Device {
    fn ring(&self, queue: QueueIndex) {
        let queue = usize::from(queue.0);
        let work = self.work[queue].load(Ordering::Relaxed);
        self.seen[queue].store(work, Ordering::Relaxed);
        self.rings.fetch_add(1, Ordering::Relaxed);
    }
}

fn kick(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if condition() {
            return true;
        }
        thread::yield_now();
    }
    false
}

fn forward(engine: &Arc<Engine>, device: &Arc<Device>, queue: u16) -> (Forward, Arc<AtomicU64>) {
    let kicks = Arc::new(AtomicU64::new(0));
    let target = NotifyTarget::device(Arc::clone(device) as Arc<dyn Doorbell>);
    let forward = engine
        .forward(target, QueueIndex(queue), Arc::clone(&kicks))
        .unwrap();
    (forward, kicks)
}

#[test]
fn the_last_kick_of_every_burst_is_delivered() {
    let spin = Duration::from_micros(50);
    for mode in [Mode::Blocking, Mode::Adaptive { spin }, Mode::Busy] {
        bursts(mode);
    }
}

fn bursts(mode: Mode) {
    let engine = Engine::with(EngineOptions { mode, cpu: None }).unwrap();
    let device = Arc::new(Device::default());
    let (forward, kicks) = forward(&engine, &device, 2);
    for burst in 1..2000u64 {
        for _ in 0..burst % 7 + 1 {
            device.work[2].fetch_add(1, Ordering::Relaxed);
            kick(forward.fd());
        }
        let work = device.work[2].load(Ordering::Relaxed);
        assert!(
            eventually(|| device.seen[2].load(Ordering::Relaxed) == work),
            "burst {burst} got stuck"
        );
    }
    drop(forward);
    let rings = device.rings.load(Ordering::Relaxed);
    assert_eq!(kicks.load(Ordering::Relaxed), rings);
    assert!((1999..=device.work[2].load(Ordering::Relaxed)).contains(&rings));
}

#[test]
fn a_busy_queue_does_not_keep_the_kicks_of_another_waiting() {
    let engine = Engine::with(EngineOptions {
        mode: Mode::Busy,
        cpu: None,
    })
    .unwrap();
    let device = Arc::new(Device::default());
    let (busy, _) = forward(&engine, &device, 0);
    let (other, kicks) = forward(&engine, &device, 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                kick(busy.fd());
            }
        });
        for n in 1..=100 {
            kick(other.fd());
            assert!(eventually(|| kicks.load(Ordering::Relaxed) == n), "{n}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn queues_that_take_turns_in_kicking_for_long_are_all_heard_also_after_a_sleep() {
    let spin = Duration::from_micros(200);
    for mode in [Mode::Busy, Mode::Adaptive { spin }] {
        let engine = Engine::with(EngineOptions { mode, cpu: None }).unwrap();
        let device = Arc::new(Device::default());
        let queues = [0, 1, 2].map(|queue| forward(&engine, &device, queue));
        let heard = |queue: usize, (forward, _): &(Forward, Arc<AtomicU64>)| {
            let work = device.work[queue].fetch_add(1, Ordering::Relaxed) + 1;
            kick(forward.fd());
            eventually(|| device.seen[queue].load(Ordering::Relaxed) == work)
        };
        for round in 0..30 {
            for (queue, entry) in queues.iter().enumerate() {
                // Short and long enough for the engine to give a queue its attention alone.
                for _ in 0..[1, 15, 40][(round + queue) % 3] {
                    assert!(
                        heard(queue, entry),
                        "{mode:?}: queue {queue} in round {round}"
                    );
                }
            }
            // Longer than an adaptive thread stays awake; the queue that had its attention kicks first.
            thread::sleep(4 * spin);
            assert!(heard(2, &queues[2]), "{mode:?}: asleep in round {round}");
        }
        // One that had the engine's attention goes; its place goes to another.
        let [first, second, third] = queues;
        assert!((0..100).all(|_| heard(2, &third)));
        drop(third);
        let fourth = forward(&engine, &device, 3);
        assert!(heard(3, &fourth) && heard(0, &first) && heard(1, &second));
    }
}

#[test]
fn the_thread_runs_on_the_cpu_that_was_asked_for() {
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    let last = (0..rustix::thread::CpuSet::MAX_CPU)
        .rfind(|&cpu| cpus.is_set(cpu))
        .unwrap();
    let options = |cpu| EngineOptions {
        mode: Mode::Blocking,
        cpu: Some(cpu),
    };
    let device = Arc::new(Names(Mutex::default()));
    let engine = Engine::with(options(last)).unwrap();
    let target = NotifyTarget::device(Arc::clone(&device) as Arc<dyn Doorbell>);
    let forward = engine
        .forward(target, QueueIndex(0), Arc::default())
        .unwrap();
    kick(forward.fd());
    assert!(eventually(|| device.0.lock().unwrap().is_some()));
    assert_eq!(device.0.lock().unwrap().clone(), Some(last.to_string()));
    for absent in [1023, usize::MAX] {
        assert!(Engine::with(options(absent)).is_err(), "CPU {absent}");
    }
}

/// Notes on which CPUs the thread that rings may run.
struct Names(Mutex<Option<String>>);

impl Doorbell for Names {
    fn ring(&self, _: QueueIndex) {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        *self.0.lock().unwrap() = line.map(|cpus| cpus.trim().to_owned());
    }
}

#[test]
fn an_adaptive_thread_falls_asleep_after_its_time_and_a_busy_one_does_not() {
    let state = |mode| {
        let engine = Engine::with(EngineOptions { mode, cpu: None }).unwrap();
        let device = Arc::new(Thread(AtomicU64::new(0)));
        let target = NotifyTarget::device(Arc::clone(&device) as Arc<dyn Doorbell>);
        let forward = engine
            .forward(target, QueueIndex(0), Arc::default())
            .unwrap();
        kick(forward.fd());
        assert!(eventually(|| device.0.load(Ordering::Relaxed) != 0));
        let path = format!("/proc/self/task/{}/stat", device.0.load(Ordering::Relaxed));
        let asleep = || {
            let stat = std::fs::read_to_string(&path).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('S')
        };
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            if asleep() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    };
    let spin = Duration::from_millis(1);
    assert!(state(Mode::Adaptive { spin }));
    assert!(!state(Mode::Busy));
}

/// Notes which thread rings.
struct Thread(AtomicU64);

impl Doorbell for Thread {
    fn ring(&self, _: QueueIndex) {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        self.0.store(id as u64, Ordering::Relaxed);
    }
}

#[test]
fn a_kick_stores_the_queue_index_in_the_word_of_a_mapped_bar() {
    let engine = Engine::new().unwrap();
    let bar = SharedMemory::anonymous(8192).unwrap();
    let word = Arc::new(MappedWord::map(bar.fd(), 4096 + 8).unwrap());
    let kicks = Arc::new(AtomicU64::new(0));
    let forward = engine
        .forward(NotifyTarget::word(word), QueueIndex(3), Arc::clone(&kicks))
        .unwrap();
    assert_eq!(bar.load_u16(4096 + 8).unwrap(), 0);
    kick(forward.fd());
    assert!(eventually(|| kicks.load(Ordering::Relaxed) == 1));
    assert_eq!(bar.load_u16(4096 + 8).unwrap(), 3);
}

#[test]
fn a_kick_given_before_the_drop_is_delivered_and_one_after_it_is_not() {
    let engine = Engine::new().unwrap();
    for round in 1..500 {
        let device = Arc::new(Device::default());
        let (forward, kicks) = forward(&engine, &device, 0);
        let peer: OwnedFd = forward.fd().try_clone().unwrap();
        kick(&peer);
        drop(forward);
        assert_eq!(kicks.load(Ordering::Relaxed), 1, "round {round}");
        assert_eq!(Arc::strong_count(&device), 1, "the target is still held");
        kick(&peer);
        drop(peer);
        assert_eq!(kicks.load(Ordering::Relaxed), 1, "round {round}");
    }
}

#[test]
fn devices_come_and_go_while_others_are_kicked() {
    let engine = Engine::new().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let kickers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let device = Arc::new(Device::default());
                    let (forward, _) = forward(&engine, &device, 1);
                    let mut work = 0;
                    while work < 200 || !stop.load(Ordering::Relaxed) {
                        work += 1;
                        device.work[1].store(work, Ordering::Relaxed);
                        kick(forward.fd());
                        let seen = || device.seen[1].load(Ordering::Relaxed) == work;
                        assert!(eventually(seen), "kick {work} got lost");
                    }
                })
            })
            .collect();
        let churners: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let device = Arc::new(Device::default());
                        let all: Vec<_> = (0..4).map(|q| forward(&engine, &device, q)).collect();
                        for (forward, _) in &all {
                            kick(forward.fd());
                        }
                        let kicks: Vec<_> = all.into_iter().map(|(_, kicks)| kicks).collect();
                        let delivered = |k: &Arc<AtomicU64>| k.load(Ordering::Relaxed) == 1;
                        assert!(kicks.iter().all(delivered));
                    }
                })
            })
            .collect();
        churners.into_iter().for_each(|c| c.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        kickers.into_iter().for_each(|k| k.join().unwrap());
    });
}

#[test]
fn a_peer_that_makes_the_eventfd_blocking_and_drains_it_cannot_stop_the_engine() {
    let engine = Engine::new().unwrap();
    let hostile = Arc::new(Device::default());
    let victim = Arc::new(Device::default());
    let (bad, _) = forward(&engine, &hostile, 0);
    let (good, kicks) = forward(&engine, &victim, 0);
    rustix::io::ioctl_fionbio(bad.fd(), false).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                kick(bad.fd());
                rustix::io::ioctl_fionbio(bad.fd(), true).unwrap();
                let _ = rustix::io::read(bad.fd(), &mut [0; 8]);
                rustix::io::ioctl_fionbio(bad.fd(), false).unwrap();
            }
        });
        for n in 1..2000 {
            kick(good.fd());
            let delivered = eventually(|| kicks.load(Ordering::Relaxed) == n);
            stop.store(!delivered, Ordering::Relaxed);
            assert!(delivered, "kick {n} got stuck");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_target_may_drop_its_own_forward_and_the_engine_from_within_a_ring() {
    struct Suicidal {
        held: Mutex<Option<Forward>>,
        done: Arc<AtomicBool>,
    }
    impl Doorbell for Suicidal {
        fn ring(&self, _: QueueIndex) {
            self.held.lock().unwrap().take();
            self.done.store(true, Ordering::Relaxed);
        }
    }
    let engine = Engine::new().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let device = Arc::new(Suicidal {
        held: Mutex::new(None),
        done: Arc::clone(&done),
    });
    let weak = Arc::downgrade(&device);
    let target = NotifyTarget::device(Arc::clone(&device) as Arc<dyn Doorbell>);
    let forward = engine
        .forward(target, QueueIndex(0), Arc::default())
        .unwrap();
    let peer = forward.fd().try_clone().unwrap();
    *device.held.lock().unwrap() = Some(forward);
    drop((engine, device));
    kick(&peer);
    assert!(eventually(|| done.load(Ordering::Relaxed)));
    assert!(
        eventually(|| weak.strong_count() == 0),
        "the engine thread did not end"
    );
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("retrovf-doorbel"))
            .count()
    };
    // Other tests of this file run engines at the same time, so look at a child of our own.
    if std::env::var_os("RETROVF_TEST_CHILD").is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_thread_ends_with_the_last_handle"])
            .env("RETROVF_TEST_CHILD", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let engine = Engine::new().unwrap();
    let (forward, kicks) = forward(&engine, &Arc::default(), 0);
    drop(engine);
    kick(forward.fd());
    assert!(eventually(|| kicks.load(Ordering::Relaxed) == 1));
    assert!(eventually(|| threads() == 1));
    drop(forward);
    assert!(eventually(|| threads() == 0));
}
