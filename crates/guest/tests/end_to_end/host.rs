//! The host's side: SoftNIC, an owner that speaks its admin queue, and served members. What
//! TypeScript decides in the product is decided here, in the fewest lines that a guest can live with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use retrovf_pci::{Function, NotifyTarget, OverlayRow, Region};
use retrovf_softnic::{Config, SoftNic, Uplink};
use retrovf_spec::admin::{self, Header};
use retrovf_spec::virtio::{feature, status};
use retrovf_spec::{legacy, pci};
use retrovf_vfio_user::{
    ControlAccess, ControlKind, ControlPlane, DeviceConfig, ServedDevice, Server, ServerOptions,
};
use retrovf_virtio::{
    AdminQueue, AdminQueueOptions, CommandDoorbell, Completion, CompletionMode, Transport,
};

const DEADLINE: Duration = Duration::from_secs(1);

/// How notifications reach a member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notify {
    /// At the address that LEGACY_NOTIFY_INFO lists.
    Address,
    /// By administration command.
    Command,
}

pub(crate) struct Host {
    pub(crate) nic: SoftNic,
    queue: Arc<AdminQueue>,
    answers: Receiver<Completion>,
    late: Late,
    pub(crate) servers: Vec<Server>,
    folder: PathBuf,
}

impl Host {
    /// Serves all VFs.
    pub(crate) fn new(config: Config, notify: Notify) -> Self {
        Self::with_overlay(config, notify, &[])
    }

    /// Serves all VFs, with more rows in their overlay.
    pub(crate) fn with_overlay(config: Config, notify: Notify, rows: &[OverlayRow]) -> Self {
        let nic = SoftNic::new(config).unwrap();
        let owner = nic.open(nic.owner()).unwrap();
        let late = Late::default();
        let (queue, answers) = bring_up(owner, &late);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "retrovf-guest-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut host = Self {
            nic,
            queue,
            answers,
            late,
            servers: Vec::new(),
            folder,
        };
        for (member, bdf) in (1..).zip(host.nic.members()) {
            let function = host.nic.open(bdf).unwrap();
            let server = host.serve(member, function, notify, rows);
            host.servers.push(server);
        }
        host
    }

    /// One VF behind the embedded gateway.
    pub(crate) fn with_gateway(notify: Notify) -> Self {
        let config = Config {
            uplink: Uplink::Gateway,
            ..Config::default()
        };
        Self::new(config, notify)
    }

    pub(crate) fn path(&self, member: usize) -> &Path {
        self.servers[member - 1].path()
    }

    /// The kicks that a member has seen.
    pub(crate) fn kicks(&self, member: usize) -> u64 {
        self.nic.stats()[member].kicks
    }

    fn serve(
        &self,
        member: u64,
        function: Arc<dyn Function>,
        notify: Notify,
        rows: &[OverlayRow],
    ) -> Server {
        let msix = find_msix(&*function);
        let target = match notify {
            Notify::Address => self.notify_address(member, &*function),
            Notify::Command => {
                NotifyTarget::device(CommandDoorbell::new(Arc::clone(&self.queue), member, 2))
            }
        };
        let plane = Arc::new(Plane {
            member,
            queue: Arc::clone(&self.queue),
            late: Arc::clone(&self.late),
            device: OnceLock::new(),
        });
        let config = DeviceConfig {
            overlay: [&overlay(msix)[..], rows].concat(),
            config_size: pci::CONFIG_SIZE,
            msix_capability: msix,
            bar0_size: Some(32),
            notify: Some(target),
            queues: 2,
            member: function,
        };
        let device =
            ServedDevice::new(config, Arc::clone(&plane) as Arc<dyn ControlPlane>).unwrap();
        plane.device.set(Arc::downgrade(&device)).unwrap();
        let options = ServerOptions::new(self.folder.join(format!("{member}.sock")));
        Server::start(device, options, Arc::new(|_| {})).unwrap()
    }

    fn notify_address(&self, member: u64, function: &dyn Function) -> NotifyTarget {
        let header = header(admin::LEGACY_NOTIFY_INFO, member).to_bytes();
        let answer = ask(&self.queue, &self.answers, &header, 8 + 64);
        let entry = &answer[8..24];
        assert_eq!(entry[0], admin::NOTIFY_MEMBER);
        let offset = u64::from_le_bytes(entry[8..].try_into().unwrap());
        function
            .notify_target(Region::bar(entry[1]), offset)
            .unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn header(opcode: u16, member: u64) -> Header {
    Header {
        opcode,
        group_type: admin::GROUP_SRIOV,
        member,
    }
}

fn ask(queue: &AdminQueue, answers: &Receiver<Completion>, command: &[u8], room: usize) -> Vec<u8> {
    let answer = match queue.submit(0, command, room, DEADLINE).unwrap() {
        Some(answer) => answer,
        None => answers.recv_timeout(DEADLINE * 2).unwrap().outcome.unwrap(),
    };
    assert_eq!(answer[..2], [0, 0], "command status");
    answer
}

fn bring_up(owner: Arc<dyn Function>, late: &Late) -> (Arc<AdminQueue>, Receiver<Completion>) {
    let transport = Transport::open(owner).unwrap();
    transport.set_status(0).unwrap();
    let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    let features = 1 << feature::VERSION_1 | 1 << feature::ADMIN_VQ | 1 << feature::SR_IOV;
    transport.set_driver_features(features).unwrap();
    transport.set_status(bits).unwrap();
    let (index, _) = transport.admin_queues().unwrap().unwrap();
    let options = AdminQueueOptions {
        index,
        completion: CompletionMode::Interrupt,
        ..AdminQueueOptions::default()
    };
    let (sender, answers) = channel();
    let late = Arc::clone(late);
    let done = move |completion: Completion| {
        let asker = late.lock().unwrap().remove(&completion.id);
        match asker {
            Some(asker) => asker.answer(&completion.outcome.unwrap()),
            None => sender.send(completion).unwrap_or_default(),
        }
    };
    let queue = transport
        .create_admin_queue(options, Box::new(done))
        .unwrap();
    transport.set_status(bits | status::DRIVER_OK).unwrap();
    let answer = ask(
        &queue,
        &answers,
        &header(admin::LIST_QUERY, 0).to_bytes(),
        16,
    );
    let using = [&header(admin::LIST_USE, 0).to_bytes()[..], &answer[8..]].concat();
    ask(&queue, &answers, &using, 8);
    (queue, answers)
}

fn find_msix(function: &dyn Function) -> Option<u16> {
    let mut config = [0; pci::CONFIG_SIZE];
    function.config_read(0, &mut config).unwrap();
    let mut at = usize::from(config[pci::CAPABILITY_LIST]);
    while at != 0 && config[at] != pci::CAP_MSIX {
        at = usize::from(config[at + 1]);
    }
    (at != 0).then_some(at as u16)
}

pub(crate) fn row(offset: usize, width: u8, value: u32, mask: u32, writable: u32) -> OverlayRow {
    OverlayRow {
        offset: offset as u16,
        width,
        value,
        mask,
        writable,
        forward: false,
        resets: true,
        flr: 0,
    }
}

/// A transitional network device with an I/O BAR0 of 32 bytes.
fn overlay(msix: Option<u16>) -> Vec<OverlayRow> {
    let mut rows = vec![
        row(pci::DEVICE_ID, 2, 0x1000, 0xffff, 0),
        row(
            pci::COMMAND,
            2,
            0,
            pci::COMMAND_IO.into(),
            pci::COMMAND_IO.into(),
        ),
        row(pci::REVISION_ID, 1, 0, 0xff, 0),
        row(pci::BAR0, 4, pci::BAR_IO, u32::MAX, !31),
        row(pci::SUBSYSTEM_ID, 2, 1, 0xffff, 0),
    ];
    if let Some(cap) = msix {
        let bits = u32::from(pci::MSIX_CONTROL_ENABLE | pci::MSIX_CONTROL_MASK_ALL);
        rows.push(row(usize::from(cap) + pci::MSIX_CONTROL, 2, 0, bits, bits));
    }
    rows
}

/// Accesses whose commands are under way, by command id.
type Late = Arc<Mutex<HashMap<u64, Asker>>>;

/// Who waits for a command.
#[derive(Clone)]
struct Asker {
    device: Weak<ServedDevice>,
    access: u64,
    read: bool,
}

impl Asker {
    fn answer(self, answer: &[u8]) {
        let data = (answer[..2] == [0, 0] && self.read).then(|| answer[8..].to_vec());
        if let Some(device) = self.device.upgrade() {
            device.respond(self.access, data.as_deref());
        }
    }
}

/// Turns register accesses into commands.
struct Plane {
    member: u64,
    queue: Arc<AdminQueue>,
    late: Late,
    device: OnceLock<Weak<ServedDevice>>,
}

impl ControlPlane for Plane {
    fn access(&self, access: ControlAccess) {
        let base = if access.msix_enabled {
            legacy::CONFIG_BASE_MSIX
        } else {
            legacy::CONFIG_BASE
        };
        let (read, write, offset) = match access.offset.checked_sub(base) {
            None => (
                admin::LEGACY_COMMON_CFG_READ,
                admin::LEGACY_COMMON_CFG_WRITE,
                access.offset,
            ),
            Some(offset) => (
                admin::LEGACY_DEV_CFG_READ,
                admin::LEGACY_DEV_CFG_WRITE,
                offset,
            ),
        };
        let (command, room) = match access.kind {
            ControlKind::Read { length } => {
                let mut command = header(read, self.member).to_bytes().to_vec();
                command.push(offset as u8);
                (command, 8 + length)
            }
            ControlKind::Write(data) => {
                let command = admin::legacy_write(header(write, self.member), offset as u8, &data);
                (command, 8)
            }
        };
        let asker = Asker {
            device: self.device.get().cloned().unwrap_or_default(),
            access: access.id,
            read: room > 8,
        };
        // Noted first: the answer may come on the queue's thread before `submit` returns here.
        let id = self.member << 32 | access.id;
        self.late.lock().unwrap().insert(id, asker.clone());
        if let Some(answer) = self.queue.submit(id, &command, room, DEADLINE).unwrap() {
            self.late.lock().unwrap().remove(&id);
            asker.answer(&answer);
        }
    }
}
