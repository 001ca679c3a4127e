//! A function that records what it is asked, control planes, and a server around them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use retrovf_pci::{
    Bdf, DmaMapping, DmaSpace, Doorbell, Error, Function, Interrupt, IrqAction, IrqIndex, IrqInfo,
    IrqRequest, KernelDoorbell, NotifyTarget, OverlayRow, QueueIndex, Region, RegionInfo, Result,
};
use retrovf_vfio_user::wire::{Command, Header};
use retrovf_vfio_user::{
    Client, ClientError, ClientOptions, ControlAccess, ControlKind, ControlPlane, DeviceConfig,
    ServedDevice, Server, ServerEvent, ServerOptions,
};

/// Offset of the MSI-X capability in the recorded function.
pub(crate) const MSIX: u16 = 0x98;
/// Offset of its express capability.
pub(crate) const EXPRESS: usize = 0x60;
/// Size of its BAR4.
pub(crate) const BAR4_SIZE: u64 = 0x4000;

/// A function of plain memory that writes down its requests.
pub(crate) struct Recorder {
    pub(crate) config: Mutex<Vec<u8>>,
    pub(crate) bar4: Mutex<Vec<u8>>,
    pub(crate) dma: DmaSpace,
    pub(crate) irqs: Mutex<Vec<String>>,
    pub(crate) vectors: Mutex<Vec<Option<Interrupt>>>,
    pub(crate) kicks: Mutex<Vec<u16>>,
    pub(crate) resets: AtomicU32,
    /// Queues that the kernel would forward, and how many it has room for.
    pub(crate) armed: Mutex<Vec<u16>>,
    pub(crate) room: AtomicUsize,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        let mut config = vec![0; 4096];
        config[0..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        config[6] = 0x10;
        config[8] = 1;
        config[0x34] = EXPRESS as u8;
        config[EXPRESS] = 0x10;
        config[usize::from(MSIX)] = 0x11;
        Arc::new(Self {
            config: Mutex::new(config),
            bar4: Mutex::new(vec![0; BAR4_SIZE as usize]),
            dma: DmaSpace::new(),
            irqs: Mutex::default(),
            vectors: Mutex::new((0..5).map(|_| None).collect()),
            kicks: Mutex::default(),
            resets: AtomicU32::new(0),
            armed: Mutex::default(),
            room: AtomicUsize::new(0),
        })
    }

    pub(crate) fn command(&self) -> u16 {
        let config = self.config.lock().unwrap();
        u16::from_le_bytes([config[4], config[5]])
    }

    pub(crate) fn set_bar4_size(&self, size: usize) {
        self.bar4.lock().unwrap().resize(size, 0);
    }

    pub(crate) fn take_irqs(&self) -> Vec<String> {
        std::mem::take(&mut self.irqs.lock().unwrap())
    }
}

impl Doorbell for Recorder {
    fn ring(&self, queue: QueueIndex) {
        self.kicks.lock().unwrap().push(queue.0);
    }
}

impl KernelDoorbell for Recorder {
    fn arm(&self, queue: QueueIndex, _: &OwnedFd) -> Result<()> {
        let mut armed = self.armed.lock().unwrap();
        if armed.len() == self.room.load(Ordering::SeqCst) {
            return Err(Error::io("Arming")(rustix::io::Errno::NOSPC));
        }
        armed.push(queue.0);
        Ok(())
    }

    fn disarm(&self, queue: QueueIndex, _: &OwnedFd) {
        self.armed.lock().unwrap().retain(|armed| *armed != queue.0);
    }
}

impl Function for Recorder {
    fn bdf(&self) -> Bdf {
        Bdf::new(0, 0x5e, 0, 1)
    }

    fn config_size(&self) -> usize {
        4096
    }

    fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.config.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn config_write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn region(&self, region: Region) -> Result<RegionInfo> {
        let size = if region == Region::bar(4) {
            self.bar4.lock().unwrap().len() as u64
        } else {
            0
        };
        Ok(RegionInfo {
            size,
            readable: size > 0,
            writable: size > 0,
        })
    }

    fn region_read(&self, _: Region, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        out.copy_from_slice(&self.bar4.lock().unwrap()[at..at + out.len()]);
        Ok(())
    }

    fn region_write(&self, _: Region, offset: u64, data: &[u8]) -> Result<()> {
        let at = offset as usize;
        self.bar4.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        IrqInfo {
            count: [1, 0, 5, 1, 1][index.0 as usize],
            maskable: index == IrqIndex::INTX,
            automasked: index == IrqIndex::INTX,
            noresize: false,
        }
    }

    fn set_irqs(&self, request: IrqRequest) -> Result<()> {
        let IrqRequest {
            index,
            start,
            action,
        } = request;
        let text = match &action {
            IrqAction::Install(fds) => {
                let fds: String = fds
                    .iter()
                    .map(|fd| if fd.is_some() { '+' } else { '-' })
                    .collect();
                format!("install {fds}")
            }
            IrqAction::UnmaskOn(fd) => format!("unmask-on {}", fd.is_some()),
            other => format!("{other:?}").to_lowercase(),
        };
        self.irqs
            .lock()
            .unwrap()
            .push(format!("{}/{start} {text}", index.0));
        if let (IrqIndex::MSIX, IrqAction::Install(fds)) = (index, action) {
            for (vector, fd) in fds.into_iter().enumerate() {
                let interrupt = fd.map(|fd| Interrupt::new(self.bdf(), fd)).transpose()?;
                self.vectors.lock().unwrap()[start as usize + vector] = interrupt;
            }
        }
        Ok(())
    }

    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        self.dma.map(iova, mapping)
    }

    fn dma_unmap(&self, iova: u64, size: u64) -> Result<u64> {
        self.dma.unmap(iova, size)
    }

    fn dma_unmap_all(&self) -> Result<()> {
        self.dma.unmap_all();
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.config.lock().unwrap()[4..6].fill(0);
        Ok(())
    }

    fn notify_target(&self, region: Region, _: u64) -> Result<NotifyTarget> {
        let bdf = self.bdf();
        Err(Error::NotMappable { bdf, region })
    }
}

/// A control plane that answers each read with the offsets it covers, at once.
pub(crate) struct Offsets(
    OnceLock<Arc<ServedDevice>>,
    pub(crate) Mutex<Vec<(u64, Vec<u8>)>>,
);

impl ControlPlane for Offsets {
    fn access(&self, access: ControlAccess) {
        let answer = match access.kind {
            ControlKind::Read { length } => {
                Some((0..length).map(|i| access.offset as u8 + i as u8).collect())
            }
            ControlKind::Write(data) => {
                self.1.lock().unwrap().push((access.offset, data));
                None
            }
        };
        assert!(self.0.get().unwrap().respond(access.id, answer));
    }
}

/// A control plane whose accesses the test answers.
struct Manual(Mutex<Sender<ControlAccess>>);

impl ControlPlane for Manual {
    fn access(&self, access: ControlAccess) {
        let _ = self.0.lock().unwrap().send(access);
    }
}

/// A served device and what it did.
pub(crate) struct Rig {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) device: Arc<ServedDevice>,
    pub(crate) server: Server,
    pub(crate) events: Arc<Mutex<Vec<ServerEvent>>>,
    pub(crate) path: PathBuf,
    pub(crate) plane: Arc<Offsets>,
    /// Accesses to be answered, if the rig is manual.
    pub(crate) accesses: Mutex<Receiver<ControlAccess>>,
}

/// What a rig may differ in.
pub(crate) struct Setup {
    pub(crate) manual: bool,
    pub(crate) bar0: bool,
    pub(crate) notify: bool,
    pub(crate) queues: u16,
    pub(crate) access_timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            manual: false,
            bar0: true,
            notify: true,
            queues: 3,
            access_timeout: Duration::from_secs(1),
        }
    }
}

pub(crate) fn socket_path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::SeqCst);
    std::env::temp_dir().join(format!("retrovf-{}-{n}.sock", std::process::id()))
}

/// The rows of a transitional network device, as far as the tests look at them.
fn overlay() -> Vec<OverlayRow> {
    let row = |offset, width, value, mask, writable| OverlayRow {
        offset,
        width,
        value,
        mask,
        writable,
        forward: false,
        resets: true,
    };
    vec![
        row(0x02, 2, 0x1000, 0xffff, 0),
        row(0x04, 2, 0, 1, 1),
        row(0x08, 1, 0, 0xff, 0),
        row(0x10, 4, 1, 0xffff_ffff, 0xffff_ffe0),
        row(MSIX + 2, 2, 4, 0xc7ff, 0xc000),
    ]
}

pub(crate) fn device(
    recorder: &Arc<Recorder>,
    setup: &Setup,
    plane: Arc<dyn ControlPlane>,
) -> Arc<ServedDevice> {
    ServedDevice::new(
        DeviceConfig {
            member: recorder.clone(),
            overlay: overlay(),
            config_size: 256,
            msix_capability: Some(MSIX),
            bar0_size: setup.bar0.then_some(32),
            notify: setup
                .notify
                .then(|| NotifyTarget::device(recorder.clone()).with_kernel(recorder.clone())),
            queues: setup.queues,
        },
        plane,
    )
    .unwrap()
}

impl Rig {
    pub(crate) fn new(setup: Setup) -> Self {
        let recorder = Recorder::new();
        let plane = Arc::new(Offsets(OnceLock::new(), Mutex::default()));
        let (sender, accesses) = channel();
        let control: Arc<dyn ControlPlane> = if setup.manual {
            Arc::new(Manual(Mutex::new(sender)))
        } else {
            plane.clone()
        };
        let device = device(&recorder, &setup, control);
        let _ = plane.0.set(device.clone());
        let path = socket_path();
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let options = ServerOptions {
            path: path.clone(),
            access_timeout: setup.access_timeout,
        };
        let on_event = Arc::new(move |event| log.lock().unwrap().push(event));
        let server = Server::start(device.clone(), options, on_event).unwrap();
        Self {
            recorder,
            device,
            server,
            events,
            path,
            plane,
            accesses: Mutex::new(accesses),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path, ClientOptions::default()).unwrap()
    }

    pub(crate) fn raw(&self) -> Client {
        Client::connect_raw(&self.path, ClientOptions::default()).unwrap()
    }

    /// A client whose guest has I/O decoding on.
    pub(crate) fn guest(&self) -> Client {
        let mut client = self.client();
        client.region_write(7, 4, &[7, 0]).unwrap();
        client
    }

    pub(crate) fn access(&self) -> ControlAccess {
        let accesses = self.accesses.lock().unwrap();
        accesses.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    pub(crate) fn kicks(&self) -> Vec<u16> {
        self.recorder.kicks.lock().unwrap().clone()
    }

    pub(crate) fn has_event(&self, kind: &str) -> bool {
        self.events
            .lock()
            .unwrap()
            .iter()
            .any(|event| event.kind() == kind)
    }

    pub(crate) fn await_event(&self, kind: &str) {
        eventually(kind, || self.has_event(kind));
    }
}

/// Waits for something that another thread is about to do.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The errno that a call was refused with.
pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T, ClientError>) -> i32 {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("not refused: {other:?}"),
    }
}

/// A memory file of so many bytes.
pub(crate) fn memory_file(size: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

pub(crate) fn eventfd() -> OwnedFd {
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).unwrap()
}

/// Takes an eventfd's count; 0 if nobody signalled.
pub(crate) fn signals(fd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// A whole message.
pub(crate) fn message(id: u16, command: Command, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::command(id, command, payload.len());
    header.flags = flags;
    [&header.encode(), payload].concat()
}

pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
