use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use retrovf_pci::{
    Bdf, DmaMapping, Doorbell, Error, Function, IrqIndex, IrqInfo, IrqRequest, NotifyTarget,
    QueueIndex, Region, RegionInfo, Result,
};
use retrovf_spec::{pci, virtio};

use crate::config::NotifyEntries;
use crate::config_space::ConfigSpace;
use crate::device::Device;
use crate::nic::Nic;
use crate::sync::lock;
use crate::{admin, layout, worker};

/// An open function. Dropping it resets the function and takes its memory away.
pub(crate) struct Handle {
    nic: Arc<Nic>,
    device: Arc<Device>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Starts the worker of a function that the caller has reserved and reset.
    pub(crate) fn start(nic: Arc<Nic>, device: Arc<Device>) -> std::io::Result<Self> {
        let name = match device.member {
            0 => "softnic-pf".to_owned(),
            member => format!("softnic-vf{member}"),
        };
        let thread = std::thread::Builder::new().name(name).spawn({
            let (nic, device) = (Arc::clone(&nic), Arc::clone(&device));
            move || worker::run(&nic, &device)
        })?;
        Ok(Self {
            nic,
            device,
            worker: Mutex::new(Some(thread)),
        })
    }

    fn out_of_range(&self, region: Region, offset: u64, len: usize, size: u64) -> Error {
        Error::OutOfRange {
            bdf: self.device.bdf,
            region,
            offset,
            len: len as u64,
            size,
        }
    }

    fn check(&self, region: Region, offset: u64, len: usize) -> Result<()> {
        let size = self.region(region)?.size;
        let bdf = self.device.bdf;
        if size == 0 {
            return Err(Error::NoSuchRegion { bdf, region });
        }
        match offset.checked_add(len as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(self.out_of_range(region, offset, len, size)),
        }
    }

    /// Performs the access that the configuration window describes, if it is a valid one.
    fn window_access(&self, write: bool) {
        let Some(window) = lock(&self.device.config).window() else {
            return;
        };
        let region = Region::bar(window.bar);
        let mut data = window.data;
        let Some(bytes) = data.get_mut(..window.len) else {
            return;
        };
        // A window that points nowhere is the driver's business: nothing happens.
        if !region.is_bar() || self.check(region, window.offset, bytes.len()).is_err() {
            return;
        }
        if write {
            self.bar_write(window.bar, window.offset, bytes);
        } else {
            bytes.fill(0);
            self.bar_read(window.bar, window.offset, bytes);
            lock(&self.device.config).set_window_data(data);
        }
    }

    /// Reads from a BAR, zeros where nothing is; the range is checked.
    fn bar_read(&self, bar: u8, offset: u64, out: &mut [u8]) {
        if bar == layout::MSIX_BAR {
            let table = lock(&self.device.msix);
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            for (to, from) in out.iter_mut().zip(table.iter().skip(start)) {
                *to = *from;
            }
            return;
        }
        let mut registers = lock(&self.device.registers);
        let len = virtio::common::SIZE;
        if let Some((at, part)) = overlap_mut(offset, out, layout::COMMON, len) {
            registers.modern_read(at, part);
        }
        if let Some((_, part)) = overlap_mut(offset, out, layout::ISR, 1) {
            part.fill(std::mem::take(&mut registers.isr));
        }
        let len = self.device.geometry.config_len() as u64;
        if let Some((at, part)) = overlap_mut(offset, out, layout::DEVICE, len) {
            registers.read_net_config(at, part);
        }
    }

    /// Writes to a BAR; the range is checked.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == layout::MSIX_BAR {
            let table_len = layout::msix_table_len(self.device.geometry);
            let writable = usize::try_from(table_len).unwrap_or(0);
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let mut table = lock(&self.device.msix);
            for (to, from) in table.iter_mut().take(writable).skip(start).zip(data) {
                *to = *from;
            }
            return;
        }
        let len = virtio::common::SIZE;
        if let Some((at, part)) = overlap(offset, data, layout::COMMON, len) {
            let effect = lock(&self.device.registers).modern_write(at, part);
            self.device.apply(effect);
        }
        if let Some(target) = self.notify_words(offset) {
            let [low, high] = match *data {
                [] => return,
                [byte] => [byte, 0],
                [low, high, ..] => [low, high],
            };
            target.ring(QueueIndex(u16::from_le_bytes([low, high])));
        }
    }

    /// The function whose queues a write at this offset of the virtio BAR notifies.
    fn notify_words(&self, offset: u64) -> Option<Bell> {
        let own = layout::NOTIFY..layout::NOTIFY + layout::notify_len(self.device.geometry);
        let legacy = layout::LEGACY_NOTIFY;
        let owner = self.device.geometry.owner;
        let member = match self.nic.config.notify {
            _ if own.contains(&offset) => self.device.member,
            NotifyEntries::Member if !owner && offset == legacy => self.device.member,
            NotifyEntries::Owner if owner => {
                let at = offset.checked_sub(legacy)?;
                let index = at / layout::LEGACY_NOTIFY_STRIDE;
                let in_word = at % layout::LEGACY_NOTIFY_STRIDE == 0;
                let index = u16::try_from(index).ok().filter(|_| in_word)?;
                (index < self.nic.config.total_vfs).then_some(index + 1)?
            }
            _ => return None,
        };
        Some(Bell {
            nic: Arc::clone(&self.nic),
            member,
        })
    }
}

/// The part of an access that falls on `len` bytes from `start` on: its offset there, and its bytes.
fn overlap(offset: u64, data: &[u8], start: u64, len: u64) -> Option<(u64, &[u8])> {
    let (at, range) = overlap_range(offset, data.len(), start, len)?;
    Some((at, data.get(range)?))
}

fn overlap_mut(offset: u64, data: &mut [u8], start: u64, len: u64) -> Option<(u64, &mut [u8])> {
    let (at, range) = overlap_range(offset, data.len(), start, len)?;
    Some((at, data.get_mut(range)?))
}

fn overlap_range(
    offset: u64,
    access: usize,
    start: u64,
    len: u64,
) -> Option<(u64, std::ops::Range<usize>)> {
    let first = offset.max(start);
    let last = (offset + access as u64).min(start + len);
    let from = usize::try_from(first.checked_sub(offset)?).ok()?;
    let to = usize::try_from(last.checked_sub(offset)?).ok()?;
    (from < to).then_some((first - start, from..to))
}

impl Function for Handle {
    fn bdf(&self) -> Bdf {
        self.device.bdf
    }

    fn config_size(&self) -> usize {
        pci::CONFIG_SIZE_EXPRESS
    }

    fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(Region::CONFIG, offset as u64, out.len())?;
        if self.device.is_gone() {
            out.fill(0xff);
            return Ok(());
        }
        if ConfigSpace::touches_window(offset, out.len()) {
            self.window_access(false);
        }
        lock(&self.device.config).read(offset, out);
        Ok(())
    }

    fn config_write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.check(Region::CONFIG, offset as u64, data.len())?;
        if self.device.is_gone() {
            return Ok(());
        }
        let effect = lock(&self.device.config).write(offset, data);
        if effect.window {
            self.window_access(true);
        }
        if let Some(on) = effect.master {
            self.device.set_master(on);
        }
        if effect.reset {
            self.reset()?;
        }
        Ok(())
    }

    fn region(&self, region: Region) -> Result<RegionInfo> {
        let size = match region {
            Region::CONFIG => pci::CONFIG_SIZE_EXPRESS as u64,
            bar if bar == Region::bar(layout::MSIX_BAR) => {
                layout::msix_bar_size(self.device.geometry)
            }
            bar if bar == Region::bar(layout::VIRTIO_BAR) => layout::VIRTIO_BAR_SIZE,
            Region(n) if n < Region::COUNT => 0,
            _ => {
                let bdf = self.device.bdf;
                return Err(Error::NoSuchRegion { bdf, region });
            }
        };
        Ok(RegionInfo {
            size,
            readable: size > 0,
            writable: size > 0,
        })
    }

    fn region_read(&self, region: Region, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(region, offset, out.len())?;
        if region == Region::CONFIG {
            return self.config_read(usize::try_from(offset).unwrap_or(usize::MAX), out);
        }
        if self.device.is_gone() {
            out.fill(0xff);
            return Ok(());
        }
        out.fill(0);
        self.bar_read(u8::try_from(region.0).unwrap_or(u8::MAX), offset, out);
        Ok(())
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        self.check(region, offset, data.len())?;
        if region == Region::CONFIG {
            return self.config_write(usize::try_from(offset).unwrap_or(usize::MAX), data);
        }
        if !self.device.is_gone() {
            self.bar_write(u8::try_from(region.0).unwrap_or(u8::MAX), offset, data);
        }
        Ok(())
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        lock(&self.device.irqs).info(index)
    }

    fn set_irqs(&self, request: IrqRequest) -> Result<()> {
        let fire = lock(&self.device.irqs).set(request)?;
        fire.iter().for_each(|interrupt| interrupt.signal());
        Ok(())
    }

    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        self.device.dma.map(iova, mapping)
    }

    fn dma_unmap(&self, iova: u64, size: u64) -> Result<u64> {
        self.device.dma.unmap(iova, size)
    }

    fn dma_unmap_all(&self) -> Result<()> {
        self.device.dma.unmap_all();
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        if self.device.is_gone() {
            let bdf = self.device.bdf;
            return Err(Error::Gone { bdf });
        }
        self.nic.reset(&self.device);
        Ok(())
    }

    fn notify_target(&self, region: Region, offset: u64) -> Result<NotifyTarget> {
        self.check(region, offset, 2)?;
        let bdf = self.device.bdf;
        let what = "notifications at this address";
        let here = region == Region::bar(layout::VIRTIO_BAR) && offset.is_multiple_of(2);
        match self.notify_words(offset).filter(|_| here) {
            Some(bell) => Ok(NotifyTarget::device(Arc::new(bell))),
            None => Err(Error::Unsupported { bdf, what }),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let device = &self.device;
        device.kicks.stop();
        if let Some(worker) = lock(&self.worker).take() {
            // The last reference may go on the worker's own thread, inside a peer's memory object.
            if worker.thread().id() != std::thread::current().id() {
                // A worker that waits for a remote peer's memory has to fail, not to wait.
                device.halted(|| {
                    if worker.join().is_err() {
                        log::error!("{}: the worker panicked", device.bdf);
                    }
                });
            }
        }
        self.nic.switch.detach(device.port.id());
        lock(&device.irqs).clear();
        self.nic.reset(device);
        device.dma.unmap_all();
        device.open.store(false, SeqCst);
    }
}

/// The doorbell of a function.
struct Bell {
    nic: Arc<Nic>,
    /// 0: the PF.
    member: u16,
}

impl Doorbell for Bell {
    fn ring(&self, queue: QueueIndex) {
        let owner = &self.nic.owner;
        if self.member > 0 {
            if let Some(device) = self.nic.member(u64::from(self.member)) {
                device.kick(queue.0);
            }
        } else if Some(queue.0) == owner.geometry.admin_queue() {
            admin::ring(&self.nic);
        } else {
            owner.kick(queue.0);
        }
    }
}
