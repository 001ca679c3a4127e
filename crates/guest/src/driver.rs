//! The legacy network driver: bring-up, teardown, frames.

use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_spec::virtio::{feature, status, NO_VECTOR};
use retrovf_spec::{legacy, pci};

use crate::bus::{AccessRegion, Bus};
use crate::enumerate::Identity;
use crate::interrupts::{self, Interrupts};
use crate::ram::Ram;
use crate::ring::Ring;
use crate::{Error, Result};

const BAR0: AccessRegion = AccessRegion::Bar0;
const CONFIG: AccessRegion = AccessRegion::Config;

const RX: u16 = 0;
const TX: u16 = 1;
/// Features that the driver uses.
const WANTED: u32 = 1 << feature::NET_MAC | 1 << feature::NET_STATUS | 1 << feature::NET_MRG_RXBUF;
/// Network header without and with NET_MRG_RXBUF.
const HEADER: usize = 10;
const HEADER_MERGEABLE: usize = 12;
/// Offset of the link status in the device's configuration.
const LINK_STATUS: u64 = 6;
const FRAME_SIZES: std::ops::RangeInclusive<usize> = 14..=1514;
/// The address of a device that has none.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// How long the device may take to send a frame when all buffers are in use.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two looks at the ISR register without MSI-X.
const ISR_INTERVAL: Duration = Duration::from_micros(500);

/// What the driver found when it started the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Features that the device offers.
    pub offered: u32,
    /// Features that the driver took.
    pub accepted: u32,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// Whether the link is up.
    pub link_up: bool,
    /// Sizes of the receive and the send queue.
    pub queue_sizes: [u16; 2],
    /// Interrupts come by MSI-X; otherwise the driver polls the ISR register.
    pub msix: bool,
}

/// The driver of one device, in use or not.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) bus: Bus,
    ram: Arc<Ram>,
    running: Option<Running>,
    /// What went wrong where the network stack could not be told.
    pub(crate) failed: Option<Error>,
}

#[derive(Debug)]
struct Running {
    identity: Identity,
    rx: Ring,
    tx: Ring,
    interrupts: Option<Interrupts>,
    /// Bytes of the network header.
    header: usize,
}

impl Driver {
    pub(crate) fn new(bus: Bus, ram: Arc<Ram>) -> Self {
        Self {
            bus,
            ram,
            running: None,
            failed: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Brings the device up as Linux's `virtio_pci_legacy` and `virtio_net` do, in their order. If it
    /// fails, the device is left reset.
    pub(crate) fn start(&mut self, identity: Identity, msix: bool) -> Result<Started> {
        let brought_up = bring_up(&mut self.bus, &self.ram, identity, msix);
        if brought_up.is_err() {
            let bus = &mut self.bus;
            if let Err(error) = reset(bus).and_then(|()| disable_msix(bus, &identity)) {
                log::debug!("Resetting a device that did not start: {error}");
            }
        }
        let (running, started) = brought_up?;
        self.running = Some(running);
        self.failed = None;
        Ok(started)
    }

    /// Resets the device and takes the queues and vectors back.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let bus = &mut self.bus;
        reset(bus)?;
        for queue in [RX, TX] {
            bus.write16(BAR0, legacy::QUEUE_SELECT, queue)?;
            if running.interrupts.is_some() {
                bus.write16(BAR0, legacy::QUEUE_VECTOR, NO_VECTOR)?;
                bus.read8(BAR0, legacy::ISR)?;
            }
            bus.write32(BAR0, legacy::QUEUE_PFN, 0)?;
        }
        match running.interrupts {
            Some(_) => disable_msix(bus, &running.identity),
            None => Ok(()),
        }
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        if !FRAME_SIZES.contains(&frame.len()) {
            return Err(Error::FrameSize { size: frame.len() });
        }
        let end = Instant::now() + SEND_TIMEOUT;
        loop {
            let tx = &mut self.running.as_mut().ok_or(STOPPED)?.tx;
            while tx.take()?.is_some() {}
            if let Some(buffer) = tx.free() {
                tx.fill(buffer, frame)?;
                tx.lend(buffer, frame.len())?;
                return match tx.wants_notification()? {
                    true => self.notify(TX),
                    false => Ok(()),
                };
            }
            if Instant::now() >= end {
                return Err(Error::TimedOut {
                    what: "free send buffer",
                    milliseconds: SEND_TIMEOUT.as_millis(),
                });
            }
            self.wait(end)?;
        }
    }

    /// The next frame that has arrived.
    pub(crate) fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let Running { rx, header, .. } = self.running.as_mut().ok_or(STOPPED)?;
            let header = *header;
            let Some(used) = rx.take()? else {
                return Ok(None);
            };
            let mut bytes = vec![0; used.len];
            rx.read(used.buffer, &mut bytes)?;
            rx.lend_all()?;
            if rx.wants_notification()? {
                self.notify(RX)?;
            }
            let count = bytes.get(HEADER..HEADER_MERGEABLE);
            if header == HEADER_MERGEABLE && count.is_some_and(|count| count != [1, 0]) {
                return Err(Error::Device {
                    reason: "it spreads a frame over buffers that each have room for it",
                });
            }
            // Less than an Ethernet header is no frame: passed over.
            if used.len >= header + FRAME_SIZES.start() {
                return Ok(Some(bytes.split_off(header)));
            }
        }
    }

    /// Waits until something may have happened, or `until`.
    pub(crate) fn wait(&mut self, until: Instant) -> Result<()> {
        self.bus.client.serve(Duration::ZERO)?;
        let interrupts = self.running.as_ref().and_then(|r| r.interrupts.as_ref());
        if interrupts.is_some() {
            interrupts::wait(&self.bus.client, interrupts, until)?;
        } else if self.read_isr()? == 0 {
            let until = until.min(Instant::now() + ISR_INTERVAL);
            interrupts::wait(&self.bus.client, None, until)?;
        }
        Ok(self.bus.client.serve(Duration::ZERO)?)
    }

    /// Not traced: polling would fill the trace.
    fn read_isr(&mut self) -> Result<u8> {
        let tracing = std::mem::replace(&mut self.bus.tracing, false);
        let isr = self.bus.read8(BAR0, legacy::ISR);
        self.bus.tracing = tracing;
        isr
    }

    fn notify(&mut self, queue: u16) -> Result<()> {
        self.bus.notify(queue)
    }

    /// One read of the status register.
    pub(crate) fn read_status(&mut self) -> Result<()> {
        self.bus.read8(BAR0, legacy::STATUS).map(drop)
    }

    /// A notification of the send queue for which there is nothing to do.
    pub(crate) fn notify_idle(&mut self) -> Result<()> {
        self.notify(TX)
    }
}

const STOPPED: Error = Error::State {
    reason: "start the driver first",
};

fn bring_up(
    bus: &mut Bus,
    ram: &Arc<Ram>,
    identity: Identity,
    msix: bool,
) -> Result<(Running, Started)> {
    reset(bus)?;
    add_status(bus, status::ACKNOWLEDGE)?;
    add_status(bus, status::DRIVER)?;
    let offered = bus.read32(BAR0, legacy::DEVICE_FEATURES)?;
    let accepted = offered & WANTED;
    bus.write32(BAR0, legacy::GUEST_FEATURES, accepted)?;
    let has = |bit: u32| accepted & 1 << bit != 0;

    // The configuration is read byte by byte, and before MSI-X moves it.
    let mut mac = OWN_MAC;
    if has(feature::NET_MAC) {
        for (at, byte) in (legacy::CONFIG_BASE..).zip(&mut mac) {
            *byte = bus.read8(BAR0, at)?;
        }
    }
    let link_up = if has(feature::NET_STATUS) {
        let low = bus.read8(BAR0, legacy::CONFIG_BASE + LINK_STATUS)?;
        bus.read8(BAR0, legacy::CONFIG_BASE + LINK_STATUS + 1)?;
        low & 1 != 0
    } else {
        true
    };
    let interrupts = if msix {
        enable_msix(bus, &identity)?
    } else {
        None
    };
    let header = if has(feature::NET_MRG_RXBUF) {
        HEADER_MERGEABLE
    } else {
        HEADER
    };
    let (mut rx, rx_size) = set_up_queue(bus, ram, RX, header, interrupts.as_ref())?;
    let (tx, tx_size) = set_up_queue(bus, ram, TX, header, interrupts.as_ref())?;
    add_status(bus, status::DRIVER_OK)?;
    rx.lend_all()?;
    bus.notify(RX)?;
    let started = Started {
        offered,
        accepted,
        mac,
        link_up,
        queue_sizes: [rx_size, tx_size],
        msix: interrupts.is_some(),
    };
    let running = Running {
        identity,
        rx,
        tx,
        interrupts,
        header,
    };
    Ok((running, started))
}

/// Writes 0, and reads once so that the write has arrived, as Linux does; it does not wait.
fn reset(bus: &mut Bus) -> Result<()> {
    bus.write8(BAR0, legacy::STATUS, 0)?;
    bus.read8(BAR0, legacy::STATUS)?;
    Ok(())
}

fn add_status(bus: &mut Bus, bit: u8) -> Result<()> {
    let status = bus.read8(BAR0, legacy::STATUS)?;
    bus.write8(BAR0, legacy::STATUS, status | bit)
}

/// The enable bit first, the eventfds after it: the order in which a VMM sends them.
fn enable_msix(bus: &mut Bus, identity: &Identity) -> Result<Option<Interrupts>> {
    let Some(interrupts) = Interrupts::new(identity.msix_vectors)? else {
        return Ok(None);
    };
    change_msix(bus, identity, pci::MSIX_CONTROL_ENABLE)?;
    interrupts.install(&mut bus.client)?;
    if !bus.write16_checked(BAR0, legacy::CONFIG_VECTOR, interrupts.vectors.config)? {
        return Err(NO_VECTORS);
    }
    Ok(Some(interrupts))
}

fn disable_msix(bus: &mut Bus, identity: &Identity) -> Result<()> {
    if identity.msix.is_none() {
        return Ok(());
    }
    Interrupts::disable(&mut bus.client)?;
    change_msix(bus, identity, 0)
}

fn change_msix(bus: &mut Bus, identity: &Identity, enable: u16) -> Result<()> {
    if let Some(cap) = identity.msix {
        let at = cap + pci::MSIX_CONTROL as u64;
        let control = bus.read16(CONFIG, at)? & !pci::MSIX_CONTROL_ENABLE;
        bus.write16(CONFIG, at, control | enable)?;
    }
    Ok(())
}

fn set_up_queue(
    bus: &mut Bus,
    ram: &Arc<Ram>,
    queue: u16,
    header: usize,
    interrupts: Option<&Interrupts>,
) -> Result<(Ring, u16)> {
    bus.write16(BAR0, legacy::QUEUE_SELECT, queue)?;
    let size = bus.read16(BAR0, legacy::QUEUE_SIZE)?;
    if size == 0 {
        return Err(Error::Refused {
            reason: "it has no receive or no send queue",
        });
    }
    if bus.read32(BAR0, legacy::QUEUE_PFN)? != 0 {
        return Err(Error::Device {
            reason: "a queue is in use right after a reset",
        });
    }
    let ring = Ring::new(Arc::clone(ram), queue, size, header, queue == RX)?;
    bus.write32(BAR0, legacy::QUEUE_PFN, ring.pfn())?;
    if let Some(interrupts) = interrupts {
        let vector = interrupts.vectors.queues[usize::from(queue == TX)];
        if !bus.write16_checked(BAR0, legacy::QUEUE_VECTOR, vector)? {
            return Err(NO_VECTORS);
        }
    }
    Ok((ring, size))
}

const NO_VECTORS: Error = Error::Device {
    reason: "it refuses a vector that its MSI-X capability has",
};
