use std::os::fd::OwnedFd;
use std::time::Instant;

use libc::{EINVAL, ENOSYS, ENOTSUP};
use retrovf_pci::{DmaAccess, DmaBacking, DmaMapping, IrqIndex, QueueIndex, Region};
use retrovf_spec::legacy::QUEUE_NOTIFY;

use crate::control::{Answer, ControlAccess, ControlKind};
use crate::counters::count;
use crate::session::{Core, Work};
use crate::wire::*;
use crate::{io_fds, irqs, ServerEvent};

/// What a command comes to: a reply, or the errno of an error reply.
pub(crate) type Outcome = Result<Reply, i32>;

/// The reply to a command that succeeded.
pub(crate) enum Reply {
    /// A bare header.
    Header,
    /// The payload that was put together in the session's buffer.
    Payload,
    /// Sent already, or sent later by somebody else.
    Elsewhere,
}

/// Bytes of an entry of REGION_WRITE_MULTI: a region access and 8 bytes of data.
const MULTI_ENTRY: usize = ACCESS_SIZE + 8;

impl Core {
    /// Carries out one command.
    pub(crate) fn command(
        &mut self,
        header: &Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        arrived: Option<Instant>,
    ) -> Outcome {
        // First, since a kick must not wait for anything: see `Core::notify`.
        if header.command == Command::REGION_WRITE {
            return self.region_write(header, payload, &fds, arrived);
        }
        if header.flags & TYPE_MASK != TYPE_COMMAND {
            return Err(self.malformed());
        }
        let takes_fds = matches!(header.command, Command::DMA_MAP | Command::SET_IRQS);
        if !takes_fds && !fds.is_empty() {
            return Err(self.malformed());
        }
        match header.command {
            Command::REGION_READ => self.region_read(header, payload, arrived),
            Command::DMA_MAP => self.dma_map(payload, fds),
            Command::DMA_UNMAP => self.dma_unmap(payload),
            Command::GET_INFO => self.device_info(payload),
            Command::REGION_INFO => self.region_info(payload),
            Command::REGION_IO_FDS => self.region_io_fds(header, payload),
            Command::IRQ_INFO => self.irq_info(payload),
            Command::SET_IRQS => self.set_irqs(payload, fds),
            Command::RESET => self.reset(),
            Command::WRITE_MULTI => self.write_multi(header, payload),
            // The handshake is over, and these two are ours to send.
            Command::VERSION | Command::DMA_READ | Command::DMA_WRITE => Err(self.malformed()),
            Command::DIRTY_PAGES
            | Command::FEATURE
            | Command::MIG_DATA_READ
            | Command::MIG_DATA_WRITE => Err(ENOTSUP),
            _ => Err(ENOSYS),
        }
    }

    /// A message that no correct client sends.
    fn malformed(&self) -> i32 {
        count(&self.device.counters.protocol_errors);
        EINVAL
    }

    fn dma_map(&mut self, payload: &[u8], mut fds: Vec<OwnedFd>) -> Outcome {
        let (Some(flags), Some(offset), Some(iova), Some(size)) = (
            u32_at(payload, 4),
            u64_at(payload, 8),
            u64_at(payload, 16),
            u64_at(payload, 24),
        ) else {
            return Err(self.malformed());
        };
        let access = DmaAccess {
            read: flags & DMA_READABLE != 0,
            write: flags & DMA_WRITABLE != 0,
        };
        let known = DMA_READABLE | DMA_WRITABLE | DMA_HINTS;
        if flags & !known != 0 || !(access.read || access.write) || fds.len() > 1 {
            return Err(self.malformed());
        }
        if size == 0 || iova.checked_add(size).is_none() {
            return Err(EINVAL);
        }
        let backing = match fds.pop() {
            Some(fd) => self.files.backing(fd, offset, size, access),
            None => Ok(DmaBacking::Remote(self.link.clone())),
        };
        let backing = backing.map_err(|error| self.refused("DMA_MAP", &error))?;
        let mapping = DmaMapping {
            size,
            access,
            backing,
        };
        let shared = matches!(mapping.backing, DmaBacking::Shared { .. });
        let mapped = self.device.member.dma_map(iova, mapping);
        mapped.map_err(|error| self.unmapped(&error))?;
        self.shares_memory |= shared;
        self.remote_memory |= !shared;
        Ok(Reply::Header)
    }

    /// Without its memory a guest's device works on nothing, so the operator hears of it, once.
    fn unmapped(&mut self, error: &retrovf_pci::Error) -> i32 {
        let grave = match error {
            // A guest whose memory is shared has ROMs and the like that are not.
            retrovf_pci::Error::DmaNotShared { .. } => !self.shares_memory,
            retrovf_pci::Error::DmaLimit { .. } | retrovf_pci::Error::DmaLocked { .. } => true,
            _ => false,
        };
        if grave && !self.complained {
            self.complained = true;
            log::warn!(
                "{}: Guest memory is out of the device's reach ({}): {error}",
                self.device.member.bdf(),
                error.code()
            );
        }
        self.refused("DMA_MAP", error)
    }

    /// Answers with the request, as the specification wants it. The range may cover several maps,
    /// holes, or nothing: with a vIOMMU QEMU unmaps what it never mapped, and removes a region of
    /// memory in one piece.
    fn dma_unmap(&mut self, payload: &[u8]) -> Outcome {
        let (Some(request), Some(flags), Some(iova), Some(size)) = (
            payload.get(..24),
            u32_at(payload, 4),
            u64_at(payload, 8),
            u64_at(payload, 16),
        ) else {
            return Err(self.malformed());
        };
        let member = &self.device.member;
        let removed = match (flags, iova, size) {
            (UNMAP_ALL, 0, 0) => member.dma_unmap_all().map(|()| 0),
            (0, _, 1..) => member.dma_unmap(iova, size),
            _ => return Err(self.malformed()),
        };
        match removed {
            Ok(bytes) => log::trace!("DMA_UNMAP {iova:#x}+{size:#x} removed {bytes:#x}"),
            Err(error) => return Err(self.refused("DMA_UNMAP", &error)),
        }
        self.reply(request.iter().copied());
        Ok(Reply::Payload)
    }

    fn device_info(&mut self, payload: &[u8]) -> Outcome {
        self.expect(payload, 16)?;
        let flags = DEVICE_RESETS | DEVICE_PCI;
        self.reply(words([16, flags, Region::COUNT, IrqIndex::COUNT]));
        Ok(Reply::Payload)
    }

    fn region_info(&mut self, payload: &[u8]) -> Outcome {
        self.expect(payload, 32)?;
        let region = self.region_at(payload)?;
        let info = self.device.region(region);
        let info = info.map_err(|error| error.errno())?;
        let mut flags = 0;
        // Never mappable: a region with that flag makes QEMU stop posting memory writes.
        if info.size > 0 && info.readable {
            flags |= REGION_READABLE;
        }
        if info.size > 0 && info.writable {
            flags |= REGION_WRITABLE;
        }
        let sizes = [info.size, 0].into_iter().flat_map(u64::to_ne_bytes);
        self.reply(words([32, flags, region.0, 0]).chain(sizes));
        Ok(Reply::Payload)
    }

    /// One ioeventfd for each queue, for Queue Notify of BAR0. A client whose `argsz` has no room for
    /// the entries gets the size and the count, to ask again; one that takes fewer descriptors in a
    /// message than there are queues gets the first of them, and sends messages for the others.
    fn region_io_fds(&mut self, header: &Header, payload: &[u8]) -> Outcome {
        self.expect(payload, 16)?;
        let region = self.region_at(payload)?;
        let room = u32_at(payload, 0).unwrap_or(0) as usize;
        let ours = region == Region(0) && self.device.io_bar().is_some();
        let queues = match &self.device.notify {
            Some(_) if ours => usize::from(self.device.queues),
            _ => 0,
        };
        let queues = queues.min(self.peer.max_msg_fds).min(MAX_SENT_FDS);
        let size = 16 + queues * IO_FD_SIZE;
        let mut fds = Vec::new();
        if room >= size {
            let made = self.io_fds.eventfds(&self.device, queues);
            fds = made.map_err(|error| {
                log::warn!(
                    "{}: No eventfd for a queue: {error}",
                    self.device.member.bdf()
                );
                error.raw_os_error().unwrap_or(libc::EIO)
            })?;
        }
        let entries = (0..fds.len() as u32).flat_map(io_fds::entry);
        self.reply(words([size as u32, 0, region.0, queues as u32]).chain(entries));
        self.send_reply(header, &fds);
        Ok(Reply::Elsewhere)
    }

    fn irq_info(&mut self, payload: &[u8]) -> Outcome {
        self.expect(payload, 16)?;
        let index = u32_at(payload, 8).filter(|&index| index < IrqIndex::COUNT);
        let index = index.ok_or(EINVAL)?;
        let info = self.device.member.irq(IrqIndex(index));
        let mut flags = IRQ_EVENTFD;
        for (set, flag) in [
            (info.maskable, IRQ_MASKABLE),
            (info.automasked, IRQ_AUTOMASKED),
            (info.noresize, IRQ_NORESIZE),
        ] {
            flags |= if set { flag } else { 0 };
        }
        self.reply(words([16, flags, index, info.count]));
        Ok(Reply::Payload)
    }

    fn set_irqs(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Outcome {
        let member = &self.device.member;
        let Some(request) = irqs::parse(payload, fds, |index| member.irq(index)) else {
            return Err(self.malformed());
        };
        let done = member.set_irqs(request);
        done.map_err(|error| self.refused("SET_IRQS", &error))?;
        Ok(Reply::Header)
    }

    fn reset(&mut self) -> Outcome {
        self.device.reset().map_err(|error| {
            log::warn!("{}: Reset failed: {error}", self.device.member.bdf());
            error.errno()
        })?;
        (self.on_event)(ServerEvent::DeviceReset);
        Ok(Reply::Header)
    }

    fn region_read(
        &mut self,
        header: &Header,
        payload: &[u8],
        arrived: Option<Instant>,
    ) -> Outcome {
        let Some(access) = RegionAccess::parse(payload) else {
            return Err(self.malformed());
        };
        let length = access.count as usize;
        if length > MAX_DATA {
            return Err(self.malformed());
        }
        if let (0, Some(size)) = (access.region, self.device.io_bar()) {
            return self.bar0(header, &access, None, size, arrived);
        }
        self.reply(access.encode());
        self.buffer.resize(HEADER_SIZE + ACCESS_SIZE + length, 0);
        let Some(out) = self.buffer.get_mut(HEADER_SIZE + ACCESS_SIZE..) else {
            return Err(EINVAL);
        };
        let region = Region(access.region);
        let read = match (region, usize::try_from(access.offset)) {
            (Region::CONFIG, Ok(offset)) => self.device.config_read(offset, out),
            (Region::CONFIG, Err(_)) => return Err(EINVAL),
            _ => self.device.region_read(region, access.offset, out),
        };
        read.map_err(|error| error.errno())?;
        Ok(Reply::Payload)
    }

    fn region_write(
        &mut self,
        header: &Header,
        payload: &[u8],
        fds: &[OwnedFd],
        arrived: Option<Instant>,
    ) -> Outcome {
        let (Some(access), Some(data)) = (RegionAccess::parse(payload), payload.get(ACCESS_SIZE..))
        else {
            return Err(self.malformed());
        };
        let odd = header.flags & TYPE_MASK != TYPE_COMMAND || !fds.is_empty();
        if odd || data.len() != access.count as usize || data.len() > MAX_DATA {
            return Err(self.malformed());
        }
        self.write_region(header, &access, data, arrived)
    }

    /// A write, alone or one of REGION_WRITE_MULTI.
    pub(crate) fn write_region(
        &mut self,
        header: &Header,
        access: &RegionAccess,
        data: &[u8],
        arrived: Option<Instant>,
    ) -> Outcome {
        if let (0, Some(size)) = (access.region, self.device.io_bar()) {
            return self.bar0(header, access, Some(data), size, arrived);
        }
        let region = Region(access.region);
        let written = match (region, usize::try_from(access.offset)) {
            (Region::CONFIG, Ok(offset)) => self.device.config_write(offset, data),
            (Region::CONFIG, Err(_)) => return Err(EINVAL),
            _ => self.device.region_write(region, access.offset, data),
        };
        written.map_err(|error| error.errno())?;
        self.send_written(header, access);
        Ok(Reply::Elsewhere)
    }

    /// An access to the I/O BAR0: a kick, an access while decoding is off, or a control access.
    fn bar0(
        &mut self,
        header: &Header,
        access: &RegionAccess,
        data: Option<&[u8]>,
        size: u64,
        arrived: Option<Instant>,
    ) -> Outcome {
        if access.offset == QUEUE_NOTIFY {
            if let Some(&[low, high]) = data {
                let queue = QueueIndex(u16::from_le_bytes([low, high]));
                // The path of every kick. On it: the I/O enable bit, the store to the device (or
                // the soft device's wake-up), a counter, and the reply, whose lock is free unless
                // another thread sends at this moment. No allocation, no log line, no JavaScript.
                if self.device.io_enabled() && self.device.notify(queue) {
                    self.send_written(header, access);
                    return Ok(Reply::Elsewhere);
                }
            }
        }
        let length = u64::from(access.count);
        if access
            .offset
            .checked_add(length)
            .is_none_or(|end| end > size)
        {
            return Err(EINVAL);
        }
        let gated = !self.device.io_enabled();
        if gated || length == 0 {
            // The kernel's driver says EIO here, which QEMU logs each time. A function that does not
            // decode I/O does not answer on the bus: reads are all ones, writes go nowhere.
            if gated {
                count(&self.device.counters.gated_accesses);
            }
            if data.is_some() {
                self.send_written(header, access);
                return Ok(Reply::Elsewhere);
            }
            self.reply(access.encode());
            let end = self.buffer.len() + access.count as usize;
            self.buffer.resize(end, 0xff);
            return Ok(Reply::Payload);
        }
        self.control(header, access, data, arrived);
        Ok(Reply::Elsewhere)
    }

    /// Hands an access to the control plane; [`ControlSlot`](crate::control::ControlSlot) sends the
    /// reply.
    fn control(
        &mut self,
        header: &Header,
        access: &RegionAccess,
        data: Option<&[u8]>,
        arrived: Option<Instant>,
    ) {
        let counters = &self.device.counters;
        let kind = match data {
            Some(data) => {
                count(&counters.control_writes);
                ControlKind::Write(data.to_vec())
            }
            None => {
                count(&counters.control_reads);
                let length = access.count as usize;
                ControlKind::Read { length }
            }
        };
        let id = self.device.control.begin(Answer {
            link: self.link.clone(),
            request: *header,
            access: *access,
            write: data.is_some(),
        });
        // Counted from the arrival: the client's patience does not start again with each access
        // that waited behind another.
        let deadline = arrived.unwrap_or_else(Instant::now) + self.timing.access;
        self.pending = Some((id, deadline, *access, data.is_some()));
        self.device.plane.access(ControlAccess {
            id,
            kind,
            offset: access.offset,
            msix_enabled: self.device.msix_enabled(),
        });
    }

    /// Queues the writes, so that each takes its turn like a single one. We do not offer this
    /// command, but QEMU sends it with `x-send-queued`.
    fn write_multi(&mut self, header: &Header, payload: &[u8]) -> Outcome {
        let entries = payload.get(8..).unwrap_or_default();
        let n = u64_at(payload, 0).and_then(|n| usize::try_from(n).ok());
        let Some(n) = n.filter(|&n| n <= entries.len() / MULTI_ENTRY) else {
            return Err(self.malformed());
        };
        let mut writes = Vec::with_capacity(n);
        for entry in entries.chunks_exact(MULTI_ENTRY).take(n) {
            let access = RegionAccess::parse(entry).filter(|access| access.count <= 8);
            let data = entry.get(ACCESS_SIZE..).and_then(|data| data.first_chunk());
            let (Some(access), Some(&data)) = (access, data) else {
                return Err(self.malformed());
            };
            writes.push((access, data));
        }
        let arrived = Instant::now();
        self.parked.push_front(Work::MultiDone {
            header: *header,
            count: n as u64,
        });
        for (access, data) in writes.into_iter().rev() {
            self.parked.push_front(Work::Write {
                access,
                data,
                arrived,
            });
        }
        Ok(Reply::Elsewhere)
    }

    fn send_written(&self, header: &Header, access: &RegionAccess) {
        if !header.no_reply() {
            let message = access.message(&header.reply(ACCESS_SIZE));
            self.link.output.send(&message);
        }
    }

    fn expect(&self, payload: &[u8], size: usize) -> Result<(), i32> {
        if payload.len() < size {
            return Err(self.malformed());
        }
        Ok(())
    }

    fn region_at(&self, payload: &[u8]) -> Result<Region, i32> {
        let index = u32_at(payload, 8).filter(|&index| index < Region::COUNT);
        index.map(Region).ok_or(EINVAL)
    }

    fn refused(&self, what: &str, error: &retrovf_pci::Error) -> i32 {
        log::debug!("{}: {what} refused: {error}", self.device.member.bdf());
        error.errno()
    }
}
