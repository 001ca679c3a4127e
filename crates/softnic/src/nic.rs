use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};

use retrovf_pci::{Bdf, Function};

use crate::config::Config;
use crate::device::Device;
use crate::faults::{CommandFault, Fault, Faults};
use crate::function::Handle;
use crate::switch::Switch;
use crate::sync::{lock, read, write};
use crate::uplink::UplinkThread;
use crate::Error;

/// An embedded SR-IOV NIC: the PF, its VFs and the switch between them.
///
/// Closing or dropping it ends the uplink and pulls the functions out: handles that are still open
/// read all ones.
#[derive(Debug)]
pub struct SoftNic {
    nic: Arc<Nic>,
    uplink: Mutex<Option<UplinkThread>>,
}

/// Frame and notification counts of one function, since the SoftNIC was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionStats {
    /// Which function.
    pub bdf: Bdf,
    /// Frames taken from the driver.
    pub tx_frames: u64,
    /// Buffers taken from the driver that held no valid frame.
    pub tx_dropped: u64,
    /// Frames given to the driver.
    pub rx_frames: u64,
    /// Frames for the driver that met a full inbox or no receive buffer that could hold them.
    pub rx_dropped: u64,
    /// Notifications of queues that exist.
    pub kicks: u64,
    /// Times that a malformed ring stopped the function.
    pub bad_rings: u64,
}

/// What the functions share.
#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) config: Config,
    pub(crate) owner: Arc<Device>,
    vfs: RwLock<Vec<Arc<Device>>>,
    /// The host side's SR-IOV state as the device sees it: cleared for the length of a PF reset.
    vf_enable: AtomicBool,
    pub(crate) switch: Switch,
    pub(crate) faults: Faults,
    closed: AtomicBool,
}

impl SoftNic {
    /// Makes the NIC and starts its uplink.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let vfs = config.vfs;
        let uplink = config.uplink.clone();
        let nic = Arc::new(Nic {
            owner: Arc::new(Device::new(&config, 0)?),
            config,
            vfs: RwLock::default(),
            vf_enable: AtomicBool::new(false),
            switch: Switch::default(),
            faults: Faults::default(),
            closed: AtomicBool::new(false),
        });
        nic.enable_vfs(vfs)?;
        let uplink = UplinkThread::start(&nic, uplink)?;
        Ok(Self {
            nic,
            uplink: Mutex::new(uplink),
        })
    }

    /// Address of the PF.
    pub fn owner(&self) -> Bdf {
        self.nic.owner.bdf
    }

    /// Addresses of the enabled VFs, VF 1 first.
    pub fn members(&self) -> Vec<Bdf> {
        read(&self.nic.vfs).iter().map(|vf| vf.bdf).collect()
    }

    /// Enables so many VFs, as writing `sriov_numvfs` does. The number changes only by making all
    /// VFs anew, so none may be open.
    pub fn set_num_vfs(&self, count: u16) -> Result<(), Error> {
        self.nic.alive()?;
        self.nic.enable_vfs(count)
    }

    /// Opens a function. The first open of the PF resets it, and with it all VFs, as `vfio-pci`
    /// does.
    pub fn open(&self, bdf: Bdf) -> Result<Arc<dyn Function>, Error> {
        let nic = &self.nic;
        nic.alive()?;
        let device = nic.reserve(bdf)?;
        device.kicks.clear();
        lock(&device.irqs).clear();
        device.dma.unmap_all();
        *lock(&device.config) = nic.config_space(&device);
        nic.reset(&device);
        nic.switch.attach(Arc::clone(&device.port));
        match Handle::start(Arc::clone(nic), Arc::clone(&device)) {
            Ok(handle) => Ok(Arc::new(handle)),
            Err(source) => {
                nic.switch.detach(device.port.id());
                device.open.store(false, SeqCst);
                Err(Error::io("Starting a worker thread")(source))
            }
        }
    }

    /// Arranges for a failure.
    pub fn inject(&self, fault: Fault) -> Result<(), Error> {
        let faults = &self.nic.faults;
        match fault {
            Fault::CommandStatus {
                filter,
                status,
                qualifier,
            } => faults.add(filter, CommandFault::Status { status, qualifier }),
            Fault::NoCompletion { filter } => faults.add(filter, CommandFault::NoCompletion),
            Fault::SlowCompletion { filter, delay } => {
                faults.add(filter, CommandFault::Slow(delay));
            }
            Fault::NotifyInfo {
                mut filter,
                entries,
            } => {
                filter.opcode = Some(retrovf_spec::admin::LEGACY_NOTIFY_INFO);
                faults.add(filter, CommandFault::NotifyInfo(entries));
            }
            Fault::DeviceReset { bdf } => self.nic.device(bdf)?.needs_reset(),
            Fault::FunctionGone { bdf } => self.nic.device(bdf)?.set_gone(true),
        }
        Ok(())
    }

    /// Forgets command faults that were not used up, and puts functions that are gone back.
    pub fn clear_faults(&self) {
        self.nic.faults.clear();
        if self.nic.alive().is_ok() {
            self.nic.owner.set_gone(false);
            for vf in read(&self.nic.vfs).iter() {
                vf.set_gone(false);
            }
        }
    }

    /// Counts of all enabled functions, the PF first.
    pub fn stats(&self) -> Vec<FunctionStats> {
        let vfs = read(&self.nic.vfs);
        std::iter::once(&self.nic.owner)
            .chain(vfs.iter())
            .map(|device| {
                let counters = &device.counters;
                FunctionStats {
                    bdf: device.bdf,
                    tx_frames: counters.tx_frames.load(Relaxed),
                    tx_dropped: counters.tx_dropped.load(Relaxed),
                    rx_frames: counters.rx_frames.load(Relaxed),
                    rx_dropped: device.port.dropped.load(Relaxed),
                    kicks: counters.kicks.load(Relaxed),
                    bad_rings: counters.bad_rings.load(Relaxed),
                }
            })
            .collect()
    }

    /// Ends the uplink and pulls all functions out. May be called twice.
    pub fn close(&self) {
        if self.nic.closed.swap(true, SeqCst) {
            return;
        }
        // Ends and joins the thread.
        drop(lock(&self.uplink).take());
        self.nic.owner.set_gone(true);
        for vf in read(&self.nic.vfs).iter() {
            vf.set_gone(true);
        }
    }
}

impl Drop for SoftNic {
    fn drop(&mut self) {
        self.close();
    }
}

impl Nic {
    fn alive(&self) -> Result<(), Error> {
        if self.closed.load(SeqCst) {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// VF Enable in the SR-IOV capability.
    pub(crate) fn vfs_enabled(&self) -> bool {
        self.vf_enable.load(SeqCst)
    }

    /// The VF of this member id, from 1.
    pub(crate) fn member(&self, member: u64) -> Option<Arc<Device>> {
        let index = usize::try_from(member.checked_sub(1)?).ok()?;
        read(&self.vfs).get(index).cloned()
    }

    fn device(&self, bdf: Bdf) -> Result<Arc<Device>, Error> {
        if bdf == self.owner.bdf {
            return Ok(Arc::clone(&self.owner));
        }
        let vfs = read(&self.vfs);
        let vf = vfs.iter().find(|vf| vf.bdf == bdf);
        vf.cloned().ok_or(Error::NoSuchFunction { bdf })
    }

    /// Marks a function as open. Under the lock that `enable_vfs` takes, so that no VF is opened
    /// while it goes.
    fn reserve(&self, bdf: Bdf) -> Result<Arc<Device>, Error> {
        let vfs = read(&self.vfs);
        let device = std::iter::once(&self.owner)
            .chain(vfs.iter())
            .find(|device| device.bdf == bdf)
            .ok_or(Error::NoSuchFunction { bdf })?;
        if device.is_gone() {
            return Err(Error::Gone { bdf });
        }
        if device.open.swap(true, SeqCst) {
            return Err(Error::Busy { bdf });
        }
        Ok(Arc::clone(device))
    }

    fn enable_vfs(&self, count: u16) -> Result<(), Error> {
        let total = self.config.total_vfs;
        if count > total {
            return Err(Error::TooManyVfs {
                asked: count,
                total,
            });
        }
        let mut vfs = write(&self.vfs);
        if vfs.len() == usize::from(count) {
            return Ok(());
        }
        if let Some(vf) = vfs.iter().find(|vf| vf.open.load(SeqCst)) {
            return Err(Error::Busy { bdf: vf.bdf });
        }
        *vfs = (1..=count)
            .map(|member| Device::new(&self.config, member).map(Arc::new))
            .collect::<Result<_, _>>()?;
        self.vf_enable.store(count > 0, SeqCst);
        lock(&self.owner.config).set_vfs(count);
        Ok(())
    }

    fn config_space(&self, device: &Device) -> crate::config_space::ConfigSpace {
        let mut space = crate::config_space::ConfigSpace::new(&self.config, device.geometry);
        if device.geometry.owner {
            let enabled = read(&self.vfs).len();
            space.set_vfs(u16::try_from(enabled).unwrap_or(u16::MAX));
        }
        space
    }

    /// Function level reset. That of the PF clears VF Enable, and the VFs cease to exist; the host
    /// (the PCI core) then writes the SR-IOV control back, and they re-appear with all state lost.
    pub(crate) fn reset(&self, device: &Device) {
        if !device.geometry.owner {
            device.reset_function();
            return;
        }
        let enabled = self.vf_enable.swap(false, SeqCst);
        device.reset_function();
        let vfs = read(&self.vfs);
        vfs.iter().for_each(|vf| vf.reset_function());
        if enabled {
            self.vf_enable.store(!vfs.is_empty(), SeqCst);
        }
    }
}
