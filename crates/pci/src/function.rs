use std::fmt;

use crate::{Bdf, DmaMapping, IrqIndex, IrqInfo, IrqRequest, NotifyTarget, Result};

/// A region of a function, numbered as VFIO does: BARs 0 to 5, the ROM 6, configuration space 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(pub u32);

impl Region {
    /// Expansion ROM.
    pub const ROM: Self = Self(6);
    /// Configuration space.
    pub const CONFIG: Self = Self(7);
    /// Number of regions of a PCI function, the VGA region (8) included.
    pub const COUNT: u32 = 9;

    /// The region of a base address register.
    pub const fn bar(index: u8) -> Self {
        Self(index as u32)
    }

    /// True for BARs 0 to 5.
    pub const fn is_bar(self) -> bool {
        self.0 < 6
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..=5 => write!(f, "BAR{}", self.0),
            6 => f.write_str("ROM"),
            7 => f.write_str("configuration space"),
            n => write!(f, "region {n}"),
        }
    }
}

/// What a region is; `size` 0 means absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes.
    pub size: u64,
    /// Can be read.
    pub readable: bool,
    /// Can be written.
    pub writable: bool,
}

/// A PCI function that this process owns.
///
/// All methods may be called from any thread. None waits for another function; register accesses
/// take what one access to the device takes, [`Function::reset`] may take 100 ms and more.
pub trait Function: Send + Sync + 'static {
    /// Where the function is.
    fn bdf(&self) -> Bdf;

    /// Bytes of configuration space: 256 or 4096.
    fn config_size(&self) -> usize;

    /// Reads configuration space as `vfio-pci` shows it: BARs, COMMAND of a VF and the MSI-X enable
    /// bit are virtual. Any offset and length inside the space.
    fn config_read(&self, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Writes configuration space; read-only bits are ignored. Bus mastering takes effect here;
    /// interrupts are enabled by [`Function::set_irqs`] alone.
    fn config_write(&self, offset: usize, data: &[u8]) -> Result<()>;

    /// Describes a region.
    fn region(&self, region: Region) -> Result<RegionInfo>;

    /// Reads a BAR or the ROM.
    fn region_read(&self, region: Region, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Writes a BAR.
    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()>;

    /// Describes an interrupt index.
    fn irq(&self, index: IrqIndex) -> IrqInfo;

    /// Installs, removes, masks or fires interrupts, with the meaning of `VFIO_DEVICE_SET_IRQS`.
    fn set_irqs(&self, request: IrqRequest) -> Result<()>;

    /// Gives the device access to memory at `iova`.
    fn dma_map(&self, iova: u64, mapping: DmaMapping) -> Result<()>;

    /// Takes every mapping that lies within the range away and returns the bytes removed. On return
    /// the device no longer touches them. A range that holds no mapping is no error.
    fn dma_unmap(&self, iova: u64, size: u64) -> Result<u64>;

    /// Takes all mappings away.
    fn dma_unmap_all(&self) -> Result<()>;

    /// Function level reset. Device state, bus mastering and MSI-X enable are lost; BAR addresses,
    /// DMA mappings and installed eventfds stay.
    fn reset(&self) -> Result<()>;

    /// Where the queue notifications that the device wants at `offset` of a BAR go. Checks that two
    /// bytes, 2-byte aligned, lie inside the BAR.
    fn notify_target(&self, region: Region, offset: u64) -> Result<NotifyTarget>;
}
