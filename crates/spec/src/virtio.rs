//! Modern virtio over PCI: ids, vendor capabilities, the common configuration structure, features,
//! split rings.

/// PCI vendor id of virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// A modern function's PCI device id is this plus the virtio device id.
pub const MODERN_ID_BASE: u16 = 0x1040;
/// Virtio device id: network.
pub const ID_NET: u16 = 1;

/// Vendor capability: common configuration structure.
pub const CFG_COMMON: u8 = 1;
/// Vendor capability: notifications.
pub const CFG_NOTIFY: u8 = 2;
/// Vendor capability: ISR status.
pub const CFG_ISR: u8 = 3;
/// Vendor capability: device configuration.
pub const CFG_DEVICE: u8 = 4;
/// Vendor capability: access window in configuration space.
pub const CFG_PCI: u8 = 5;

/// Offsets inside a virtio vendor capability.
pub mod cap {
    /// Capability length, 8 bits.
    pub const LEN: usize = 2;
    /// Structure kind, 8 bits.
    pub const CFG_TYPE: usize = 3;
    /// BAR number, 8 bits.
    pub const BAR: usize = 4;
    /// Offset within the BAR, 32 bits.
    pub const OFFSET: usize = 8;
    /// Length of the structure, 32 bits.
    pub const LENGTH: usize = 12;
    /// Notify capability only: notify_off multiplier, 32 bits.
    pub const NOTIFY_MULTIPLIER: usize = 16;
    /// PCI access capability only: data window, 32 bits.
    pub const PCI_DATA: usize = 16;
    /// Length of a plain capability.
    pub const SIZE: usize = 16;
    /// Length of the notify and PCI access capabilities.
    pub const SIZE_LONG: usize = 20;
}

/// Offsets inside the common configuration structure (virtio 1.4, "Common configuration structure
/// layout").
pub mod common {
    /// Which 32 feature bits `DEVICE_FEATURE` shows, 32 bits.
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    /// Offered features, 32 bits, read only.
    pub const DEVICE_FEATURE: u64 = 4;
    /// Which 32 feature bits `DRIVER_FEATURE` shows, 32 bits.
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    /// Accepted features, 32 bits.
    pub const DRIVER_FEATURE: u64 = 12;
    /// MSI-X vector for configuration changes, 16 bits.
    pub const CONFIG_MSIX_VECTOR: u64 = 16;
    /// Number of virtqueues without the admin queues, 16 bits, read only.
    pub const NUM_QUEUES: u64 = 18;
    /// Device status, 8 bits.
    pub const DEVICE_STATUS: u64 = 20;
    /// Changes whenever the device configuration may have, 8 bits, read only.
    pub const CONFIG_GENERATION: u64 = 21;
    /// Selects the queue of the fields below, 16 bits.
    pub const QUEUE_SELECT: u64 = 22;
    /// Queue size, 16 bits.
    pub const QUEUE_SIZE: u64 = 24;
    /// MSI-X vector of the queue, 16 bits.
    pub const QUEUE_MSIX_VECTOR: u64 = 26;
    /// Queue enable, 16 bits.
    pub const QUEUE_ENABLE: u64 = 28;
    /// Offset of the queue's notify word in units of the multiplier, 16 bits, read only.
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    /// Descriptor area, 64 bits.
    pub const QUEUE_DESC: u64 = 32;
    /// Driver area, 64 bits.
    pub const QUEUE_DRIVER: u64 = 40;
    /// Device area, 64 bits.
    pub const QUEUE_DEVICE: u64 = 48;
    /// Data to notify with under NOTIF_CONFIG_DATA, 16 bits, read only.
    pub const QUEUE_NOTIF_CONFIG_DATA: u64 = 56;
    /// Queue reset, 16 bits.
    pub const QUEUE_RESET: u64 = 58;
    /// First admin queue, 16 bits, read only, valid with ADMIN_VQ.
    pub const ADMIN_QUEUE_INDEX: u64 = 60;
    /// Number of admin queues, 16 bits, read only, valid with ADMIN_VQ.
    pub const ADMIN_QUEUE_NUM: u64 = 62;
    /// Length of the structure with the admin queue fields.
    pub const SIZE: u64 = 64;
}

/// Device status bits.
pub mod status {
    /// The guest found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device met an error it cannot recover from.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// Feature bit numbers.
pub mod feature {
    /// Net: device has a MAC address.
    pub const NET_MAC: u32 = 5;
    /// Net: driver can merge receive buffers.
    pub const NET_MRG_RXBUF: u32 = 15;
    /// Net: the configuration has a link status.
    pub const NET_STATUS: u32 = 16;
    /// Net: control queue.
    pub const NET_CTRL_VQ: u32 = 17;
    /// Net: control queue takes receive mode commands.
    pub const NET_CTRL_RX: u32 = 18;
    /// Net: several queue pairs.
    pub const NET_MQ: u32 = 22;
    /// Net: MAC address set through the control queue.
    pub const NET_CTRL_MAC_ADDR: u32 = 23;
    /// Legacy only: interrupt when the queue runs empty, whatever the flags.
    pub const NOTIFY_ON_EMPTY: u32 = 24;
    /// Any descriptor layout is accepted.
    pub const ANY_LAYOUT: u32 = 27;
    /// Indirect descriptors.
    pub const RING_INDIRECT_DESC: u32 = 28;
    /// used_event and avail_event.
    pub const RING_EVENT_IDX: u32 = 29;
    /// Conforms to virtio 1.0 and later.
    pub const VERSION_1: u32 = 32;
    /// DMA goes through the platform's translation.
    pub const ACCESS_PLATFORM: u32 = 33;
    /// The device supports single root I/O virtualisation.
    pub const SR_IOV: u32 = 37;
    /// Notifications carry more than the queue index.
    pub const NOTIFICATION_DATA: u32 = 38;
    /// Queues can be reset one by one.
    pub const RING_RESET: u32 = 40;
    /// The device has administration virtqueues.
    pub const ADMIN_VQ: u32 = 41;
}

/// Split virtqueue layout.
pub mod ring {
    /// Bytes of a descriptor: address u64, length u32, flags u16, next u16.
    pub const DESC_SIZE: u64 = 16;
    /// Descriptor flag: continues at `next`.
    pub const DESC_F_NEXT: u16 = 1;
    /// Descriptor flag: the device writes it.
    pub const DESC_F_WRITE: u16 = 2;
    /// Descriptor flag: it holds a table of descriptors.
    pub const DESC_F_INDIRECT: u16 = 4;
    /// Available ring flag: the driver wants no interrupt.
    pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
    /// Used ring flag: the device wants no notification.
    pub const USED_F_NO_NOTIFY: u16 = 1;
    /// Bytes of a used ring element: id u32, length u32.
    pub const USED_ELEM_SIZE: u64 = 8;
    /// Largest queue size.
    pub const MAX_SIZE: u16 = 32768;
}

/// MSI-X vector register: no vector.
pub const NO_VECTOR: u16 = 0xffff;
/// ISR: a queue used buffers.
pub const ISR_QUEUE: u8 = 1;
/// ISR: the device configuration changed.
pub const ISR_CONFIG: u8 = 2;
