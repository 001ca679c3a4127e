use std::os::fd::{BorrowedFd, OwnedFd};

use retrovf_pci::DmaAccess;

use super::types::{ClientIrqInfo, ClientRegionInfo, DeviceInfo, IoFd};
use super::{Client, Result};
use crate::wire::*;
use crate::ClientError;

/// The commands of the protocol.
impl Client {
    /// GET_INFO.
    pub fn device_info(&mut self) -> Result<DeviceInfo> {
        let [_, flags, regions, irqs] = self.ask_words(Command::GET_INFO, [16, 0, 0, 0])?;
        Ok(DeviceInfo {
            flags,
            regions,
            irqs,
        })
    }

    /// GET_REGION_INFO.
    pub fn region_info(&mut self, region: u32) -> Result<ClientRegionInfo> {
        let request = [32, 0, region, 0, 0, 0, 0, 0];
        let [_, flags, _, _, low, high, ..] = self.ask_words(Command::REGION_INFO, request)?;
        let size = u64::from(high) << 32 | u64::from(low);
        Ok(ClientRegionInfo { flags, size })
    }

    /// GET_IRQ_INFO.
    pub fn irq_info(&mut self, index: u32) -> Result<ClientIrqInfo> {
        let [_, flags, _, count] = self.ask_words(Command::IRQ_INFO, [16, 0, index, 0])?;
        Ok(ClientIrqInfo { flags, count })
    }

    /// DMA_MAP: a range of a file, or memory that is reached by messages.
    pub fn dma_map(
        &mut self,
        address: u64,
        size: u64,
        access: DmaAccess,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<()> {
        let mut flags = 0;
        flags |= if access.read { DMA_READABLE } else { 0 };
        flags |= if access.write { DMA_WRITABLE } else { 0 };
        let offset = file.map_or(0, |(_, offset)| offset);
        let mut request: Vec<u8> = words([32, flags]).collect();
        request.extend(
            [offset, address, size]
                .into_iter()
                .flat_map(u64::to_ne_bytes),
        );
        let fd = file.map(|(fd, _)| fd);
        self.call(Command::DMA_MAP, &request, fd.as_slice())
            .map(drop)
    }

    /// DMA_UNMAP; returns the size that the server answers with.
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> Result<u64> {
        self.unmap(0, address, size)
    }

    /// DMA_UNMAP of everything.
    pub fn unmap_all(&mut self) -> Result<()> {
        self.unmap(UNMAP_ALL, 0, 0).map(drop)
    }

    /// REGION_READ, at most 1 MiB.
    pub fn region_read(&mut self, region: u32, offset: u64, out: &mut [u8]) -> Result<()> {
        let access = region_access(region, offset, out.len())?;
        let header = self.header(Command::REGION_READ, ACCESS_SIZE);
        self.transmit(&access.message(&header), &[])?;
        let reply = self.answer(&header)?;
        let payload = self.receiver.bytes(&reply.payload);
        match payload.get(ACCESS_SIZE..) {
            Some(data) if data.len() == out.len() => {
                out.copy_from_slice(data);
                Ok(())
            }
            _ => Err(ClientError::protocol(
                "a read was answered with another length",
            )),
        }
    }

    /// REGION_WRITE, at most 1 MiB.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let header = self.send_write(region, offset, data, 0)?;
        self.answer(&header).map(drop)
    }

    /// REGION_WRITE that wants no reply, as QEMU's writes to memory BARs.
    pub fn region_write_posted(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.send_write(region, offset, data, NO_REPLY).map(drop)
    }

    /// Sends vectors `start..` to eventfds; `None` detaches. In runs, as QEMU does.
    pub fn set_irqs_eventfds(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<()> {
        let most = self.version.max_msg_fds.clamp(1, MAX_FDS);
        let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
        let mut at = start;
        for run in eventfds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let attach = run.first().is_some_and(Option::is_some);
            for part in run.chunks(if attach { most } else { run.len() }) {
                let fds: Vec<_> = part.iter().copied().flatten().collect();
                let count = u32::try_from(part.len()).unwrap_or(u32::MAX);
                self.set_irqs(flags, index, at, count, &[], &fds)?;
                at = at.saturating_add(count);
            }
        }
        Ok(())
    }

    /// Disables all vectors of an index.
    pub fn set_irqs_disable(&mut self, index: u32) -> Result<()> {
        let flags = IRQ_DATA_NONE | IRQ_ACTION_TRIGGER;
        self.set_irqs(flags, index, 0, 0, &[], &[])
    }

    /// SET_IRQS, whatever it says.
    pub fn set_irqs(
        &mut self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let head = words([SET_IRQS_SIZE as u32, flags, index, start, count]);
        let request: Vec<u8> = head.chain(data.iter().copied()).collect();
        self.call(Command::SET_IRQS, &request, fds).map(drop)
    }

    /// DEVICE_RESET.
    pub fn reset(&mut self) -> Result<()> {
        self.call(Command::RESET, &[], &[]).map(drop)
    }

    /// GET_REGION_IO_FDS.
    pub fn region_io_fds(&mut self, region: u32) -> Result<Vec<(IoFd, OwnedFd)>> {
        let most = (MAX_MESSAGE - HEADER_SIZE) as u32;
        let request: Vec<u8> = words([most, 0, region, 0]).collect();
        let reply = self.call(Command::REGION_IO_FDS, &request, &[])?;
        let payload = self.receiver.bytes(&reply.payload);
        let count = u32_at(payload, 12).unwrap_or(0) as usize;
        let entries = payload.get(16..).unwrap_or_default();
        if entries.len() != count.saturating_mul(IO_FD_SIZE) {
            return Err(ClientError::protocol(
                "the I/O descriptors have another count",
            ));
        }
        let entries = entries.chunks_exact(IO_FD_SIZE).map(|entry| {
            let fd = u32_at(entry, 16).and_then(|index| reply.fds.get(index as usize))?;
            let info = IoFd {
                offset: u64_at(entry, 0)?,
                size: u64_at(entry, 8)?,
                kind: u32_at(entry, 20)?,
                flags: u32_at(entry, 24)?,
                datamatch: u64_at(entry, 32)?,
            };
            Some((info, fd))
        });
        let entries: Option<Vec<_>> = entries.collect();
        let entries =
            entries.ok_or_else(|| ClientError::protocol("an I/O descriptor is missing"))?;
        let owned = entries
            .into_iter()
            .map(|(info, fd)| Ok((info, fd.try_clone()?)));
        owned
            .collect::<std::io::Result<_>>()
            .map_err(ClientError::io("Duplicating an I/O descriptor"))
    }

    fn unmap(&mut self, flags: u32, address: u64, size: u64) -> Result<u64> {
        let mut request: Vec<u8> = words([24, flags]).collect();
        request.extend([address, size].into_iter().flat_map(u64::to_ne_bytes));
        let reply = self.call(Command::DMA_UNMAP, &request, &[])?;
        u64_at(self.receiver.bytes(&reply.payload), 16)
            .ok_or_else(|| ClientError::protocol("the reply to DMA_UNMAP is short"))
    }

    fn send_write(&mut self, region: u32, offset: u64, data: &[u8], flags: u32) -> Result<Header> {
        let access = region_access(region, offset, data.len())?;
        let mut header = self.header(Command::REGION_WRITE, ACCESS_SIZE + data.len());
        header.flags |= flags;
        let head = access.message(&header);
        let mut small = [0; HEADER_SIZE + ACCESS_SIZE + 8];
        let (front, back) = small.split_at_mut(head.len());
        front.copy_from_slice(&head);
        match back.get_mut(..data.len()) {
            Some(back) => {
                back.copy_from_slice(data);
                let whole = head.len() + data.len();
                self.transmit(small.get(..whole).unwrap_or_default(), &[])?;
            }
            None => self.transmit(&[&head, data].concat(), &[])?,
        }
        Ok(header)
    }

    fn ask_words<const N: usize>(
        &mut self,
        command: Command,
        request: [u32; N],
    ) -> Result<[u32; N]> {
        let request: Vec<u8> = words(request).collect();
        let reply = self.call(command, &request, &[])?;
        let payload = self.receiver.bytes(&reply.payload);
        let mut answer = [0; N];
        for (i, word) in answer.iter_mut().enumerate() {
            *word = u32_at(payload, 4 * i)
                .ok_or_else(|| ClientError::protocol(format!("the reply to {command} is short")))?;
        }
        Ok(answer)
    }
}

fn region_access(region: u32, offset: u64, len: usize) -> Result<RegionAccess> {
    let count = u32::try_from(len).ok().filter(|_| len <= MAX_DATA);
    let count = count.ok_or_else(|| ClientError::Io {
        what: "A region access is limited to 1 MiB",
        source: std::io::ErrorKind::InvalidInput.into(),
    })?;
    Ok(RegionAccess {
        offset,
        region,
        count,
    })
}
