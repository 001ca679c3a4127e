//! Where things are in the BARs. PF and VFs share the layout, as SR-IOV functions like to.

use crate::config::Geometry;

/// Memory BAR with the MSI-X table and pending bits.
pub(crate) const MSIX_BAR: u8 = 1;
/// 64-bit memory BAR (4 and 5) with the virtio structures.
pub(crate) const VIRTIO_BAR: u8 = 4;
/// Bytes of the virtio BAR.
pub(crate) const VIRTIO_BAR_SIZE: u64 = 0x8000;

/// Common configuration structure.
pub(crate) const COMMON: u64 = 0x0000;
/// ISR status.
pub(crate) const ISR: u64 = 0x1000;
/// Device configuration.
pub(crate) const DEVICE: u64 = 0x2000;
/// Notifications: a word for each queue. The value written says which queue; the address doesn't
/// matter.
pub(crate) const NOTIFY: u64 = 0x3000;
/// Distance of the notify words.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;
/// Notify words that LEGACY_NOTIFY_INFO names, on a page of their own so that a VMM can map the rest
/// of the BAR: one on a VF, one for each VF on the PF.
pub(crate) const LEGACY_NOTIFY: u64 = 0x4000;
/// Distance of the PF's legacy notify words.
pub(crate) const LEGACY_NOTIFY_STRIDE: u64 = 4;

pub(crate) fn notify_len(geometry: Geometry) -> u64 {
    u64::from(geometry.all_queues()) * u64::from(NOTIFY_MULTIPLIER)
}

/// Bytes of the MSI-X table; the pending bits follow it.
pub(crate) fn msix_table_len(geometry: Geometry) -> u64 {
    u64::from(geometry.vectors) * retrovf_spec::pci::MSIX_ENTRY_SIZE
}

/// Offset of the pending bits.
pub(crate) fn msix_pba(geometry: Geometry) -> u64 {
    msix_table_len(geometry).next_multiple_of(8)
}

/// Bytes of the MSI-X BAR; 0 without the capability.
pub(crate) fn msix_bar_size(geometry: Geometry) -> u64 {
    if geometry.vectors == 0 {
        return 0;
    }
    let pending = u64::from(geometry.vectors).div_ceil(64) * 8;
    (msix_pba(geometry) + pending).next_power_of_two().max(4096)
}

/// Offset of the word in the PF's virtio BAR that notifies queues of VF `member`, from 1.
pub(crate) fn owner_notify(member: u16) -> u64 {
    LEGACY_NOTIFY + LEGACY_NOTIFY_STRIDE * u64::from(member.saturating_sub(1))
}
