use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use retrovf_pci::{
    Error as PciError, Function, IrqAction, IrqIndex, IrqRequest, NotifyTarget, Overlay,
    OverlayRow, QueueIndex, Region, RegionInfo,
};
use retrovf_spec::legacy::IO_BAR_MAX;
use retrovf_spec::pci;

use crate::control::{ControlPlane, ControlSlot};
use crate::counters::{count, Counters, DeviceCounters};
use crate::{Error, Result};

/// Describes a device to serve.
pub struct DeviceConfig {
    /// The function behind it.
    pub member: Arc<dyn Function>,
    /// What of configuration space is not the function's own.
    pub overlay: Vec<OverlayRow>,
    /// Bytes of configuration space that a client sees: 256 or 4096, at most the function's.
    pub config_size: usize,
    /// Offset of the MSI-X capability, if there is one.
    pub msix_capability: Option<u16>,
    /// Size of an I/O BAR0 in place of the function's own; without it BAR0 is the function's.
    pub bar0_size: Option<u32>,
    /// Where writes to Queue Notify go; without it they are control accesses like others.
    pub notify: Option<NotifyTarget>,
    /// Queue indexes that get an eventfd in GET_REGION_IO_FDS.
    pub queues: u16,
}

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceConfig")
            .field("member", &self.member.bdf())
            .field("overlay", &self.overlay)
            .field("config_size", &self.config_size)
            .field("msix_capability", &self.msix_capability)
            .field("bar0_size", &self.bar0_size)
            .field("notify", &self.notify)
            .field("queues", &self.queues)
            .finish()
    }
}

/// A device as a vfio-user client sees it.
pub struct ServedDevice {
    pub(crate) member: Arc<dyn Function>,
    overlay: Overlay,
    /// The byte of configuration space by which a guest resets the function.
    flr: Option<usize>,
    bar0_size: Option<u32>,
    pub(crate) notify: Option<NotifyTarget>,
    pub(crate) queues: u16,
    pub(crate) plane: Arc<dyn ControlPlane>,
    pub(crate) control: ControlSlot,
    pub(crate) counters: Counters,
    /// Held by the one server that serves it.
    pub(crate) served: AtomicBool,
}

impl fmt::Debug for ServedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedDevice")
            .field("member", &self.member.bdf())
            .field("bar0_size", &self.bar0_size)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// Queue indexes that may have an eventfd: each costs a descriptor.
const MAX_QUEUES: u16 = 1024;
/// The least I/O BAR0 that holds the legacy registers with MSI-X.
const IO_BAR_MIN: u32 = 32;

/// Of the high byte of device control.
const FLR: u8 = (pci::EXPRESS_DEVICE_CONTROL_FLR >> 8) as u8;

/// Finds the high byte of device control, if the function has an express capability.
fn flr_byte(member: &dyn Function) -> Result<Option<usize>> {
    let read = |offset: usize| -> Result<u8> {
        let mut byte = [0];
        member.config_read(offset, &mut byte)?;
        Ok(byte[0])
    };
    if u16::from(read(pci::STATUS)?) & pci::STATUS_CAPABILITIES == 0 {
        return Ok(None);
    }
    let mut at = usize::from(read(pci::CAPABILITY_LIST)? & !3);
    // No list of capabilities of four bytes is longer, unless it is a circle.
    for _ in 0..(pci::CONFIG_SIZE - 0x40) / 4 {
        if at < 0x40 {
            break;
        }
        if read(at)? == pci::CAP_EXPRESS {
            return Ok(Some(at + pci::EXPRESS_DEVICE_CONTROL + 1));
        }
        at = usize::from(read(at + 1)? & !3);
    }
    Ok(None)
}

impl ServedDevice {
    /// Checks that the description fits the function.
    pub fn new(config: DeviceConfig, plane: Arc<dyn ControlPlane>) -> Result<Arc<Self>> {
        let refuse = |reason: String| Err(Error::Config { reason });
        let DeviceConfig {
            member,
            config_size,
            bar0_size,
            queues,
            ..
        } = config;
        let has = member.config_size();
        if !matches!(config_size, pci::CONFIG_SIZE | pci::CONFIG_SIZE_EXPRESS) || config_size > has
        {
            return refuse(format!(
                "configuration space of {config_size} bytes does not fit the {has} of {}",
                member.bdf()
            ));
        }
        if let Some(size) = bar0_size {
            let io_bar = IO_BAR_MIN..=IO_BAR_MAX as u32;
            if !size.is_power_of_two() || !io_bar.contains(&size) {
                return refuse(format!("{size} is not the size of an I/O BAR0"));
            }
        }
        if queues > MAX_QUEUES {
            return refuse(format!("{queues} queues are more than {MAX_QUEUES}"));
        }
        let first = u8::from(bar0_size.is_some());
        for bar in (first..6).map(Region::bar) {
            // QEMU aborts on a BAR of another size.
            let size = member.region(bar)?.size;
            if size != 0 && !size.is_power_of_two() {
                return refuse(format!("{bar} has {size:#x} bytes, not a power of two"));
            }
        }
        let overlay = Overlay::new(config_size, &config.overlay, config.msix_capability);
        let overlay = match overlay {
            Ok(overlay) => overlay,
            Err(row) => return refuse(format!("overlay row {row:?} is outside the space")),
        };
        let flr = flr_byte(member.as_ref())?;
        Ok(Arc::new(Self {
            member,
            overlay,
            flr,
            bar0_size,
            notify: config.notify,
            queues,
            plane,
            control: ControlSlot::default(),
            counters: Counters::default(),
            served: AtomicBool::new(false),
        }))
    }

    /// Answers a [`ControlAccess`](crate::ControlAccess): the data of a read, `None` for a write (and
    /// for a read that failed, which is all ones to the guest). The reply is sent from here. Returns
    /// false if nobody waits any more.
    pub fn respond(&self, id: u64, data: Option<Vec<u8>>) -> bool {
        self.control.respond(id, data.as_deref(), &self.counters)
    }

    /// Reads configuration space through the overlay.
    pub fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check_config(offset, out.len())?;
        self.member.config_read(offset, out)?;
        self.overlay.read(offset, out);
        Ok(())
    }

    /// Writes configuration space through the overlay.
    pub fn config_write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.check_config(offset, data.len())?;
        for run in self.overlay.write(offset, data) {
            self.member.config_write(run.offset, &run.data)?;
        }
        let control = self.flr.and_then(|at| data.get(at.checked_sub(offset)?));
        if control.is_some_and(|high| high & FLR != 0) {
            self.overlay.reset();
        }
        Ok(())
    }

    /// Describes a region as it is presented.
    pub fn region(&self, region: Region) -> Result<RegionInfo> {
        let presented = |size: u64| RegionInfo {
            size,
            readable: true,
            writable: true,
        };
        match (region, self.bar0_size) {
            (Region::CONFIG, _) => Ok(presented(self.overlay.size() as u64)),
            (Region(0), Some(size)) => Ok(presented(u64::from(size))),
            _ if region > Region::CONFIG => Ok(RegionInfo::default()),
            _ => Ok(self.member.region(region)?),
        }
    }

    /// Reads a region of the function itself: not the I/O BAR0, whose registers are the control
    /// plane's.
    pub fn region_read(&self, region: Region, offset: u64, out: &mut [u8]) -> Result<()> {
        let info = self.check_region(region, offset, out.len())?;
        if !info.readable {
            return Err(self.unsupported("reading this region"));
        }
        Ok(self.member.region_read(region, offset, out)?)
    }

    /// Writes a region of the function itself, as [`ServedDevice::region_read`].
    pub fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        let info = self.check_region(region, offset, data.len())?;
        if !info.writable {
            return Err(self.unsupported("writing this region"));
        }
        Ok(self.member.region_write(region, offset, data)?)
    }

    /// Whether the guest lets the device decode I/O space.
    pub fn io_enabled(&self) -> bool {
        self.overlay.io_enabled()
    }

    /// The guest's MSI-X enable bit.
    pub fn msix_enabled(&self) -> bool {
        self.overlay.msix_enabled()
    }

    /// Sets the function's bus master bit, for guests whose driver forgets to.
    pub fn enable_bus_master(&self) -> Result<()> {
        self.set_bus_master(true)
    }

    /// Tells the function that `queue` has work. False without a notify target.
    pub fn notify(&self, queue: QueueIndex) -> bool {
        let Some(target) = &self.notify else {
            return false;
        };
        target.ring(queue);
        count(&self.counters.notifies);
        true
    }

    /// Resets the function, and what a reset clears in the overlay.
    pub fn reset(&self) -> Result<()> {
        self.member.reset()?;
        self.overlay.reset();
        Ok(())
    }

    /// The counters at this moment.
    pub fn counters(&self) -> DeviceCounters {
        self.counters.snapshot()
    }

    /// Size of the I/O BAR0, if it is ours.
    pub(crate) fn io_bar(&self) -> Option<u64> {
        self.bar0_size.map(u64::from)
    }

    /// Takes from the function what a client gave it, and stops its DMA. The device's own state
    /// stays, for the client that comes next.
    pub(crate) fn release(&self) {
        let report = |what: &str, result: Result<(), PciError>| {
            if let Err(error) = result {
                log::warn!("{}: {what} failed: {error}", self.member.bdf());
            }
        };
        self.control.forget();
        if let Err(error) = self.set_bus_master(false) {
            log::warn!("{}: Stopping DMA failed: {error}", self.member.bdf());
        }
        for index in (0..IrqIndex::COUNT).map(IrqIndex) {
            if self.member.irq(index).count > 0 {
                let action = IrqAction::Disable;
                let start = 0;
                let request = IrqRequest {
                    index,
                    start,
                    action,
                };
                report("Disabling interrupts", self.member.set_irqs(request));
            }
        }
        report("Unmapping memory", self.member.dma_unmap_all());
    }

    fn set_bus_master(&self, on: bool) -> Result<()> {
        let mut command = [0; 2];
        self.member.config_read(pci::COMMAND, &mut command)?;
        let value = u16::from_le_bytes(command);
        let wanted = if on {
            value | pci::COMMAND_MASTER
        } else {
            value & !pci::COMMAND_MASTER
        };
        if wanted != value {
            self.member
                .config_write(pci::COMMAND, &wanted.to_le_bytes())?;
        }
        Ok(())
    }

    fn check_config(&self, offset: usize, len: usize) -> Result<()> {
        let size = self.overlay.size();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(self.out_of_range(Region::CONFIG, offset as u64, len, size as u64));
        }
        Ok(())
    }

    fn check_region(&self, region: Region, offset: u64, len: usize) -> Result<RegionInfo> {
        if region >= Region::CONFIG || (region == Region(0) && self.bar0_size.is_some()) {
            let bdf = self.member.bdf();
            return Err(PciError::NoSuchRegion { bdf, region }.into());
        }
        let info = self.member.region(region)?;
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > info.size)
        {
            return Err(self.out_of_range(region, offset, len, info.size));
        }
        Ok(info)
    }

    fn out_of_range(&self, region: Region, offset: u64, len: usize, size: u64) -> Error {
        let bdf = self.member.bdf();
        let len = len as u64;
        PciError::OutOfRange {
            bdf,
            region,
            offset,
            len,
            size,
        }
        .into()
    }

    fn unsupported(&self, what: &'static str) -> Error {
        let bdf = self.member.bdf();
        PciError::Unsupported { bdf, what }.into()
    }
}
