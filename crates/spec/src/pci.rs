//! PCI configuration space: header offsets, command bits, capability ids.

/// Offset of the 16-bit vendor id.
pub const VENDOR_ID: usize = 0x00;
/// Offset of the 16-bit device id.
pub const DEVICE_ID: usize = 0x02;
/// Offset of the 16-bit command register.
pub const COMMAND: usize = 0x04;
/// Offset of the 16-bit status register.
pub const STATUS: usize = 0x06;
/// Offset of the 8-bit revision id.
pub const REVISION_ID: usize = 0x08;
/// Offset of the 24-bit class code (programming interface first).
pub const CLASS_CODE: usize = 0x09;
/// Offset of the 8-bit header type.
pub const HEADER_TYPE: usize = 0x0e;
/// Offset of base address register 0; register n is at `BAR0 + 4 * n`.
pub const BAR0: usize = 0x10;
/// Offset of the 16-bit subsystem vendor id.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Offset of the 16-bit subsystem id.
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Offset of the 8-bit pointer to the first capability.
pub const CAPABILITY_LIST: usize = 0x34;
/// Offset of the 8-bit interrupt line.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Offset of the 8-bit interrupt pin: 0 none, 1 to 4 for INTA to INTD.
pub const INTERRUPT_PIN: usize = 0x3d;

/// Command: the function decodes I/O space.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: the function decodes memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may master the bus (DMA and MSI).
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is disabled.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Status: a capability list is present.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR: the register describes I/O space.
pub const BAR_IO: u32 = 1;
/// BAR: a 64-bit memory register (bits 2..1 = 10b).
pub const BAR_MEMORY_64: u32 = 0b100;

/// Capability id: power management.
pub const CAP_POWER: u8 = 0x01;
/// Power management control and status, relative to the capability.
pub const POWER_CONTROL: usize = 4;
/// Power management control: the power state, 0 for D0.
pub const POWER_CONTROL_STATE: u16 = 0b11;
/// Capability id: MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capability id: vendor specific (virtio's structures).
pub const CAP_VENDOR: u8 = 0x09;
/// Capability id: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Device control, from the express capability on.
pub const EXPRESS_DEVICE_CONTROL: usize = 8;
/// A write of it starts a function level reset.
pub const EXPRESS_DEVICE_CONTROL_FLR: u16 = 1 << 15;

/// MSI-X message control, relative to the capability: offset.
pub const MSIX_CONTROL: usize = 2;
/// MSI-X table offset and BAR, relative to the capability.
pub const MSIX_TABLE: usize = 4;
/// MSI-X pending bits offset and BAR, relative to the capability.
pub const MSIX_PBA: usize = 8;
/// MSI-X capability length.
pub const MSIX_CAP_LEN: usize = 12;
/// MSI-X message control: enable.
pub const MSIX_CONTROL_ENABLE: u16 = 1 << 15;
/// MSI-X message control: all vectors masked.
pub const MSIX_CONTROL_MASK_ALL: u16 = 1 << 14;
/// MSI-X message control: vectors minus one.
pub const MSIX_CONTROL_SIZE: u16 = 0x7ff;
/// Bytes of one MSI-X table entry.
pub const MSIX_ENTRY_SIZE: u64 = 16;

/// Extended capability id: single root I/O virtualisation.
pub const EXT_CAP_SRIOV: u16 = 0x0010;
/// Extended capability id: alternative routing id.
pub const EXT_CAP_ARI: u16 = 0x000e;
/// SR-IOV control, relative to the capability.
pub const SRIOV_CONTROL: usize = 0x08;
/// SR-IOV control: VF Enable.
pub const SRIOV_CONTROL_VF_ENABLE: u16 = 1 << 0;
/// SR-IOV control: VF memory space enable.
pub const SRIOV_CONTROL_VF_MSE: u16 = 1 << 3;
/// SR-IOV initial VFs (16 bits), relative to the capability.
pub const SRIOV_INITIAL_VFS: usize = 0x0c;
/// SR-IOV total VFs (16 bits), relative to the capability.
pub const SRIOV_TOTAL_VFS: usize = 0x0e;
/// SR-IOV NumVFs (16 bits), relative to the capability.
pub const SRIOV_NUM_VFS: usize = 0x10;
/// SR-IOV first VF offset (16 bits), relative to the capability.
pub const SRIOV_VF_OFFSET: usize = 0x14;
/// SR-IOV VF stride (16 bits), relative to the capability.
pub const SRIOV_VF_STRIDE: usize = 0x16;
/// SR-IOV VF device id (16 bits), relative to the capability.
pub const SRIOV_VF_DEVICE_ID: usize = 0x1a;
/// SR-IOV supported page sizes (32 bits), relative to the capability.
pub const SRIOV_SUPPORTED_PAGES: usize = 0x1c;
/// SR-IOV system page size (32 bits), relative to the capability.
pub const SRIOV_SYSTEM_PAGE: usize = 0x20;
/// SR-IOV VF BAR0 (32 bits), relative to the capability; VF BAR n at `+ 4 * n`.
pub const SRIOV_VF_BAR0: usize = 0x24;
/// SR-IOV capability length.
pub const SRIOV_CAP_LEN: usize = 0x40;

/// Bytes of conventional configuration space.
pub const CONFIG_SIZE: usize = 256;
/// Bytes of PCI Express configuration space.
pub const CONFIG_SIZE_EXPRESS: usize = 4096;
