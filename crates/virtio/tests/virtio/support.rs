//! A virtio PF with one admin queue, as small as it gets, whose misbehaviour the tests choose.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use retrovf_pci::{
    Bdf, DmaMapping, DmaSpace, Doorbell, Error, Function, Interrupt, IrqAction, IrqIndex, IrqInfo,
    IrqRequest, NotifyTarget, QueueIndex, Region, RegionInfo, Result,
};
use retrovf_spec::virtio::{cap, common, ring, NO_VECTOR};
use retrovf_spec::{pci, virtio};

pub(crate) const ADMIN_INDEX: u16 = 3;
pub(crate) const IOVA: u64 = 0x10_0000;
const BDF: Bdf = Bdf::new(0, 3, 0, 0);
const BAR: u8 = 4;
const BAR_SIZE: u64 = 0x4000;
const NOTIFY: u64 = 0x1000;
const NOTIFY_LEN: u64 = 0x40;
const DEVICE: u64 = 0x2000;
const MULTIPLIER: u32 = 4;

pub(crate) struct Pf {
    this: Weak<Self>,
    pub(crate) dma: DmaSpace,
    state: Mutex<State>,
    changed: Condvar,
    /// Answers within the notification, with the command itself behind an OK status.
    pub(crate) inline: AtomicBool,
    /// A write of status 0 does nothing.
    pub(crate) ignores_reset: AtomicBool,
    /// Interrupts sent.
    pub(crate) interrupts: AtomicUsize,
}

struct State {
    config: [u8; 256],
    registers: [u8; 64],
    features: u64,
    queue: Queue,
    interrupt: Option<Interrupt>,
    held: VecDeque<Command>,
    notified: usize,
    /// The memory was taken away while the device could still use it.
    unmapped_alive: bool,
}

#[derive(Default)]
struct Queue {
    size: u16,
    vector: u16,
    enabled: bool,
    areas: [u64; 3],
    avail: u16,
    used: u16,
}

/// A command as the device got it.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) head: u16,
    pub(crate) readable: Vec<u8>,
    writable: u64,
    pub(crate) room: u32,
}

impl Pf {
    pub(crate) fn new() -> Arc<Self> {
        let mut config = [0; 256];
        config[pci::STATUS] = pci::STATUS_CAPABILITIES as u8;
        config[pci::CAPABILITY_LIST] = 0x40;
        let caps: [(u8, u8, u64, u64); 3] = [
            (0x40, virtio::CFG_COMMON, 0, 64),
            (0x50, virtio::CFG_DEVICE, DEVICE, 12),
            (0x60, virtio::CFG_NOTIFY, NOTIFY, NOTIFY_LEN),
        ];
        for (at, kind, offset, length) in caps {
            let at = usize::from(at);
            config[at] = pci::CAP_VENDOR;
            config[at + 1] = if at == 0x60 { 0 } else { at as u8 + 0x10 };
            config[at + cap::LEN] = 20;
            config[at + cap::CFG_TYPE] = kind;
            config[at + cap::BAR] = BAR;
            config[at + cap::OFFSET..][..4].copy_from_slice(&(offset as u32).to_le_bytes());
            config[at + cap::LENGTH..][..4].copy_from_slice(&(length as u32).to_le_bytes());
        }
        config[0x62] = 20;
        config[0x52] = 16;
        config[0x42] = 16;
        config[0x60 + cap::NOTIFY_MULTIPLIER..][..4].copy_from_slice(&MULTIPLIER.to_le_bytes());
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            dma: DmaSpace::new(),
            state: Mutex::new(State {
                config,
                registers: [0; 64],
                features: 0,
                queue: Queue {
                    size: 64,
                    ..Queue::default()
                },
                interrupt: None,
                held: VecDeque::new(),
                notified: 0,
                unmapped_alive: false,
            }),
            changed: Condvar::new(),
            inline: AtomicBool::new(false),
            ignores_reset: AtomicBool::new(false),
            interrupts: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn patch_config(&self, offset: usize, bytes: &[u8]) {
        self.lock().config[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn set_queue_size(&self, size: u16) {
        self.lock().queue.size = size;
    }

    pub(crate) fn unmapped_alive(&self) -> bool {
        self.lock().unmapped_alive
    }

    pub(crate) fn bus_master(&self) -> bool {
        self.lock().config[pci::COMMAND] & pci::COMMAND_MASTER as u8 != 0
    }

    pub(crate) fn interrupt_installed(&self) -> bool {
        self.lock().interrupt.is_some()
    }

    /// Waits until the device holds `count` commands and takes them, first come first.
    pub(crate) fn take(&self, count: usize) -> Vec<Command> {
        let (mut state, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), Duration::from_secs(5), |s| {
                s.held.len() < count
            })
            .unwrap();
        assert!(!timeout.timed_out(), "{} commands came", state.held.len());
        state.held.drain(..).collect()
    }

    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Answers a command.
    pub(crate) fn answer(&self, command: &Command, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(command.room as usize)];
        self.dma.write(command.writable, bytes).unwrap();
        self.use_raw(command.head.into(), bytes.len() as u32, 1);
    }

    /// Puts an element into the used ring, advances the index by `step`, and interrupts.
    pub(crate) fn use_raw(&self, id: u32, len: u32, step: u16) {
        let mut state = self.lock();
        let queue = &mut state.queue;
        let entry = u64::from(queue.used % queue.size) * ring::USED_ELEM_SIZE;
        let at = queue.areas[2] + 4 + entry;
        self.dma.write(at, &id.to_le_bytes()).unwrap();
        self.dma.write(at + 4, &len.to_le_bytes()).unwrap();
        queue.used = queue.used.wrapping_add(step);
        self.dma.store_u16(queue.areas[2] + 2, queue.used).unwrap();
        let flags = self.dma.load_u16(queue.areas[1]).unwrap();
        let wanted = flags & ring::AVAIL_F_NO_INTERRUPT == 0 && queue.vector != NO_VECTOR;
        let interrupt = state.interrupt.clone().filter(|_| wanted);
        drop(state);
        if let Some(interrupt) = interrupt {
            self.interrupts.fetch_add(1, Ordering::Relaxed);
            interrupt.signal();
        }
    }

    /// What notifications arrived so far.
    pub(crate) fn notified(&self) -> usize {
        self.lock().notified
    }

    fn fetch(&self) -> Vec<Command> {
        let mut state = self.lock();
        state.notified += 1;
        let master = state.config[pci::COMMAND] & pci::COMMAND_MASTER as u8 != 0;
        let queue = &mut state.queue;
        let mut fetched = Vec::new();
        while queue.enabled && master {
            let Ok(avail) = self.dma.load_u16(queue.areas[1] + 2) else {
                break;
            };
            if avail == queue.avail {
                break;
            }
            let entry = u64::from(queue.avail % queue.size) * 2;
            let head = self.dma.load_u16(queue.areas[1] + 4 + entry).unwrap();
            queue.avail = queue.avail.wrapping_add(1);
            let (read, room, flags, next) = self.descriptor(queue, head);
            assert_eq!(flags, ring::DESC_F_NEXT);
            let mut readable = vec![0; room as usize];
            self.dma.read(read, &mut readable).unwrap();
            let (writable, room, flags, _) = self.descriptor(queue, next);
            assert_eq!(flags, ring::DESC_F_WRITE);
            fetched.push(Command {
                head,
                readable,
                writable,
                room,
            });
        }
        fetched
    }

    fn descriptor(&self, queue: &Queue, index: u16) -> (u64, u32, u16, u16) {
        let mut bytes = [0; 16];
        let at = queue.areas[0] + u64::from(index) * 16;
        self.dma.read(at, &mut bytes).unwrap();
        (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        )
    }

    fn notify(&self) {
        let fetched = self.fetch();
        if self.inline.load(Ordering::Relaxed) {
            for command in fetched {
                let answer = [&[0; 8], &command.readable[..]].concat();
                self.answer(&command, &answer);
            }
            return;
        }
        self.lock().held.extend(fetched);
        self.changed.notify_all();
    }
}

struct Bell(Weak<Pf>);

impl Doorbell for Bell {
    fn ring(&self, queue: QueueIndex) {
        assert_eq!(queue.0, ADMIN_INDEX);
        if let Some(pf) = self.0.upgrade() {
            pf.notify();
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

impl Function for Pf {
    fn bdf(&self) -> Bdf {
        BDF
    }

    fn config_size(&self) -> usize {
        256
    }

    fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.lock().config[offset..offset + out.len()]);
        Ok(())
    }

    fn config_write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.patch_config(offset, data);
        Ok(())
    }

    fn region(&self, region: Region) -> Result<RegionInfo> {
        let size = if region == Region::bar(BAR) {
            BAR_SIZE
        } else {
            0
        };
        Ok(RegionInfo {
            size,
            readable: true,
            writable: true,
        })
    }

    fn region_read(&self, _: Region, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        let half = |word: u64, select: u8| (word >> (32 * u32::from(select))) as u32;
        let offered = 1 << 41 | 1 << 37 | 1 << 32 | 1 << 5;
        let selected = state.registers[22..24] == ADMIN_INDEX.to_le_bytes();
        let value = match offset {
            common::DEVICE_FEATURE => half(offered, state.registers[0] & 1).into(),
            common::DRIVER_FEATURE => half(state.features, state.registers[8] & 1).into(),
            common::NUM_QUEUES => ADMIN_INDEX.into(),
            common::CONFIG_GENERATION => 7,
            common::QUEUE_SIZE if selected => state.queue.size.into(),
            common::QUEUE_MSIX_VECTOR => state.queue.vector.into(),
            common::QUEUE_ENABLE => u64::from(state.queue.enabled),
            common::QUEUE_NOTIFY_OFF => 5,
            common::ADMIN_QUEUE_INDEX => ADMIN_INDEX.into(),
            common::ADMIN_QUEUE_NUM => 1,
            common::QUEUE_SIZE => 0,
            offset => word(&state.registers[offset as usize..][..out.len()]),
        };
        let len = out.len();
        out.copy_from_slice(&value.to_le_bytes()[..len]);
        state.registers[63] = 0;
        Ok(())
    }

    fn region_write(&self, _: Region, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let value = word(data);
        match offset {
            common::DRIVER_FEATURE => {
                let shift = 32 * u32::from(state.registers[8] & 1);
                state.features = state.features & !(0xffff_ffff << shift) | value << shift;
            }
            common::DEVICE_STATUS if value == 0 => {
                if self.ignores_reset.load(Ordering::Relaxed) {
                    return Ok(());
                }
                state.queue = Queue {
                    size: state.queue.size,
                    ..Queue::default()
                };
                state.held.clear();
            }
            common::QUEUE_SIZE => state.queue.size = value as u16,
            common::QUEUE_MSIX_VECTOR => {
                state.queue.vector = if value < 2 { value as u16 } else { NO_VECTOR };
            }
            common::QUEUE_ENABLE => state.queue.enabled = value == 1,
            common::QUEUE_DESC..common::QUEUE_NOTIF_CONFIG_DATA => {
                let area = (offset - common::QUEUE_DESC) / 8;
                let shift = (offset % 8) * 8;
                state.queue.areas[area as usize] |= value << shift;
                return Ok(());
            }
            _ => {}
        }
        state.registers[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        IrqInfo {
            count: if index == IrqIndex::MSIX { 2 } else { 0 },
            ..IrqInfo::default()
        }
    }

    fn set_irqs(&self, request: IrqRequest) -> Result<()> {
        assert_eq!(request.index, IrqIndex::MSIX);
        let IrqAction::Install(fds) = request.action else {
            panic!("unexpected {:?}", request.action);
        };
        let fd: Option<OwnedFd> = fds.into_iter().next().unwrap();
        let interrupt = fd.map(|fd| Interrupt::new(BDF, fd)).transpose()?;
        self.lock().interrupt = interrupt;
        Ok(())
    }

    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        self.dma.map(iova, mapping)
    }

    fn dma_unmap(&self, iova: u64, size: u64) -> Result<u64> {
        let alive = self.bus_master() && self.lock().queue.enabled;
        self.lock().unmapped_alive |= alive;
        self.dma.unmap(iova, size)
    }

    fn dma_unmap_all(&self) -> Result<()> {
        self.dma.unmap_all();
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        Ok(())
    }

    fn notify_target(&self, region: Region, offset: u64) -> Result<NotifyTarget> {
        if region != Region::bar(BAR) || offset != NOTIFY + 5 * u64::from(MULTIPLIER) {
            return Err(Error::NoSuchRegion { bdf: BDF, region });
        }
        Ok(NotifyTarget::device(Arc::new(Bell(Weak::clone(
            &self.this,
        )))))
    }
}
