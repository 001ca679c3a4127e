//! The driver side: memory, rings, modern and legacy bring-up, admin commands.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_pci::{
    Bdf, DmaAccess, DmaBacking, DmaMapping, Function, IrqAction, IrqIndex, IrqRequest,
    NotifyTarget, QueueIndex, Region, SharedMemory,
};
use retrovf_softnic::{Config, SoftNic};
use retrovf_spec::{admin, legacy, pci, virtio};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const MEMORY: u64 = 4 << 20;
/// Device address of the memory: not 0, so that a forgotten address is noticed.
pub(crate) const BASE: u64 = 0x10_0000;

/// Waits until `done` gives something.
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Gives things that should not happen a chance to.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(30));
}

/// A function with memory that it may access.
pub(crate) struct Dut {
    pub(crate) function: Arc<dyn Function>,
    pub(crate) memory: Arc<SharedMemory>,
    next: std::cell::Cell<u64>,
}

impl Dut {
    pub(crate) fn open(nic: &SoftNic, bdf: Bdf) -> Self {
        let function = nic.open(bdf).unwrap();
        let memory = Arc::new(SharedMemory::anonymous(MEMORY as usize).unwrap());
        let mapping = DmaMapping {
            size: MEMORY,
            access: DmaAccess::READ_WRITE,
            backing: DmaBacking::Shared {
                memory: Arc::clone(&memory),
                offset: 0,
            },
        };
        function.dma_map(BASE, mapping).unwrap();
        let dut = Self {
            function,
            memory,
            next: std::cell::Cell::new(BASE),
        };
        dut.master(true);
        dut
    }

    pub(crate) fn master(&self, on: bool) {
        let bit = if on { pci::COMMAND_MASTER } else { 0 };
        let command = pci::COMMAND_MEMORY | bit;
        self.function
            .config_write(pci::COMMAND, &command.to_le_bytes())
            .unwrap();
    }

    /// Forgets all allocations.
    pub(crate) fn rewind(&self) {
        self.next.set(BASE);
    }

    /// Allocates page-aligned memory.
    pub(crate) fn alloc(&self, len: u64) -> u64 {
        let at = self.next.get();
        self.next.set(at + len.next_multiple_of(4096));
        assert!(self.next.get() <= BASE + MEMORY);
        at
    }

    pub(crate) fn put(&self, at: u64, data: &[u8]) {
        self.memory.write((at - BASE) as usize, data).unwrap();
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read((at - BASE) as usize, &mut out).unwrap();
        out
    }

    pub(crate) fn load(&self, at: u64) -> u16 {
        self.memory.load_u16((at - BASE) as usize).unwrap()
    }

    pub(crate) fn store(&self, at: u64, value: u16) {
        self.memory.store_u16((at - BASE) as usize, value).unwrap();
    }

    pub(crate) fn config32(&self, at: usize) -> u32 {
        let mut out = [0; 4];
        self.function.config_read(at, &mut out).unwrap();
        u32::from_le_bytes(out)
    }

    /// Offset of a virtio structure's capability.
    pub(crate) fn capability(&self, kind: u8) -> usize {
        let mut at = self.config32(pci::CAPABILITY_LIST) as u8;
        while at != 0 {
            let [id, next, _, cfg] = self.config32(usize::from(at)).to_le_bytes();
            if id == pci::CAP_VENDOR && cfg == kind {
                return usize::from(at);
            }
            at = next;
        }
        panic!("no virtio capability {kind}");
    }

    /// BAR and offset of a virtio structure.
    pub(crate) fn structure(&self, kind: u8) -> (Region, u64) {
        let cap = self.capability(kind);
        let bar = self.config32(cap + virtio::cap::BAR) as u8;
        let offset = self.config32(cap + virtio::cap::OFFSET);
        (Region::bar(bar), u64::from(offset))
    }

    pub(crate) fn common_write(&self, at: u64, data: &[u8]) {
        let (region, base) = self.structure(virtio::CFG_COMMON);
        self.function.region_write(region, base + at, data).unwrap();
    }

    pub(crate) fn common_read<const N: usize>(&self, at: u64) -> [u8; N] {
        let (region, base) = self.structure(virtio::CFG_COMMON);
        let mut out = [0; N];
        let function = &self.function;
        function.region_read(region, base + at, &mut out).unwrap();
        out
    }

    pub(crate) fn status(&self) -> u8 {
        self.common_read::<1>(virtio::common::DEVICE_STATUS)[0]
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.common_write(virtio::common::DEVICE_STATUS, &[status]);
    }

    pub(crate) fn features(&self) -> u64 {
        [0u32, 1]
            .map(|half| {
                let select = virtio::common::DEVICE_FEATURE_SELECT;
                self.common_write(select, &half.to_le_bytes());
                let word = self.common_read::<4>(virtio::common::DEVICE_FEATURE);
                u64::from(u32::from_le_bytes(word)) << (32 * half)
            })
            .iter()
            .sum()
    }

    /// Reset to FEATURES_OK; true if the device agrees.
    pub(crate) fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        for half in 0..2u32 {
            let select = virtio::common::DRIVER_FEATURE_SELECT;
            self.common_write(select, &half.to_le_bytes());
            let word = (features >> (32 * half)) as u32;
            self.common_write(virtio::common::DRIVER_FEATURE, &word.to_le_bytes());
        }
        self.set_status(11);
        self.status() == 11
    }

    /// Sets a queue up through the modern registers.
    pub(crate) fn modern_queue(&self, index: u16, size: u16) -> Queue {
        let n = u64::from(size);
        let queue = Queue {
            index,
            size,
            desc: self.alloc(16 * n),
            avail: self.alloc(6 + 2 * n),
            used: self.alloc(6 + 8 * n),
            ..Queue::default()
        };
        self.modern_enable(&queue);
        queue
    }

    pub(crate) fn modern_enable(&self, queue: &Queue) {
        use virtio::common;
        self.common_write(common::QUEUE_SELECT, &queue.index.to_le_bytes());
        self.common_write(common::QUEUE_SIZE, &queue.size.to_le_bytes());
        self.common_write(common::QUEUE_MSIX_VECTOR, &queue.index.to_le_bytes());
        self.common_write(common::QUEUE_DESC, &queue.desc.to_le_bytes());
        self.common_write(common::QUEUE_DRIVER, &queue.avail.to_le_bytes());
        self.common_write(common::QUEUE_DEVICE, &queue.used.to_le_bytes());
        self.common_write(common::QUEUE_ENABLE, &[1, 0]);
    }

    /// Memory for a legacy ring.
    pub(crate) fn legacy_queue(&self, index: u16, size: u16) -> Queue {
        let layout = legacy::ring_layout(size);
        let desc = self.alloc(layout.total);
        Queue {
            index,
            size,
            desc,
            avail: desc + layout.avail,
            used: desc + layout.used,
            ..Queue::default()
        }
    }

    /// Notifies through the modern notify structure.
    pub(crate) fn notify(&self, queue: u16) {
        self.bell().ring(QueueIndex(queue));
    }

    pub(crate) fn bell(&self) -> NotifyTarget {
        let (region, offset) = self.structure(virtio::CFG_NOTIFY);
        self.function.notify_target(region, offset).unwrap()
    }

    /// Installs an eventfd for each of the first `count` vectors.
    pub(crate) fn msix(&self, count: usize) -> Vec<OwnedFd> {
        let fds: Vec<OwnedFd> = (0..count).map(|_| eventfd()).collect();
        let action = IrqAction::Install(fds.iter().map(|fd| fd.try_clone().ok()).collect());
        let request = IrqRequest {
            index: IrqIndex::MSIX,
            start: 0,
            action,
        };
        self.function.set_irqs(request).unwrap();
        fds
    }
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd fired since the last call.
pub(crate) fn fired(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// The driver's side of a split ring. Descriptors are used round robin and never checked for being
/// free: the tests give back what they take.
#[derive(Debug, Default, Clone)]
pub(crate) struct Queue {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) next_desc: u16,
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

/// A run of memory in a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) write: bool,
}

pub(crate) fn readable(at: u64, len: usize) -> Run {
    Run {
        at,
        len,
        write: false,
    }
}

pub(crate) fn writable(at: u64, len: usize) -> Run {
    Run {
        at,
        len,
        write: true,
    }
}

impl Queue {
    pub(crate) fn descriptor(&self, dut: &Dut, index: u16, run: Run, flags: u16, next: u16) {
        let at = self.desc + 16 * u64::from(index);
        dut.put(at, &encode(run, flags, next));
    }

    /// Makes a chain available, without a notification; returns its head.
    pub(crate) fn add(&mut self, dut: &Dut, runs: &[Run]) -> u16 {
        let head = self.next_desc;
        for (i, run) in runs.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % self.size;
            let last = i + 1 == runs.len();
            let next = if last { 0 } else { virtio::ring::DESC_F_NEXT };
            self.descriptor(dut, index, *run, next, self.next_desc);
        }
        self.offer(dut, head);
        head
    }

    /// Makes a chain of one indirect descriptor available.
    pub(crate) fn add_indirect(&mut self, dut: &Dut, table: u64, runs: &[Run]) -> u16 {
        for (i, run) in runs.iter().enumerate() {
            let next = if i + 1 == runs.len() { 0 } else { 1 };
            let at = table + 16 * i as u64;
            dut.put(at, &encode(*run, next, i as u16 + 1));
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        let run = readable(table, 16 * runs.len());
        self.descriptor(dut, head, run, virtio::ring::DESC_F_INDIRECT, 0);
        self.offer(dut, head);
        head
    }

    pub(crate) fn offer(&mut self, dut: &Dut, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        dut.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        dut.store(self.avail + 2, self.next_avail);
    }

    /// Where the driver says at which index it wants an interrupt.
    pub(crate) fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    /// Where the device says at which index it wants a notification.
    pub(crate) fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }

    /// The next used chain: head and length.
    pub(crate) fn used(&mut self, dut: &Dut) -> Option<(u16, usize)> {
        if dut.load(self.used + 2) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let element = dut.get(self.used + 4 + 8 * slot, 8);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4) as usize))
    }

    pub(crate) fn wait(&mut self, dut: &Dut) -> (u16, usize) {
        eventually("a used buffer", || self.used(dut))
    }
}

fn encode(run: Run, flags: u16, next: u16) -> Vec<u8> {
    let write = if run.write {
        virtio::ring::DESC_F_WRITE
    } else {
        0
    };
    let mut bytes = run.at.to_le_bytes().to_vec();
    bytes.extend((run.len as u32).to_le_bytes());
    bytes.extend((flags | write).to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Bytes for a command or its answer, one for each descriptor it may start with.
const SLOT: u64 = 4096;

/// A PF with its admin queue in use.
pub(crate) struct Owner {
    pub(crate) dut: Dut,
    queue: std::cell::RefCell<Queue>,
    request: u64,
    answer: u64,
}

pub(crate) const FEATURES: u64 = 1 << virtio::feature::VERSION_1;
pub(crate) const OWNER_FEATURES: u64 =
    FEATURES | 1 << virtio::feature::SR_IOV | 1 << virtio::feature::ADMIN_VQ;

/// What came back for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) qualifier: u16,
    pub(crate) data: Vec<u8>,
    pub(crate) used: usize,
}

impl Owner {
    /// Opens the PF and starts its admin queue, without LIST_USE.
    pub(crate) fn start(nic: &SoftNic) -> Self {
        let dut = Dut::open(nic, nic.owner());
        Self::bring_up(dut)
    }

    pub(crate) fn bring_up(dut: Dut) -> Self {
        assert!(dut.negotiate(OWNER_FEATURES));
        let [index, count] = Self::admin_queues(&dut);
        assert_eq!(count, 1);
        let queue = dut.modern_queue(index, 16);
        dut.set_status(15);
        let (request, answer) = (dut.alloc(16 * SLOT), dut.alloc(16 * SLOT));
        Self {
            dut,
            queue: queue.into(),
            request,
            answer,
        }
    }

    pub(crate) fn admin_queues(dut: &Dut) -> [u16; 2] {
        let bytes = dut.common_read::<4>(virtio::common::ADMIN_QUEUE_INDEX);
        [
            u16::from_le_bytes([bytes[0], bytes[1]]),
            u16::from_le_bytes([bytes[2], bytes[3]]),
        ]
    }

    /// Opens the PF and puts all opcodes in use.
    pub(crate) fn ready(nic: &SoftNic) -> Self {
        let owner = Self::start(nic);
        let used = owner.list(admin::LIST_USE, &0x7fu64.to_le_bytes(), 0);
        assert_eq!(used.status, 0);
        owner
    }

    pub(crate) fn list(&self, opcode: u16, data: &[u8], room: usize) -> Answer {
        self.command(opcode, 0, data, room)
    }

    pub(crate) fn command(&self, opcode: u16, member: u64, data: &[u8], room: usize) -> Answer {
        self.command_in(admin::GROUP_SRIOV, opcode, member, data, room)
    }

    pub(crate) fn command_in(
        &self,
        group_type: u16,
        opcode: u16,
        member: u64,
        data: &[u8],
        room: usize,
    ) -> Answer {
        let header = admin::Header {
            opcode,
            group_type,
            member,
        };
        let request = [&header.to_bytes(), data].concat();
        self.raw(&request, 8 + room)
    }

    /// Submits without waiting.
    pub(crate) fn submit(&self, opcode: u16, member: u64, data: &[u8], room: usize) {
        let header = admin::Header {
            opcode,
            group_type: admin::GROUP_SRIOV,
            member,
        };
        self.post(&[&header.to_bytes(), data].concat(), 8 + room);
    }

    fn post(&self, request: &[u8], writable_len: usize) {
        let mut queue = self.queue.borrow_mut();
        let slot = SLOT * u64::from(queue.next_desc);
        let (request_at, answer_at) = (self.request + slot, self.answer + slot);
        self.dut.put(request_at, request);
        self.dut.put(answer_at, &[0xee; 256]);
        // Cut at odd places, as drivers may.
        let cut = request.len().min(13);
        let mut runs = vec![readable(request_at, cut)];
        if request.len() > cut {
            let rest = request.len() - cut;
            runs.push(readable(request_at + cut as u64, rest));
        }
        let cut = writable_len.min(3);
        if cut > 0 {
            runs.push(writable(answer_at, cut));
        }
        if writable_len > cut {
            runs.push(writable(answer_at + cut as u64, writable_len - cut));
        }
        queue.add(&self.dut, &runs);
        drop(queue);
        self.dut.notify(self.queue.borrow().index);
    }

    /// Whether an answer has arrived.
    pub(crate) fn poll(&self) -> Option<Answer> {
        let (head, used) = self.queue.borrow_mut().used(&self.dut)?;
        let bytes = self.dut.get(self.answer + SLOT * u64::from(head), used);
        let word = |at: usize| {
            let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
            u16::from_le_bytes([byte(at), byte(at + 1)])
        };
        Some(Answer {
            status: word(0),
            qualifier: word(2),
            data: bytes.get(8..).unwrap_or_default().to_vec(),
            used,
        })
    }

    pub(crate) fn raw(&self, request: &[u8], writable_len: usize) -> Answer {
        self.post(request, writable_len);
        eventually("a completion", || self.poll())
    }

    pub(crate) fn vector(&self) -> usize {
        usize::from(self.queue.borrow().index)
    }

    /// Legacy view of a member.
    pub(crate) fn legacy(&self, member: u64) -> Legacy<'_> {
        Legacy {
            owner: self,
            member,
        }
    }
}

/// The legacy registers of a VF, through the owner.
pub(crate) struct Legacy<'a> {
    pub(crate) owner: &'a Owner,
    pub(crate) member: u64,
}

impl Legacy<'_> {
    pub(crate) fn read(&self, offset: u64, len: usize) -> u32 {
        let opcode = admin::LEGACY_COMMON_CFG_READ;
        let offset = [offset as u8];
        let answer = self.owner.command(opcode, self.member, &offset, len);
        assert_eq!((answer.status, answer.used), (0, 8 + len));
        let mut bytes = answer.data;
        bytes.resize(4, 0);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let opcode = admin::LEGACY_COMMON_CFG_WRITE;
        let prefixed = [&[offset as u8, 0, 0, 0, 0, 0, 0, 0], data].concat();
        let answer = self.owner.command(opcode, self.member, &prefixed, 0);
        assert_eq!((answer.status, answer.used), (0, 8));
    }

    pub(crate) fn config(&self, offset: u8, len: usize) -> Vec<u8> {
        let opcode = admin::LEGACY_DEV_CFG_READ;
        let answer = self.owner.command(opcode, self.member, &[offset], len);
        assert_eq!((answer.status, answer.used), (0, 8 + len));
        answer.data
    }

    pub(crate) fn write_config(&self, offset: u8, data: &[u8]) {
        let opcode = admin::LEGACY_DEV_CFG_WRITE;
        let prefixed = [&[offset, 0, 0, 0, 0, 0, 0, 0], data].concat();
        let answer = self.owner.command(opcode, self.member, &prefixed, 0);
        assert_eq!(answer.status, 0);
    }

    /// Gives the device a ring.
    pub(crate) fn queue(&self, dut: &Dut, index: u16) -> Queue {
        self.write(legacy::QUEUE_SELECT, &index.to_le_bytes());
        assert_eq!(self.read(legacy::QUEUE_PFN, 4), 0);
        let size = self.read(legacy::QUEUE_SIZE, 2) as u16;
        let queue = dut.legacy_queue(index, size);
        let pfn = (queue.desc >> legacy::PFN_SHIFT) as u32;
        self.write(legacy::QUEUE_PFN, &pfn.to_le_bytes());
        queue
    }

    /// Where the device wants notifications.
    pub(crate) fn bell(&self, dut: &Dut) -> NotifyTarget {
        let opcode = admin::LEGACY_NOTIFY_INFO;
        let answer = self.owner.command(opcode, self.member, &[], 64);
        assert_eq!((answer.status, answer.used), (0, 72));
        let entry = &answer.data[..admin::NOTIFY_ENTRY_SIZE];
        let offset = u64::from_le_bytes(entry[8..16].try_into().unwrap());
        let function = match entry[0] {
            admin::NOTIFY_MEMBER => &dut.function,
            admin::NOTIFY_OWNER => &self.owner.dut.function,
            flags => panic!("notify entry with flags {flags}"),
        };
        assert_eq!(answer.data[16..], [0; 48]);
        let region = Region::bar(entry[1]);
        function.notify_target(region, offset).unwrap()
    }
}

pub(crate) fn nic(config: Config) -> SoftNic {
    SoftNic::new(config).unwrap()
}
