use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use retrovf_pci::{Bdf, Function, NotifyTarget, Registers};
use retrovf_spec::virtio::{common, NO_VECTOR};
use retrovf_spec::{pci, virtio};

use crate::capabilities::{self, Structures};
use crate::{Error, Result};

/// The registers of a modern virtio device. A handle: clones drive the same device.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    function: Arc<dyn Function>,
    structures: Structures,
    /// Held across a select register and what it selects.
    select: Mutex<()>,
}

/// What a queue is given.
pub(crate) struct QueueSetup {
    pub(crate) size: u16,
    pub(crate) vector: Option<u16>,
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// How long a device may take to reset before it is cut off from the bus instead.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);
/// What reads from a device that is gone return.
const STATUS_GONE: u8 = 0xff;

impl Transport {
    /// Finds the structures of the device and lets it decode memory accesses. Resets nothing.
    pub fn open(function: Arc<dyn Function>) -> Result<Self> {
        let structures = capabilities::find(&function)?;
        let transport = Self(Arc::new(Inner {
            function,
            structures,
            select: Mutex::new(()),
        }));
        transport.change_command(pci::COMMAND_MEMORY, 0)?;
        Ok(transport)
    }

    /// The device status; 0xff if the function is gone.
    pub fn status(&self) -> Result<u8> {
        match self.common().read8(common::DEVICE_STATUS) {
            Err(retrovf_pci::Error::Gone { .. }) => Ok(STATUS_GONE),
            status => Ok(status?),
        }
    }

    /// Writes the device status; 0 starts a reset, which is complete once the status reads 0.
    pub fn set_status(&self, value: u8) -> Result<()> {
        Ok(self.common().write8(common::DEVICE_STATUS, value)?)
    }

    /// The features that the device offers.
    pub fn device_features(&self) -> Result<u64> {
        self.read_features(common::DEVICE_FEATURE_SELECT, common::DEVICE_FEATURE)
    }

    /// The features that the driver has accepted, as the device has noted them.
    pub fn driver_features(&self) -> Result<u64> {
        self.read_features(common::DRIVER_FEATURE_SELECT, common::DRIVER_FEATURE)
    }

    /// Accepts features.
    pub fn set_driver_features(&self, bits: u64) -> Result<()> {
        let _selected = self.lock();
        for (select, half) in [(0, bits as u32), (1, (bits >> 32) as u32)] {
            self.common()
                .write32(common::DRIVER_FEATURE_SELECT, select)?;
            self.common().write32(common::DRIVER_FEATURE, half)?;
        }
        Ok(())
    }

    /// Number of virtqueues, without the admin queues.
    pub fn num_queues(&self) -> Result<u16> {
        Ok(self.common().read16(common::NUM_QUEUES)?)
    }

    /// Differs between two reads if the device configuration may have changed in between.
    pub fn config_generation(&self) -> Result<u8> {
        Ok(self.common().read8(common::CONFIG_GENERATION)?)
    }

    /// Bytes of the device configuration structure; 0 if there is none.
    pub fn device_config_length(&self) -> u64 {
        self.0.structures.device.as_ref().map_or(0, Registers::len)
    }

    /// Index of the first admin queue and their number, or `None` if the device's structure has no
    /// room for the fields. They mean something only once ADMIN_VQ has been negotiated.
    pub fn admin_queues(&self) -> Result<Option<(u16, u16)>> {
        if self.common().len() < common::SIZE {
            return Ok(None);
        }
        let index = self.common().read16(common::ADMIN_QUEUE_INDEX)?;
        let count = self.common().read16(common::ADMIN_QUEUE_NUM)?;
        Ok(Some((index, count)))
    }

    pub(crate) fn bdf(&self) -> Bdf {
        self.0.function.bdf()
    }

    pub(crate) fn function(&self) -> &dyn Function {
        &*self.0.function
    }

    pub(crate) fn set_bus_master(&self, on: bool) -> Result<()> {
        match on {
            true => self.change_command(pci::COMMAND_MASTER, 0),
            false => self.change_command(0, pci::COMMAND_MASTER),
        }
    }

    /// The size that the device proposes for a queue that is not in use yet.
    pub(crate) fn queue_size(&self, index: u16) -> Result<u16> {
        let _selected = self.select_queue(index)?;
        if self.common().read16(common::QUEUE_ENABLE)? != 0 {
            return Err(self.queue_error(index, "it is in use already"));
        }
        match self.common().read16(common::QUEUE_SIZE)? {
            0 => Err(self.queue_error(index, "it does not exist")),
            size if size > virtio::ring::MAX_SIZE => {
                Err(self.queue_error(index, "its size is above 32768"))
            }
            size => Ok(size),
        }
    }

    /// Sets a queue up, enables it, and returns what rings it.
    pub(crate) fn enable_queue(&self, index: u16, setup: &QueueSetup) -> Result<NotifyTarget> {
        let _selected = self.select_queue(index)?;
        let common = self.common();
        let vector = setup.vector.unwrap_or(NO_VECTOR);
        common.write16(common::QUEUE_SIZE, setup.size)?;
        common.write16(common::QUEUE_MSIX_VECTOR, vector)?;
        if common.read16(common::QUEUE_MSIX_VECTOR)? != vector {
            return Err(self.queue_error(index, "the device has no interrupt vector for it"));
        }
        common.write64(common::QUEUE_DESC, setup.desc)?;
        common.write64(common::QUEUE_DRIVER, setup.driver)?;
        common.write64(common::QUEUE_DEVICE, setup.device)?;
        let notify_off = common.read16(common::QUEUE_NOTIFY_OFF)?;
        let target = self.notify_target(index, notify_off)?;
        common.write16(common::QUEUE_ENABLE, 1)?;
        Ok(target)
    }

    /// Resets the device, or takes it off the bus if it does not reset in time. Afterwards it does
    /// not touch memory any more.
    pub(crate) fn quiesce(&self) {
        match self.reset() {
            Ok(true) => return,
            Ok(false) => log::warn!(
                "{} does not reset; bus mastering is switched off",
                self.bdf()
            ),
            Err(error) => log::warn!("{} cannot be reset: {error}", self.bdf()),
        }
        if let Err(error) = self.set_bus_master(false) {
            log::warn!(
                "Bus mastering of {} cannot be switched off: {error}",
                self.bdf()
            );
        }
    }

    fn reset(&self) -> Result<bool> {
        let end = Instant::now() + RESET_TIMEOUT;
        self.set_status(0)?;
        while self.status()? != 0 {
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    fn notify_target(&self, index: u16, notify_off: u16) -> Result<NotifyTarget> {
        let notify = &self.0.structures.notify;
        let at = u64::from(notify_off) * u64::from(notify.multiplier);
        if at + 2 > notify.length {
            return Err(self.queue_error(index, "its notify address is out of range"));
        }
        Ok(self
            .function()
            .notify_target(notify.region, notify.offset + at)?)
    }

    fn read_features(&self, select: u64, value: u64) -> Result<u64> {
        let _selected = self.lock();
        let mut halves = [0; 2];
        for (n, half) in (0..).zip(&mut halves) {
            self.common().write32(select, n)?;
            *half = self.common().read32(value)?;
        }
        Ok(u64::from(halves[1]) << 32 | u64::from(halves[0]))
    }

    fn select_queue(&self, index: u16) -> Result<MutexGuard<'_, ()>> {
        let selected = self.lock();
        self.common().write16(common::QUEUE_SELECT, index)?;
        Ok(selected)
    }

    fn change_command(&self, set: u16, clear: u16) -> Result<()> {
        let mut command = [0; 2];
        self.function().config_read(pci::COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) & !clear | set;
        self.function()
            .config_write(pci::COMMAND, &command.to_le_bytes())?;
        Ok(())
    }

    pub(crate) fn queue_error(&self, index: u16, reason: &'static str) -> Error {
        Error::Queue {
            bdf: self.bdf(),
            index,
            reason,
        }
    }

    fn common(&self) -> &Registers {
        &self.0.structures.common
    }

    // The lock guards registers, not memory; a panic elsewhere leaves nothing inconsistent, since
    // every user selects anew.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.select.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transport").field(&self.bdf()).finish()
    }
}
