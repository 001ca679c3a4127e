//! What an admin queue takes from the device: memory, a vector, the queue itself.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use retrovf_pci::{
    DmaAccess, DmaBacking, DmaMapping, IrqAction, IrqIndex, IrqRequest, NotifyTarget, SharedMemory,
};

use super::ring::{Layout, Ring};
use super::{AdminQueueOptions, CompletionMode};
use crate::transport::QueueSetup;
use crate::{Result, Transport};

/// More would only be memory: commands are few, and they are short.
const MAX_SIZE: u16 = 256;

/// The device's side of a queue; given back once, by [`QueueDevice::release`] or on drop.
pub(crate) struct QueueDevice {
    transport: Transport,
    index: u16,
    size: u16,
    vector: Option<u16>,
    iova: u64,
    layout: Layout,
    memory: Arc<SharedMemory>,
    released: AtomicBool,
}

impl QueueDevice {
    /// Checks the options against the device and gives it the memory of the queue.
    pub(crate) fn map(transport: &Transport, options: &AdminQueueOptions) -> Result<Self> {
        let index = options.index;
        let error = |reason| transport.queue_error(index, reason);
        let size = transport
            .queue_size(index)?
            .min(options.size)
            .min(MAX_SIZE)
            .checked_ilog2()
            .map_or(0, |log| 1 << log);
        if size < 2 {
            return Err(error("a command needs two entries"));
        }
        let interrupts = options.completion == CompletionMode::Interrupt;
        let vectors = transport.function().irq(IrqIndex::MSIX).count;
        if interrupts && u32::from(options.vector) >= vectors {
            return Err(error("the function has no such interrupt vector"));
        }
        let layout = Layout::new(size);
        let memory = Arc::new(SharedMemory::anonymous(layout.total)?);
        let mapping = DmaMapping {
            size: layout.total as u64,
            access: DmaAccess::READ_WRITE,
            backing: DmaBacking::Shared {
                memory: Arc::clone(&memory),
                offset: 0,
            },
        };
        transport.function().dma_map(options.iova, mapping)?;
        Ok(Self {
            transport: transport.clone(),
            index,
            size,
            vector: interrupts.then_some(options.vector),
            iova: options.iova,
            layout,
            memory,
            released: AtomicBool::new(false),
        })
    }

    /// The ring in the memory, and how many commands it holds.
    pub(crate) fn ring(&self, interrupts: bool) -> Result<(Ring, u16)> {
        let memory = Arc::clone(&self.memory);
        let ring = Ring::new(memory, self.layout, self.iova, interrupts)
            .map_err(|_| self.transport.queue_error(self.index, "it has no memory"))?;
        Ok((ring, self.layout.slot_count()))
    }

    /// Hands the ring to the device, and returns what rings it.
    pub(crate) fn enable(&self, interrupt: Option<&OwnedFd>) -> Result<NotifyTarget> {
        self.transport.set_bus_master(true)?;
        if let Some(fd) = interrupt {
            let fd = fd.try_clone().map_err(|source| retrovf_pci::Error::Io {
                what: "Duplicating an eventfd",
                source,
            })?;
            self.install(Some(fd))?;
        }
        let setup = QueueSetup {
            size: self.size,
            vector: self.vector,
            desc: self.iova,
            driver: self.iova + self.layout.avail as u64,
            device: self.iova + self.layout.used as u64,
        };
        self.transport.enable_queue(self.index, &setup)
    }

    /// Stops the device, and only then takes its memory away.
    pub(crate) fn release(&self) {
        if self.released.swap(true, Ordering::Relaxed) {
            return;
        }
        self.transport.quiesce();
        let bdf = self.transport.bdf();
        if let Err(error) = self.install(None) {
            log::warn!("Detaching an interrupt of {bdf}: {error}");
        }
        let function = self.transport.function();
        if let Err(error) = function.dma_unmap(self.iova, self.layout.total as u64) {
            log::warn!("Taking the memory of a queue from {bdf}: {error}");
        }
    }

    fn install(&self, fd: Option<OwnedFd>) -> Result<()> {
        let Some(vector) = self.vector else {
            return Ok(());
        };
        self.transport.function().set_irqs(IrqRequest {
            index: IrqIndex::MSIX,
            start: vector.into(),
            action: IrqAction::Install(vec![fd]),
        })?;
        Ok(())
    }
}

impl Drop for QueueDevice {
    fn drop(&mut self) {
        self.release();
    }
}
