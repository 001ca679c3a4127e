use std::sync::Arc;

use crate::{Error, Function, Region, Result};

/// A window of device registers in a BAR: little-endian reads and writes of natural size.
///
/// Register accesses go through [`Function::region_read`] and `region_write`; only the notify word
/// is worth a mapping (see [`Function::notify_target`]).
#[derive(Clone)]
pub struct Registers {
    function: Arc<dyn Function>,
    region: Region,
    base: u64,
    len: u64,
}

impl Registers {
    /// Checks that the window lies inside the region.
    pub fn new(function: Arc<dyn Function>, region: Region, base: u64, len: u64) -> Result<Self> {
        let size = function.region(region)?.size;
        if base.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::OutOfRange {
                bdf: function.bdf(),
                region,
                offset: base,
                len,
                size,
            });
        }
        Ok(Self {
            function,
            region,
            base,
            len,
        })
    }

    /// Bytes of the window.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a window without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `out.len()` bytes at `offset` as one access.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = self.check(offset, out.len() as u64)?;
        self.function.region_read(self.region, at, out)
    }

    /// Writes `data` at `offset` as one access.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let at = self.check(offset, data.len() as u64)?;
        self.function.region_write(self.region, at, data)
    }

    /// Reads 8 bits.
    pub fn read8(&self, offset: u64) -> Result<u8> {
        self.read_array::<1>(offset).map(u8::from_le_bytes)
    }

    /// Reads 16 bits.
    pub fn read16(&self, offset: u64) -> Result<u16> {
        self.read_array::<2>(offset).map(u16::from_le_bytes)
    }

    /// Reads 32 bits.
    pub fn read32(&self, offset: u64) -> Result<u32> {
        self.read_array::<4>(offset).map(u32::from_le_bytes)
    }

    /// Writes 8 bits.
    pub fn write8(&self, offset: u64, value: u8) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes 16 bits.
    pub fn write16(&self, offset: u64, value: u16) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes 32 bits.
    pub fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes 64 bits as two 32-bit accesses, low half first, as virtio asks ("Driver Requirements:
    /// PCI Device Layout").
    pub fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.write32(offset, value as u32)?;
        self.write32(offset + 4, (value >> 32) as u32)
    }

    fn read_array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn check(&self, offset: u64, len: u64) -> Result<u64> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let bdf = self.function.bdf();
            let region = self.region;
            return Err(Error::OutOfRange {
                bdf,
                region,
                offset,
                len,
                size: self.len,
            });
        }
        Ok(self.base + offset)
    }
}
