use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use retrovf_pci::{
    Bdf, DmaMapping, Error as PciError, Function, IrqIndex, IrqInfo, IrqRequest, MappedWord,
    NotifyTarget, Region, RegionInfo, Result as PciResult,
};
use retrovf_spec::pci;
use vfio_bindings::bindings::vfio;

use crate::dma::Dma;
use crate::doorbell::NotifyAddress;
use crate::events::{Event, Watch};
use crate::ioctl::{self, IrqSet};
use crate::irqs::Irqs;
use crate::open::{self, patiently};
use crate::region::RegionFacts;
use crate::{Error, OpenOptions, Result};

/// The device's file, and the group that it belongs to. Whoever rings the device by system call
/// holds it too.
#[derive(Debug)]
pub(crate) struct DeviceFile {
    pub(crate) fd: OwnedFd,
    _group: Option<OwnedFd>,
}

/// A PCI function of the host that this process holds. Dropping it, and every notify target of it,
/// gives it back, which resets it.
pub struct VfioFunction {
    bdf: Bdf,
    /// Before the device, so that nothing is watched that is closed.
    watches: Vec<Watch>,
    regions: Vec<RegionFacts>,
    config_size: usize,
    /// Offsets of the power management control registers.
    power_controls: Vec<usize>,
    is_vf: bool,
    resets: bool,
    /// A notify word was mapped.
    mapped: AtomicBool,
    irqs: Irqs,
    device: Arc<DeviceFile>,
    /// After the device: what it could still do is over before its memory goes.
    dma: Dma,
}

/// Capabilities of configuration space: 4 bytes each at least, behind the header.
const MAX_CAPABILITIES: usize = 48;

/// Opens a function, which resets it. A PF gets the token of the options, if there is one.
///
/// `on_event` is called from a thread that serves all functions: it should be quick.
pub fn open(
    bdf: Bdf,
    options: &OpenOptions,
    on_event: impl Fn(Event) + Send + Sync + 'static,
) -> Result<Arc<VfioFunction>> {
    let facts = options.roots.facts(bdf)?;
    let opened = open::open(bdf, &facts, options)?;
    let io = |what| move |source| Error::Io { bdf, what, source };
    let device = opened.device;
    if let (true, Some(token)) = (facts.is_owner, &options.token) {
        // By its group it may have it already; by its own node it has not.
        match ioctl::set_token(&device, token.bytes()) {
            Err(source) if source.raw_os_error() == Some(libc::ENOTTY) => {
                log::debug!("{bdf} knows no VF tokens");
            }
            set => set.map_err(io("Setting the VF token"))?,
        }
    }
    let info = ioctl::device_info(&device).map_err(io("Asking what the device is"))?;
    let regions = (0..Region::COUNT).map(|index| RegionFacts::ask(&device, index));
    let regions = regions.collect::<io::Result<Vec<_>>>();
    let regions = regions.map_err(io("Asking for the regions of the device"))?;
    let config = regions
        .get(Region::CONFIG.0 as usize)
        .map_or(0, |region| region.size);
    let config_size = usize::try_from(config).unwrap_or(0);
    let pci_device = info.flags & vfio::VFIO_DEVICE_FLAGS_PCI != 0;
    if !pci_device || !matches!(config_size, pci::CONFIG_SIZE | pci::CONFIG_SIZE_EXPRESS) {
        let what = "PCI configuration space";
        return Err(PciError::Unsupported { bdf, what }.into());
    }
    let limit = options.roots.dma_entry_limit();
    let irqs = Irqs::ask(bdf, &device).map_err(io("Asking for the interrupts of the device"))?;
    let mut function = VfioFunction {
        bdf,
        watches: Vec::new(),
        regions,
        config_size,
        power_controls: Vec::new(),
        is_vf: facts.is_vf,
        resets: info.flags & vfio::VFIO_DEVICE_FLAGS_RESET != 0,
        mapped: AtomicBool::new(false),
        irqs,
        device: Arc::new(DeviceFile {
            fd: device,
            _group: opened.group,
        }),
        dma: Dma::new(bdf, opened.space, limit),
    };
    function.power_controls = function.find_power_controls()?;
    function
        .watch(on_event)
        .map_err(io("Watching the device"))?;
    Ok(Arc::new(function))
}

impl VfioFunction {
    fn watch(&mut self, on_event: impl Fn(Event) + Send + Sync + 'static) -> io::Result<()> {
        let on_event = Arc::new(on_event);
        let (requested, failed) = (Arc::clone(&on_event), on_event);
        let pass_on = self.irqs.error_forwarder();
        let watched = [
            (
                IrqIndex::REQ,
                Box::new(move || requested(Event::UnplugRequested)) as Box<dyn Fn() + Send + Sync>,
            ),
            (
                IrqIndex::ERR,
                Box::new(move || {
                    pass_on();
                    failed(Event::DeviceError);
                }),
            ),
        ];
        for (index, handler) in watched {
            // Only PCI Express reports errors.
            if self.irqs.kernel_info(index).count == 0 {
                continue;
            }
            let watch = Watch::new(handler)?;
            let set = IrqSet {
                flags: vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
                index: index.0,
                start: 0,
                count: 1,
            };
            ioctl::set_irqs(&self.device.fd, set, &watch.fd().as_raw_fd().to_ne_bytes())?;
            self.watches.push(watch);
        }
        Ok(())
    }

    fn find_power_controls(&self) -> PciResult<Vec<usize>> {
        let mut config = [0; pci::CONFIG_SIZE];
        self.config_read(0, &mut config)?;
        Ok(power_controls(&config))
    }

    fn facts(&self, region: Region) -> PciResult<&RegionFacts> {
        let bdf = self.bdf;
        let facts = self.regions.get(region.0 as usize);
        facts.ok_or(PciError::NoSuchRegion { bdf, region })
    }

    /// The position in the device's file of an access that lies inside a region.
    fn position(&self, region: Region, offset: u64, len: usize) -> PciResult<u64> {
        let bdf = self.bdf;
        let facts = self.facts(region)?;
        let (len, size) = (len as u64, facts.size);
        if size == 0 {
            return Err(PciError::NoSuchRegion { bdf, region });
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        let position = facts.offset.checked_add(offset).filter(|_| inside);
        position.ok_or(PciError::OutOfRange {
            bdf,
            region,
            offset,
            len,
            size,
        })
    }

    fn read(&self, region: Region, offset: u64, out: &mut [u8]) -> PciResult<()> {
        let at = self.position(region, offset, out.len())?;
        let len = out.len();
        let read = rustix::io::pread(&self.device.fd, out, at);
        self.whole(read, len, "Reading from the device")
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> PciResult<()> {
        let at = self.position(region, offset, data.len())?;
        let written = rustix::io::pwrite(&self.device.fd, data, at);
        self.whole(written, data.len(), "Writing to the device")
    }

    fn whole(
        &self,
        done: rustix::io::Result<usize>,
        len: usize,
        what: &'static str,
    ) -> PciResult<()> {
        let bdf = self.bdf;
        match done {
            Ok(done) if done == len => Ok(()),
            Ok(_) => Err(PciError::Io {
                what,
                source: io::ErrorKind::UnexpectedEof.into(),
            }),
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Err(PciError::Gone { bdf }),
            Err(errno) => Err(PciError::io(what)(errno)),
        }
    }

    /// What of a write to configuration space reaches the kernel.
    ///
    /// A store to a mapped notify word while the function is in D3hot, or does not decode memory, is
    /// a SIGBUS, the end of this process. What else can happen to the function is no such danger:
    /// the kernel takes mappings away during a reset (which a guest can start with the FLR bit) and
    /// has an access wait until it is over; a VF has no memory enable bit, and the kernel shows a
    /// virtual one without effect; a device that is gone, or does not come back from its reset, reads
    /// as all ones and swallows writes, and the kernel looks at its power state only to change it. So the
    /// power state stays D0, whatever a guest writes: a device that does not change its state when
    /// told to is nothing new to drivers. And a function with an enable bit of its own (a PF, which
    /// no guest has) keeps decoding once a word is mapped.
    fn tamed(&self, offset: usize, data: &[u8]) -> Vec<u8> {
        let mut data = data.to_vec();
        let mut change = |at: usize, clear: u16, set: u16| {
            if let Some(byte) = at.checked_sub(offset).and_then(|at| data.get_mut(at)) {
                *byte = *byte & !(clear as u8) | set as u8;
            }
        };
        for at in &self.power_controls {
            change(*at, pci::POWER_CONTROL_STATE, 0);
        }
        if !self.is_vf && self.mapped.load(Ordering::SeqCst) {
            change(pci::COMMAND, 0, pci::COMMAND_MEMORY);
        }
        data
    }
}

/// Where the power management capabilities have their control registers. There is one, but the list
/// is the device's.
fn power_controls(config: &[u8; pci::CONFIG_SIZE]) -> Vec<usize> {
    let byte = |at: usize| config.get(at).copied().unwrap_or(0);
    let mut found = Vec::new();
    if u16::from(byte(pci::STATUS)) & pci::STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = byte(pci::CAPABILITY_LIST);
    for _ in 0..MAX_CAPABILITIES {
        let start = usize::from(at & !3);
        if start == 0 {
            break;
        }
        if byte(start) == pci::CAP_POWER {
            found.push(start + pci::POWER_CONTROL);
        }
        at = byte(start + 1);
    }
    found
}

impl Function for VfioFunction {
    fn bdf(&self) -> Bdf {
        self.bdf
    }

    fn config_size(&self) -> usize {
        self.config_size
    }

    fn config_read(&self, offset: usize, out: &mut [u8]) -> PciResult<()> {
        self.read(Region::CONFIG, offset as u64, out)
    }

    fn config_write(&self, offset: usize, data: &[u8]) -> PciResult<()> {
        let data = self.tamed(offset, data);
        self.write(Region::CONFIG, offset as u64, &data)
    }

    fn region(&self, region: Region) -> PciResult<RegionInfo> {
        let facts = self.facts(region)?;
        Ok(RegionInfo {
            size: facts.size,
            readable: facts.readable,
            writable: facts.writable,
        })
    }

    fn region_read(&self, region: Region, offset: u64, out: &mut [u8]) -> PciResult<()> {
        self.read(region, offset, out)
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> PciResult<()> {
        match (region, usize::try_from(offset)) {
            (Region::CONFIG, Ok(offset)) => self.config_write(offset, data),
            _ => self.write(region, offset, data),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.irqs.info(index)
    }

    fn set_irqs(&self, request: IrqRequest) -> PciResult<()> {
        self.irqs.set(&self.device.fd, request)
    }

    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> PciResult<()> {
        self.dma.map(iova, mapping)
    }

    fn dma_unmap(&self, iova: u64, size: u64) -> PciResult<u64> {
        self.dma.unmap(iova, size)
    }

    fn dma_unmap_all(&self) -> PciResult<()> {
        self.dma.unmap_all()
    }

    fn reset(&self) -> PciResult<()> {
        let bdf = self.bdf;
        if !self.resets {
            let what = "a function reset";
            return Err(PciError::Unsupported { bdf, what });
        }
        patiently(|| ioctl::reset(&self.device.fd)).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::ENODEV) => PciError::Gone { bdf },
                _ => PciError::Io {
                    what: "Resetting the function",
                    source,
                },
            }
        })?;
        // The kernel puts the command register back as it was. The device has forgotten its queues,
        // so nothing depends on the bit until a driver sets it again.
        let mut command = [0; 2];
        self.config_read(pci::COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) & !pci::COMMAND_MASTER;
        self.config_write(pci::COMMAND, &command.to_le_bytes())
    }

    fn notify_target(&self, region: Region, offset: u64) -> PciResult<NotifyTarget> {
        let bdf = self.bdf;
        let at = self.position(region, offset, 2)?;
        if !region.is_bar() || !offset.is_multiple_of(2) {
            let what = "notifications at this address";
            return Err(PciError::Unsupported { bdf, what });
        }
        let address = Arc::new(NotifyAddress {
            device: Arc::clone(&self.device),
            offset: at,
        });
        let page = rustix::param::page_size() as u64;
        let target = if self.facts(region)?.maps_page(offset, page) {
            // First: see `tamed`.
            self.mapped.store(true, Ordering::SeqCst);
            NotifyTarget::word(Arc::new(MappedWord::map(&self.device.fd, at)?))
        } else {
            NotifyTarget::device(Arc::clone(&address) as _)
        };
        Ok(target.with_kernel(address))
    }
}

impl std::fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VfioFunction")
            .field("bdf", &self.bdf)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(capabilities: &[(u8, u8, u8)]) -> [u8; pci::CONFIG_SIZE] {
        let mut config = [0; pci::CONFIG_SIZE];
        config[pci::STATUS] = pci::STATUS_CAPABILITIES as u8;
        config[pci::CAPABILITY_LIST] = capabilities.first().map_or(0, |first| first.0);
        for (at, id, next) in capabilities {
            config[usize::from(*at)] = *id;
            config[usize::from(*at) + 1] = *next;
        }
        config
    }

    #[test]
    fn power_controls_are_found_wherever_the_capability_is() {
        let list = [(0x40, 9, 0x50), (0x50, 1, 0x60), (0x60, 0x11, 0)];
        assert_eq!(power_controls(&config(&list)), [0x54]);
        assert_eq!(power_controls(&config(&[])), [0usize; 0]);
    }

    #[test]
    fn a_list_that_loops_or_runs_to_the_end_ends() {
        let looping = power_controls(&config(&[(0x40, 1, 0x40)]));
        assert!(looping.iter().all(|at| *at == 0x44) && looping.len() <= MAX_CAPABILITIES);
        assert_eq!(
            power_controls(&config(&[(0xfc, 1, 0xff)])).first(),
            Some(&0x100)
        );
    }
}
