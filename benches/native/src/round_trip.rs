//! A notify over vfio-user, as a VMM sends it, against other servers of the protocol.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_pci::{MappedWord, NotifyTarget, SharedMemory};
use retrovf_softnic::{Config, SoftNic, Uplink};
use retrovf_vfio_user::wire::NO_REPLY;
use retrovf_vfio_user::{
    ControlAccess, ControlPlane, DeviceConfig, ServedDevice, Server, ServerOptions,
};
use serde_json::Value;

use crate::placement::{cpu_time, on_server_cpu, run_on, thread_of, Placement, CLIENT_CPU};
use crate::series::{self, Contender, Plan, Resting};
use crate::wire::{Notifier, NOTIFY_SIZE, REPLY_SIZE};
use crate::{libvfio_user, vfio_user_peer, Result};

pub(crate) fn measure(plan: &Plan) -> Result<Vec<Value>> {
    run_on(CLIENT_CPU)?;
    let mut paths = Vec::new();
    for (path, about, placement, what) in [
        (
            "vfio-user round trip, one CPU",
            "REGION_WRITE of Queue Notify and its reply; client and server share a CPU",
            Placement::OneCpu,
            What::RoundTrip,
        ),
        (
            "vfio-user round trip, sleeping",
            "the same on two CPUs: the server sleeps between requests",
            Placement::Across,
            What::RoundTrip,
        ),
        (
            "vfio-user posted writes, one CPU",
            "32 REGION_WRITE without reply in one send, and one with",
            Placement::OneCpu,
            What::Posted,
        ),
        (
            "vfio-user posted one-way",
            "a REGION_WRITE without reply, to the store in the notify word, on two CPUs",
            Placement::Across,
            What::OneWay,
        ),
    ] {
        let mut contenders: Vec<Box<dyn Contender>> = vec![
            Box::new(Requests::retrovf(placement, what, Duration::ZERO)?),
            Box::new(Requests::rust_vmm(placement, what)?),
            Box::new(Requests::bare(placement, what)?),
        ];
        if let Some(peer) = Requests::libvfio_user(placement, what)? {
            contenders.push(Box::new(peer));
        }
        let samples = match what {
            // Each of 33 messages.
            What::Posted => plan.samples / 4,
            _ => plan.samples,
        };
        let plan = Plan { samples, ..*plan };
        paths.push(series::measure(path, about, &plan, &mut contenders)?);
    }
    let mut spinning: Vec<Box<dyn Contender>> = vec![
        Box::new(Resting::new("retrovf, adaptive", || {
            Requests::retrovf(Placement::Across, What::Spinning, Duration::from_millis(1))
        })),
        Box::new(Resting::new("bare busy sockets", Requests::busy)),
    ];
    if libvfio_user::library().is_some() {
        spinning.push(Box::new(Resting::new("libvfio-user, sleeping", || {
            Requests::libvfio_user(Placement::Across, What::RoundTrip)?
                .ok_or_else(|| "libvfio-user has gone".into())
        })));
    }
    paths.push(series::measure(
        "vfio-user round trip, spinning",
        "on two CPUs, both ends looking at the socket without sleeping",
        plan,
        &mut spinning,
    )?);
    Ok(paths)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    RoundTrip,
    Spinning,
    Posted,
    OneWay,
}

/// The notify word of servers that are no RetroVF.
pub(crate) static WORD: AtomicU16 = AtomicU16::new(0);
/// What the word holds before a kick of queue 0.
const NOTHING: u16 = 0xffff;
/// A kick that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client, and the server that it talks to.
struct Requests {
    name: &'static str,
    notifier: Notifier,
    what: What,
    thread: u32,
    server: Serving,
}

/// What keeps a server up.
enum Serving {
    RetroVf {
        word: Arc<SharedMemory>,
        _server: Server,
        _nic: SoftNic,
    },
    Thread {
        _thread: std::thread::JoinHandle<()>,
    },
}

impl Requests {
    fn retrovf(placement: Placement, what: What, spin: Duration) -> Result<Self> {
        let nic = SoftNic::new(Config {
            uplink: Uplink::None,
            ..Config::default()
        })?;
        let member = nic
            .members()
            .first()
            .copied()
            .ok_or("the SoftNIC has no VF")?;
        let memory = SharedMemory::anonymous(rustix::param::page_size())?;
        let word = MappedWord::map(memory.fd(), 0)?;
        let config = DeviceConfig {
            member: nic.open(member)?,
            overlay: Vec::new(),
            config_size: 256,
            msix_capability: None,
            bar0_size: Some(32),
            notify: Some(NotifyTarget::word(Arc::new(word))),
            queues: 2,
        };
        let device = ServedDevice::new(config, Arc::new(Nobody))?;
        let path = socket_path("retrovf");
        let options = ServerOptions {
            spin,
            ..ServerOptions::new(&path)
        };
        let ((server, notifier), thread) = thread_of("vfio-user", || {
            let server = on_server_cpu(placement, || {
                Ok(Server::start(device, options, Arc::new(|_| {}))?)
            })?;
            Ok((server, Notifier::connect(&path)?))
        })?;
        Self::new(
            "retrovf",
            notifier,
            what,
            thread,
            Serving::RetroVf {
                word: Arc::new(memory),
                _server: server,
                _nic: nic,
            },
        )
    }

    fn rust_vmm(placement: Placement, what: What) -> Result<Self> {
        let path = socket_path("rust-vmm");
        let run = vfio_user_peer::server(&path)?;
        let name = "rust-vmm vfio_user";
        Self::spawned(name, placement, what, run, || Notifier::connect(&path))
    }

    fn libvfio_user(placement: Placement, what: What) -> Result<Option<Self>> {
        let path = socket_path("libvfio-user");
        let Some(run) = libvfio_user::server(&path)? else {
            return Ok(None);
        };
        let name = match what {
            What::RoundTrip | What::Posted | What::OneWay => "libvfio-user",
            What::Spinning => "libvfio-user, sleeping",
        };
        Self::spawned(name, placement, what, run, || Notifier::connect(&path)).map(Some)
    }

    fn bare(placement: Placement, what: What) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let name = match what {
            What::Posted => "bare bulk receive",
            _ => "bare socket",
        };
        let run = move || pong(theirs);
        Self::spawned(name, placement, what, run, || Ok(Notifier::raw(ours)))
    }

    fn busy() -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let run = move || pong(theirs);
        let connect = || Ok(Notifier::raw(ours));
        Self::spawned("", Placement::Across, What::Spinning, run, connect)
    }

    fn spawned(
        name: &'static str,
        placement: Placement,
        what: What,
        run: impl FnOnce() + Send + 'static,
        connect: impl FnOnce() -> Result<Notifier>,
    ) -> Result<Self> {
        let (handle, thread) = thread_of("bench-server", || {
            on_server_cpu(placement, || {
                let thread = std::thread::Builder::new().name("bench-server".into());
                Ok(thread.spawn(run)?)
            })
        })?;
        let server = Serving::Thread { _thread: handle };
        Self::new(name, connect()?, what, thread, server)
    }

    fn new(
        name: &'static str,
        notifier: Notifier,
        what: What,
        thread: u32,
        server: Serving,
    ) -> Result<Self> {
        let notifier = match what {
            What::Spinning => notifier.spin()?,
            _ => notifier,
        };
        Ok(Self {
            name,
            notifier,
            what,
            thread,
            server,
        })
    }
}

impl Requests {
    fn word(&self) -> Result<u16> {
        Ok(match &self.server {
            Serving::RetroVf { word, .. } => word.load_u16(0)?,
            Serving::Thread { .. } => WORD.load(Ordering::Acquire),
        })
    }

    fn one_way(&mut self) -> Result<Duration> {
        match &self.server {
            Serving::RetroVf { word, .. } => word.store_u16(0, NOTHING)?,
            Serving::Thread { .. } => WORD.store(NOTHING, Ordering::Release),
        }
        let start = Instant::now();
        self.notifier.post()?;
        while self.word()? == NOTHING {
            if start.elapsed() > PATIENCE {
                return Err(format!("{} lost a kick", self.name).into());
            }
        }
        Ok(start.elapsed())
    }
}

impl Contender for Requests {
    fn name(&self) -> &str {
        self.name
    }

    fn sample(&mut self) -> Result<Duration> {
        match self.what {
            What::RoundTrip | What::Spinning => self.notifier.round_trip(),
            What::Posted => self.notifier.posted(),
            What::OneWay => self.one_way(),
        }
    }

    fn server_cpu(&self) -> Option<Duration> {
        cpu_time(self.thread)
    }
}

struct Nobody;

impl ControlPlane for Nobody {
    fn access(&self, _: ControlAccess) {}
}

/// Answers each notify, as fast as sockets go: it looks at nothing but the length.
fn pong(mut stream: UnixStream) {
    use std::io::{ErrorKind, Read, Write};
    let mut buffer = vec![0; 64 << 10];
    let mut reply = [0; REPLY_SIZE];
    if let Some(kind) = reply.get_mut(8) {
        *kind = 1;
    }
    if let Some(size) = reply.get_mut(4) {
        *size = REPLY_SIZE as u8;
    }
    let batch = (crate::wire::BATCH + 1) * NOTIFY_SIZE;
    let mut have = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => have += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        WORD.store(0, Ordering::Release);
        // One alone, or the last of a batch. A reply that nobody reads would fill the socket.
        let posted = buffer
            .get(8)
            .is_some_and(|flags| flags & NO_REPLY as u8 != 0);
        if have == NOTIFY_SIZE && posted {
            have = 0;
        } else if have == NOTIFY_SIZE || have == batch {
            have = 0;
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    }
}

fn socket_path(name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    std::env::temp_dir().join(format!("retrovf-bench-{process}-{n}-{name}.sock"))
}
