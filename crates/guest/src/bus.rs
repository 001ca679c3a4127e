//! Register accesses over the client, and the record of them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use retrovf_pci::Error;
use retrovf_spec::legacy::QUEUE_NOTIFY;
use retrovf_vfio_user::wire::{IO_FD_DATAMATCH, IO_FD_IOEVENTFD};
use retrovf_vfio_user::Client;

use crate::Result;

/// What an access touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRegion {
    /// Configuration space.
    Config,
    /// The legacy registers.
    Bar0,
}

impl AccessRegion {
    const fn index(self) -> u32 {
        match self {
            Self::Config => 7,
            Self::Bar0 => 0,
        }
    }
}

/// One register access of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What it touched.
    pub region: AccessRegion,
    /// Write or read.
    pub write: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// What was written or read.
    pub value: u32,
    /// From the request to the answer, in nanoseconds.
    pub ns: u64,
}

/// Accesses that are kept until somebody takes them; later ones are dropped.
const TRACE_LIMIT: usize = 4096;

/// The registers of the device, as the guest's CPU reaches them.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(crate) client: Client,
    pub(crate) tracing: bool,
    /// Queue indexes whose write to Queue Notify is a signal of an eventfd instead, as KVM makes it.
    ioeventfds: Vec<(u16, OwnedFd)>,
    trace: Vec<Access>,
}

impl Bus {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            tracing: true,
            ioeventfds: Vec::new(),
            trace: Vec::new(),
        }
    }

    /// Takes the eventfds that the server offers for Queue Notify.
    pub(crate) fn take_ioeventfds(&mut self) -> Result<()> {
        let offered = self.client.region_io_fds(AccessRegion::Bar0.index())?;
        let usable = offered.into_iter().filter_map(|(entry, fd)| {
            let fits = entry.kind == IO_FD_IOEVENTFD
                && entry.flags & IO_FD_DATAMATCH != 0
                && (entry.offset, entry.size) == (QUEUE_NOTIFY, 2);
            Some((u16::try_from(entry.datamatch).ok().filter(|_| fits)?, fd))
        });
        self.ioeventfds = usable.collect();
        Ok(())
    }

    /// Writes Queue Notify.
    pub(crate) fn notify(&mut self, queue: u16) -> Result<()> {
        match self.ioeventfds.iter().find(|(index, _)| *index == queue) {
            Some((_, fd)) => {
                let signalled = rustix::io::write(fd, &1u64.to_ne_bytes());
                signalled.map_err(Error::io("Signalling a notification"))?;
                Ok(())
            }
            None => self.write16(AccessRegion::Bar0, QUEUE_NOTIFY, queue),
        }
    }

    pub(crate) fn take_trace(&mut self) -> Vec<Access> {
        std::mem::take(&mut self.trace)
    }

    pub(crate) fn read8(&mut self, region: AccessRegion, offset: u64) -> Result<u8> {
        self.read(region, offset).map(u8::from_le_bytes)
    }

    pub(crate) fn read16(&mut self, region: AccessRegion, offset: u64) -> Result<u16> {
        self.read(region, offset).map(u16::from_le_bytes)
    }

    pub(crate) fn read32(&mut self, region: AccessRegion, offset: u64) -> Result<u32> {
        self.read(region, offset).map(u32::from_le_bytes)
    }

    pub(crate) fn write8(&mut self, region: AccessRegion, offset: u64, value: u8) -> Result<()> {
        self.write(region, offset, value.to_le_bytes())
    }

    pub(crate) fn write16(&mut self, region: AccessRegion, offset: u64, value: u16) -> Result<()> {
        self.write(region, offset, value.to_le_bytes())
    }

    pub(crate) fn write32(&mut self, region: AccessRegion, offset: u64, value: u32) -> Result<()> {
        self.write(region, offset, value.to_le_bytes())
    }

    /// Writes and reads back, as drivers do to see whether the device took the value.
    pub(crate) fn write16_checked(
        &mut self,
        region: AccessRegion,
        offset: u64,
        value: u16,
    ) -> Result<bool> {
        self.write16(region, offset, value)?;
        Ok(self.read16(region, offset)? == value)
    }

    fn read<const N: usize>(&mut self, region: AccessRegion, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let started = Instant::now();
        self.client
            .region_read(region.index(), offset, &mut bytes)?;
        self.note(region, false, offset, &bytes, started);
        Ok(bytes)
    }

    fn write<const N: usize>(
        &mut self,
        region: AccessRegion,
        offset: u64,
        bytes: [u8; N],
    ) -> Result<()> {
        let started = Instant::now();
        self.client.region_write(region.index(), offset, &bytes)?;
        self.note(region, true, offset, &bytes, started);
        Ok(())
    }

    fn note(
        &mut self,
        region: AccessRegion,
        write: bool,
        offset: u64,
        bytes: &[u8],
        started: Instant,
    ) {
        if !self.tracing || self.trace.len() >= TRACE_LIMIT {
            return;
        }
        let value = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.trace.push(Access {
            region,
            write,
            offset,
            width: bytes.len() as u8,
            value,
            ns: nanoseconds(started.elapsed()),
        });
    }
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
