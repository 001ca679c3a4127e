use retrovf_spec::{pci, virtio};

use crate::config::{Config, Geometry};
use crate::layout;

/// Configuration space as `vfio-pci` shows it: plain storage behind a mask of writable bits. BARs
/// are sized by writing ones, as everywhere; COMMAND.MASTER and the FLR bit are acted upon by the
/// caller, everything else is only remembered.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

/// What a write asks of the device.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigEffect {
    /// Bus mastering was changed to this.
    pub(crate) master: Option<bool>,
    /// Function level reset.
    pub(crate) reset: bool,
    /// The window of the PCI configuration access capability was written.
    pub(crate) window: bool,
}

/// An access through the PCI configuration access capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) bar: u8,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) data: [u8; 4],
}

const SUBSYSTEM: u16 = 0x40 + virtio::ID_NET;
const CLASS_ETHERNET: u8 = 2;

const EXPRESS: usize = 0x40;
const MSIX: usize = 0x80;
const COMMON: usize = 0x90;
const NOTIFY: usize = 0xa0;
const ISR: usize = 0xb4;
const DEVICE: usize = 0xc4;
const WINDOW: usize = 0xd4;
const SRIOV: usize = pci::CONFIG_SIZE;

/// Bytes of a PCI Express capability, version 2.
const EXPRESS_LEN: usize = 0x3c;
const _: () = assert!(EXPRESS + EXPRESS_LEN <= MSIX);
const EXPRESS_DEVCAP: usize = 4;
const EXPRESS_DEVCTL: usize = 8;
const DEVCAP_ROLE_ERRORS: u32 = 1 << 15;
const DEVCAP_FLR: u32 = 1 << 28;
const DEVCTL_FLR: u16 = 1 << 15;

/// VF n has routing id PF + 1 + (n - 1).
const VF_OFFSET: u16 = 1;
const VF_STRIDE: u16 = 1;
/// Page sizes from 4 KiB to 4 MiB, as real devices have them.
const SUPPORTED_PAGES: u32 = 0x553;

impl ConfigSpace {
    pub(crate) fn new(config: &Config, geometry: Geometry) -> Self {
        let mut space = Self {
            bytes: vec![0; pci::CONFIG_SIZE_EXPRESS],
            writable: vec![0; pci::CONFIG_SIZE_EXPRESS],
        };
        space.header(geometry);
        space.capabilities(geometry);
        if geometry.owner {
            space.sriov(config);
        }
        space
    }

    fn header(&mut self, geometry: Geometry) {
        self.put16(pci::VENDOR_ID, virtio::VENDOR);
        self.put16(pci::DEVICE_ID, virtio::MODERN_ID_BASE + virtio::ID_NET);
        // Memory decode is on and not ours to gate: virtual on a VF, and never off here on a PF.
        self.put16(pci::COMMAND, pci::COMMAND_MEMORY);
        let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER | pci::COMMAND_INTX_DISABLE;
        self.allow(pci::COMMAND, &command.to_le_bytes());
        self.put16(pci::STATUS, pci::STATUS_CAPABILITIES);
        self.put(pci::REVISION_ID, &[1]);
        self.put(pci::CLASS_CODE, &[0, 0, CLASS_ETHERNET]);
        self.put16(pci::SUBSYSTEM_VENDOR_ID, virtio::VENDOR);
        self.put16(pci::SUBSYSTEM_ID, SUBSYSTEM);
        self.put(pci::CAPABILITY_LIST, &[EXPRESS as u8]);
        self.allow(pci::INTERRUPT_LINE, &[0xff]);
        if geometry.vectors > 0 {
            let size = layout::msix_bar_size(geometry);
            self.bar(layout::MSIX_BAR, 0, size);
        }
        self.bar(
            layout::VIRTIO_BAR,
            pci::BAR_MEMORY_64,
            layout::VIRTIO_BAR_SIZE,
        );
    }

    fn bar(&mut self, index: u8, flags: u32, size: u64) {
        let at = pci::BAR0 + 4 * usize::from(index);
        self.put32(at, flags);
        let mask = !(size - 1);
        self.allow(at, &(mask as u32).to_le_bytes());
        if flags & pci::BAR_MEMORY_64 != 0 {
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
    }

    fn capabilities(&mut self, geometry: Geometry) {
        let after_express = if geometry.vectors > 0 { MSIX } else { COMMON };
        self.put(EXPRESS, &[pci::CAP_EXPRESS, after_express as u8]);
        // Version 2, an endpoint.
        self.put16(EXPRESS + 2, 2);
        self.put32(EXPRESS + EXPRESS_DEVCAP, DEVCAP_ROLE_ERRORS | DEVCAP_FLR);
        if geometry.vectors > 0 {
            let bar = u32::from(layout::MSIX_BAR);
            self.put(MSIX, &[pci::CAP_MSIX, COMMON as u8]);
            self.put16(MSIX + pci::MSIX_CONTROL, geometry.vectors - 1);
            let enable = pci::MSIX_CONTROL_ENABLE | pci::MSIX_CONTROL_MASK_ALL;
            self.allow(MSIX + pci::MSIX_CONTROL, &enable.to_le_bytes());
            self.put32(MSIX + pci::MSIX_TABLE, bar);
            let pba = layout::msix_pba(geometry) as u32;
            self.put32(MSIX + pci::MSIX_PBA, pba | bar);
        }
        let notify_len = layout::notify_len(geometry) as u32;
        let device_len = geometry.config_len() as u32;
        let common_len = virtio::common::SIZE as u32;
        self.vendor(
            COMMON,
            NOTIFY,
            virtio::CFG_COMMON,
            layout::COMMON,
            common_len,
        );
        self.vendor(NOTIFY, ISR, virtio::CFG_NOTIFY, layout::NOTIFY, notify_len);
        self.vendor(ISR, DEVICE, virtio::CFG_ISR, layout::ISR, 1);
        self.vendor(
            DEVICE,
            WINDOW,
            virtio::CFG_DEVICE,
            layout::DEVICE,
            device_len,
        );
        self.vendor(WINDOW, 0, virtio::CFG_PCI, 0, 0);
        self.put(NOTIFY + virtio::cap::LEN, &[virtio::cap::SIZE_LONG as u8]);
        self.put32(
            NOTIFY + virtio::cap::NOTIFY_MULTIPLIER,
            layout::NOTIFY_MULTIPLIER,
        );
        self.put(WINDOW + virtio::cap::LEN, &[virtio::cap::SIZE_LONG as u8]);
        self.put(WINDOW + virtio::cap::BAR, &[0]);
        self.allow(WINDOW + virtio::cap::BAR, &[0xff]);
        self.allow(WINDOW + virtio::cap::OFFSET, &[0xff; 12]);
    }

    fn vendor(&mut self, at: usize, next: usize, kind: u8, offset: u64, len: u32) {
        let size = virtio::cap::SIZE as u8;
        self.put(
            at,
            &[pci::CAP_VENDOR, next as u8, size, kind, layout::VIRTIO_BAR],
        );
        self.put32(at + virtio::cap::OFFSET, offset as u32);
        self.put32(at + virtio::cap::LENGTH, len);
    }

    /// The capability is read-only: as with `vfio-pci`, VFs are enabled on the host side.
    fn sriov(&mut self, config: &Config) {
        let version = 1 << 16;
        self.put32(SRIOV, u32::from(pci::EXT_CAP_SRIOV) | version);
        self.put16(SRIOV + pci::SRIOV_INITIAL_VFS, config.total_vfs);
        self.put16(SRIOV + pci::SRIOV_TOTAL_VFS, config.total_vfs);
        self.put16(SRIOV + pci::SRIOV_VF_OFFSET, VF_OFFSET);
        self.put16(SRIOV + pci::SRIOV_VF_STRIDE, VF_STRIDE);
        let device = virtio::MODERN_ID_BASE + virtio::ID_NET;
        self.put16(SRIOV + pci::SRIOV_VF_DEVICE_ID, device);
        self.put32(SRIOV + pci::SRIOV_SUPPORTED_PAGES, SUPPORTED_PAGES);
        self.put32(SRIOV + pci::SRIOV_SYSTEM_PAGE, 1);
        // VF BAR0 stays zero: the specification asks it of an owner with the legacy commands, so
        // that an I/O BAR0 can be shown in its place.
        let virtio_bar = SRIOV + pci::SRIOV_VF_BAR0 + 4 * usize::from(layout::VIRTIO_BAR);
        self.put32(virtio_bar, pci::BAR_MEMORY_64);
    }

    /// Shows how many VFs are enabled.
    pub(crate) fn set_vfs(&mut self, count: u16) {
        let control = pci::SRIOV_CONTROL_VF_ENABLE | pci::SRIOV_CONTROL_VF_MSE;
        self.put16(
            SRIOV + pci::SRIOV_CONTROL,
            if count > 0 { control } else { 0 },
        );
        self.put16(SRIOV + pci::SRIOV_NUM_VFS, count);
    }

    /// Function level reset: BAR addresses and the interrupt line stay, the rest is lost.
    pub(crate) fn reset(&mut self) {
        self.put16(pci::COMMAND, pci::COMMAND_MEMORY);
        for (at, len) in [
            (MSIX + pci::MSIX_CONTROL, 2),
            (WINDOW + virtio::cap::BAR, 1),
            (WINDOW + virtio::cap::OFFSET, 12),
        ] {
            let bytes = self.bytes.iter_mut().zip(&self.writable);
            for (byte, mask) in bytes.skip(at).take(len) {
                *byte &= !mask;
            }
        }
    }

    /// Copies the bytes out; the caller has checked the range.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        for (to, from) in out.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> ConfigEffect {
        let before = self.master();
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, mask), new) in places.zip(data) {
            *byte = *byte & !mask | new & mask;
        }
        let flr = EXPRESS + EXPRESS_DEVCTL + 1;
        let flr_byte = flr.checked_sub(offset).and_then(|at| data.get(at));
        let after = self.master();
        ConfigEffect {
            master: (before != after).then_some(after),
            reset: flr_byte.is_some_and(|byte| byte & (DEVCTL_FLR >> 8) as u8 != 0),
            window: Self::touches_window(offset, data.len()),
        }
    }

    /// Whether an access covers bytes of the window's data.
    pub(crate) fn touches_window(offset: usize, len: usize) -> bool {
        let data = WINDOW + virtio::cap::PCI_DATA;
        offset < data + 4 && offset.saturating_add(len) > data
    }

    /// The access that the window describes, if it is one that a device has to perform.
    pub(crate) fn window(&self) -> Option<Window> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            self.read(WINDOW + at, &mut bytes);
            bytes
        };
        let [bar, ..] = word(virtio::cap::BAR);
        let offset = u64::from(u32::from_le_bytes(word(virtio::cap::OFFSET)));
        let len = u32::from_le_bytes(word(virtio::cap::LENGTH));
        let data = word(virtio::cap::PCI_DATA);
        let valid = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(u64::from(len));
        valid.then_some(Window {
            bar,
            offset,
            len: len as usize,
            data,
        })
    }

    /// Shows what the window's access read.
    pub(crate) fn set_window_data(&mut self, data: [u8; 4]) {
        self.put(WINDOW + virtio::cap::PCI_DATA, &data);
    }

    fn master(&self) -> bool {
        let mut command = [0; 2];
        self.read(pci::COMMAND, &mut command);
        u16::from_le_bytes(command) & pci::COMMAND_MASTER != 0
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(member: u16, vectors: u16) -> ConfigSpace {
        let config = Config {
            msix_vectors: vectors,
            ..Config::default()
        };
        ConfigSpace::new(&config, config.geometry(member))
    }

    fn read32(space: &ConfigSpace, at: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Ids of the conventional capabilities, in order.
    fn capabilities(space: &ConfigSpace) -> Vec<(u8, u8)> {
        let mut at = read32(space, pci::CAPABILITY_LIST) as u8;
        let mut found = Vec::new();
        while at != 0 && found.len() < 16 {
            let [id, next, _, kind] = read32(space, usize::from(at)).to_le_bytes();
            found.push((id, if id == pci::CAP_VENDOR { kind } else { 0 }));
            at = next;
        }
        found
    }

    #[test]
    fn the_capability_list_ends_and_leaves_msix_out_when_there_are_no_vectors() {
        let vendor = [(9, 1), (9, 2), (9, 3), (9, 4), (9, 5)];
        let with: Vec<_> = [(0x10, 0), (0x11, 0)].into_iter().chain(vendor).collect();
        assert_eq!(capabilities(&space(1, 4)), with);
        let without: Vec<_> = [(0x10, 0)].into_iter().chain(vendor).collect();
        assert_eq!(capabilities(&space(1, 0)), without);
    }

    #[test]
    fn bars_are_sized_by_writing_ones_and_absent_ones_read_zero() {
        let mut space = space(1, 4);
        space.write(pci::BAR0, &[0xff; 24]);
        let bars: Vec<u32> = (0..6).map(|i| read32(&space, pci::BAR0 + 4 * i)).collect();
        assert_eq!(bars, [0, 0xffff_f000, 0, 0, 0xffff_8004, 0xffff_ffff]);
    }

    #[test]
    fn the_io_bit_does_not_stick_and_the_master_bit_is_reported() {
        let mut space = space(1, 4);
        let effect = space.write(pci::COMMAND, &7u16.to_le_bytes());
        assert_eq!(effect.master, Some(true));
        assert_eq!(read32(&space, pci::COMMAND) & 0xffff, 6);
        assert_eq!(space.write(pci::COMMAND, &[6]).master, None);
        assert_eq!(space.write(pci::COMMAND, &[2]).master, Some(false));
    }

    #[test]
    fn a_reset_keeps_bars_and_clears_msix_enable_and_bus_mastering() {
        let mut space = space(1, 4);
        space.write(pci::BAR0 + 4, &0xfebf_0000u32.to_le_bytes());
        space.write(pci::COMMAND, &[6]);
        space.write(MSIX + 2, &0xc000u16.to_le_bytes());
        assert_eq!(read32(&space, MSIX) >> 16, 0xc003);
        space.reset();
        assert_eq!(read32(&space, pci::BAR0 + 4), 0xfebf_0000);
        assert_eq!(read32(&space, pci::COMMAND) & 0xffff, 2);
        assert_eq!(read32(&space, MSIX) >> 16, 3);
    }

    #[test]
    fn the_flr_bit_asks_for_a_reset_and_reads_as_zero() {
        let mut space = space(1, 4);
        let devctl = EXPRESS + EXPRESS_DEVCTL;
        assert!(space.write(devctl, &0x8000u16.to_le_bytes()).reset);
        assert!(space.write(devctl - 2, &[0, 0, 0, 0x80]).reset);
        assert!(!space.write(devctl, &[0xff]).reset);
        assert_eq!(read32(&space, devctl), 0);
    }

    #[test]
    fn only_the_pf_has_sriov_and_its_vf_bar0_is_hardwired_to_zero() {
        let mut pf = space(0, 4);
        assert_eq!(read32(&space(1, 4), SRIOV), 0);
        assert_eq!(read32(&pf, SRIOV) & 0xffff, 0x10);
        pf.set_vfs(3);
        pf.write(SRIOV, &[0xff; pci::SRIOV_CAP_LEN]);
        assert_eq!(read32(&pf, SRIOV + pci::SRIOV_NUM_VFS) & 0xffff, 3);
        assert_eq!(read32(&pf, SRIOV + pci::SRIOV_CONTROL) & 0xffff, 9);
        assert_eq!(read32(&pf, SRIOV + pci::SRIOV_VF_BAR0), 0);
        assert_eq!(
            read32(&pf, SRIOV + pci::SRIOV_VF_DEVICE_ID - 2) >> 16,
            0x1041
        );
    }

    #[test]
    fn the_window_accepts_only_natural_accesses() {
        let mut space = space(1, 4);
        let mut describe = |offset: u32, len: u32| {
            space.write(WINDOW + virtio::cap::BAR, &[4]);
            space.write(WINDOW + virtio::cap::OFFSET, &offset.to_le_bytes());
            space.write(WINDOW + virtio::cap::LENGTH, &len.to_le_bytes());
            space.window()
        };
        assert_eq!(describe(0x14, 1).map(|w| (w.bar, w.len)), Some((4, 1)));
        assert_eq!(describe(2, 4), None);
        assert_eq!(describe(0, 3), None);
        assert_eq!(describe(0, 0), None);
        assert!(ConfigSpace::touches_window(WINDOW + 19, 1));
        assert!(!ConfigSpace::touches_window(WINDOW + 20, 4));
    }
}
