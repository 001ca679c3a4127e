//! The legacy (virtio 0.9.5) register block: I/O BAR0 of a transitional device.

/// Device features, 32 bits, read only.
pub const DEVICE_FEATURES: u64 = 0x00;
/// Guest features, 32 bits.
pub const GUEST_FEATURES: u64 = 0x04;
/// Queue address in units of 4096 bytes, 32 bits, of the selected queue.
pub const QUEUE_PFN: u64 = 0x08;
/// Queue size, 16 bits, read only, of the selected queue.
pub const QUEUE_SIZE: u64 = 0x0c;
/// Queue select, 16 bits.
pub const QUEUE_SELECT: u64 = 0x0e;
/// Queue notify, 16 bits.
pub const QUEUE_NOTIFY: u64 = 0x10;
/// Device status, 8 bits; writing 0 resets.
pub const STATUS: u64 = 0x12;
/// ISR status, 8 bits; reading clears.
pub const ISR: u64 = 0x13;
/// Configuration change vector, 16 bits, while MSI-X is enabled.
pub const CONFIG_VECTOR: u64 = 0x14;
/// Queue vector, 16 bits, of the selected queue, while MSI-X is enabled.
pub const QUEUE_VECTOR: u64 = 0x16;
/// Start of the device configuration while MSI-X is disabled.
pub const CONFIG_BASE: u64 = 20;
/// Start of the device configuration while MSI-X is enabled.
pub const CONFIG_BASE_MSIX: u64 = 24;
/// Shift of the queue address register.
pub const PFN_SHIFT: u32 = 12;
/// Alignment of the used ring.
pub const RING_ALIGN: u64 = 4096;
/// Largest I/O BAR that PCI allows.
pub const IO_BAR_MAX: u64 = 256;

/// The registers of the common part: (offset, width). With MSI-X all, else all but the vectors.
pub const FIELDS: [(u64, u64); 10] = [
    (DEVICE_FEATURES, 4),
    (GUEST_FEATURES, 4),
    (QUEUE_PFN, 4),
    (QUEUE_SIZE, 2),
    (QUEUE_SELECT, 2),
    (QUEUE_NOTIFY, 2),
    (STATUS, 1),
    (ISR, 1),
    (CONFIG_VECTOR, 2),
    (QUEUE_VECTOR, 2),
];

/// Offsets of the available and used rings behind the descriptors, and the whole length, of a
/// legacy ring of `size` entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Bytes to reserve.
    pub total: u64,
}

/// Lays out a legacy ring (virtio 1.4, "Legacy Interfaces: A Note on Virtqueue Layout").
pub const fn ring_layout(size: u16) -> RingLayout {
    let n = size as u64;
    let avail = 16 * n;
    let used = align(avail + 6 + 2 * n);
    RingLayout {
        avail,
        used,
        total: used + align(6 + 8 * n),
    }
}

const fn align(n: u64) -> u64 {
    n.next_multiple_of(RING_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_layout_matches_the_table_of_the_specification() {
        for (size, used, total) in [
            (64, 4096, 8192),
            (128, 4096, 8192),
            (256, 8192, 12288),
            (512, 12288, 20480),
        ] {
            let layout = ring_layout(size);
            assert_eq!((layout.used, layout.total), (used, total), "size {size}");
        }
    }

    #[test]
    fn fields_are_adjacent_and_end_at_the_msix_base() {
        let mut at = 0;
        for (offset, width) in FIELDS {
            assert_eq!(offset, at);
            at += width;
        }
        assert_eq!(at, CONFIG_BASE_MSIX);
    }
}
