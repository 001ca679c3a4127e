//! A function whose notifications go elsewhere: to a word of memory, or to whom counts them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use napi_derive::napi;
use retrovf_addon::PciFunction;
use retrovf_pci::{
    Bdf, DmaMapping, Function, IrqIndex, IrqInfo, IrqRequest, MappedWord, NotifyTarget, Region,
    RegionInfo, Result, SharedMemory,
};

/// Makes a file of so many pages that another process of this user can map, until this one ends, and
/// returns its path.
#[napi]
pub fn shared_pages(count: u32) -> napi::Result<String> {
    let size = count as usize * rustix::param::page_size();
    let memory = SharedMemory::anonymous(size);
    let memory = memory.map_err(|error| napi::Error::from_reason(error.to_string()))?;
    let fd = memory.fd().as_raw_fd();
    std::mem::forget(memory);
    Ok(format!("/proc/{}/fd/{fd}", std::process::id()))
}

struct WithTarget {
    inner: Arc<dyn Function>,
    target: NotifyTarget,
}

/// The function, but that its notifications go to `target`.
pub(crate) fn with_target(
    function: &PciFunction,
    target: NotifyTarget,
) -> napi::Result<PciFunction> {
    let inner = function
        .get()
        .map_err(|_| napi::Error::from_reason("the function is closed"))?;
    let inner = Arc::clone(inner);
    Ok(PciFunction::new(Arc::new(WithTarget { inner, target })))
}

/// The function, but that its notifications are stores to a mapped page: one of its own, or one of
/// a file, where another process can watch it.
#[napi]
pub fn with_word(
    function: &PciFunction,
    file: Option<String>,
    page: Option<u32>,
) -> napi::Result<PciFunction> {
    let reason = |error: &dyn std::fmt::Display| napi::Error::from_reason(error.to_string());
    let size = rustix::param::page_size();
    let word = match file {
        Some(path) => {
            let file = File::options().read(true).write(true).open(path);
            let file = file.map_err(|error| reason(&error))?;
            MappedWord::map(&file, u64::from(page.unwrap_or(0)) * size as u64)
        }
        None => SharedMemory::anonymous(size).and_then(|memory| MappedWord::map(memory.fd(), 0)),
    };
    let word = word.map_err(|error| reason(&error))?;
    with_target(function, NotifyTarget::word(Arc::new(word)))
}

impl Function for WithTarget {
    fn bdf(&self) -> Bdf {
        self.inner.bdf()
    }
    fn config_size(&self) -> usize {
        self.inner.config_size()
    }
    fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.inner.config_read(offset, out)
    }
    fn config_write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.inner.config_write(offset, data)
    }
    fn region(&self, region: Region) -> Result<RegionInfo> {
        self.inner.region(region)
    }
    fn region_read(&self, region: Region, offset: u64, out: &mut [u8]) -> Result<()> {
        self.inner.region_read(region, offset, out)
    }
    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        self.inner.region_write(region, offset, data)
    }
    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.inner.irq(index)
    }
    fn set_irqs(&self, request: IrqRequest) -> Result<()> {
        self.inner.set_irqs(request)
    }
    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> Result<()> {
        self.inner.dma_map(iova, mapping)
    }
    fn dma_unmap(&self, iova: u64, size: u64) -> Result<u64> {
        self.inner.dma_unmap(iova, size)
    }
    fn dma_unmap_all(&self) -> Result<()> {
        self.inner.dma_unmap_all()
    }
    fn reset(&self) -> Result<()> {
        self.inner.reset()
    }
    fn notify_target(&self, _: Region, _: u64) -> Result<NotifyTarget> {
        Ok(self.target.clone())
    }
}
