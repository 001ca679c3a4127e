//! A PCI function that this process holds.

use std::sync::Arc;

use napi::bindgen_prelude::{AsyncTask, Buffer};
use napi_derive::napi;
use retrovf_pci::{Function, IrqIndex, Region, RegionInfo};

use crate::failure::{Failure, Result, Throw};
use crate::job::{promise, Job};

/// As much as one call may move: more than any BAR register block, far from a way to exhaust memory.
const MAX_ACCESS: u32 = 1 << 20;

pub fn buffer_of(length: u32) -> std::result::Result<Vec<u8>, Failure> {
    if length > MAX_ACCESS {
        return Err(Failure::invalid(format!(
            "An access of {length} bytes exceeds {MAX_ACCESS}"
        )));
    }
    Ok(vec![0; length as usize])
}

/// A JavaScript number as an offset or address.
pub fn whole(number: f64, what: &str) -> std::result::Result<u64, Failure> {
    // 2^53: what a JavaScript number holds exactly.
    if number.fract() != 0.0 || !(0.0..=9_007_199_254_740_992.0).contains(&number) {
        return Err(Failure::invalid(format!(
            "{what} {number} is not a whole number >= 0"
        )));
    }
    Ok(number as u64)
}

#[napi(object)]
pub struct NativeRegionInfo {
    pub size: f64,
    pub readable: bool,
    pub writable: bool,
}

impl From<RegionInfo> for NativeRegionInfo {
    fn from(info: RegionInfo) -> Self {
        Self {
            size: info.size as f64,
            readable: info.readable,
            writable: info.writable,
        }
    }
}

#[napi]
pub struct PciFunction {
    bdf: String,
    function: Option<Arc<dyn Function>>,
}

impl PciFunction {
    pub fn new(function: Arc<dyn Function>) -> Self {
        Self {
            bdf: function.bdf().to_string(),
            function: Some(function),
        }
    }

    pub fn get(&self) -> std::result::Result<&Arc<dyn Function>, Failure> {
        self.function
            .as_ref()
            .ok_or_else(|| Failure::closed(&self.bdf))
    }
}

#[napi]
impl PciFunction {
    #[napi(getter)]
    pub fn bdf(&self) -> String {
        self.bdf.clone()
    }

    #[napi(getter)]
    pub fn config_size(&self) -> Result<u32> {
        let function = self.get().or_throw()?;
        Ok(function.config_size() as u32)
    }

    #[napi]
    pub fn config_read(&self, offset: u32, length: u32) -> Result<Buffer> {
        let mut out = buffer_of(length).or_throw()?;
        self.get()
            .or_throw()?
            .config_read(offset as usize, &mut out)
            .or_throw()?;
        Ok(out.into())
    }

    #[napi]
    pub fn config_write(&self, offset: u32, data: Buffer) -> Result<()> {
        self.get()
            .or_throw()?
            .config_write(offset as usize, &data)
            .or_throw()
    }

    #[napi]
    pub fn region(&self, index: u32) -> Result<NativeRegionInfo> {
        self.get()
            .or_throw()?
            .region(Region(index))
            .map(Into::into)
            .or_throw()
    }

    #[napi]
    pub fn region_read(&self, index: u32, offset: f64, length: u32) -> Result<Buffer> {
        let offset = whole(offset, "Offset").or_throw()?;
        let mut out = buffer_of(length).or_throw()?;
        self.get()
            .or_throw()?
            .region_read(Region(index), offset, &mut out)
            .or_throw()?;
        Ok(out.into())
    }

    #[napi]
    pub fn region_write(&self, index: u32, offset: f64, data: Buffer) -> Result<()> {
        let offset = whole(offset, "Offset").or_throw()?;
        self.get()
            .or_throw()?
            .region_write(Region(index), offset, &data)
            .or_throw()
    }

    #[napi]
    pub fn irq_count(&self, index: u32) -> Result<u32> {
        Ok(self.get().or_throw()?.irq(IrqIndex(index)).count)
    }

    #[napi]
    pub fn reset(&self) -> Result<AsyncTask<Job<()>>> {
        let function = Arc::clone(self.get().or_throw()?);
        Ok(promise(move || function.reset()))
    }

    #[napi]
    pub fn close(&mut self) {
        self.function = None;
    }
}
