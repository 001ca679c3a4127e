//! The server of rust-vmm, with a device that is only a notify word.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use vfio_bindings::bindings::vfio::{
    vfio_region_info, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};

use crate::round_trip::WORD;
use crate::Result;

struct Word;

impl ServerBackend for Word {
    fn region_read(&mut self, _: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if let (0, 16, &[low, high]) = (region, offset, data) {
            let queue = u16::from_le_bytes([low, high]);
            WORD.store(queue, Ordering::Release);
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        _: u64,
        _: u64,
        _: u64,
        _: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

/// Listens; the function that comes back serves one client to its end.
pub(crate) fn server(path: &Path) -> Result<impl FnOnce() + Send + 'static> {
    let region = |index, size| ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            index,
            cap_offset: 0,
            size,
            offset: 0,
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let regions = (0..=VFIO_PCI_CONFIG_REGION_INDEX)
        .map(|index| match index {
            VFIO_PCI_BAR0_REGION_INDEX => region(index, 32),
            VFIO_PCI_CONFIG_REGION_INDEX => region(index, 256),
            _ => region(index, 0),
        })
        .collect();
    let server = Server::new(path, true, Vec::new(), regions)?;
    Ok(move || {
        // Ends when the client has left, which the server reports as a failure to read.
        let _ = server.run(&mut Word);
    })
}
