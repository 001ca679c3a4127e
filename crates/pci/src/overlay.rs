use std::iter::repeat;
use std::sync::atomic::{AtomicU8, Ordering};

use retrovf_spec::pci;

/// One row of the configuration space overlay: some bits that we answer in the device's stead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayRow {
    /// First byte.
    pub offset: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// The bits' initial value.
    pub value: u32,
    /// The bits that we answer; the others are the device's.
    pub mask: u32,
    /// Those of `mask` that a write changes.
    pub writable: u32,
    /// Writes to the bits of `mask` also go to the device.
    pub forward: bool,
    /// A function reset gives the bits their initial value back.
    pub resets: bool,
    /// Bits, in `mask` or not, that reset the function when a write sets them.
    pub flr: u32,
}

/// The overlay, ready to be applied to accesses of any width, alignment and overlap.
///
/// The bytes are atomics and no lock is taken: the notify path asks for the I/O enable bit. Each
/// byte is consistent by itself, and accesses of one vfio-user session are in order anyway.
#[derive(Debug)]
pub struct Overlay {
    /// Up to the last that is not the device's alone.
    bytes: Box<[ByteRow]>,
    size: usize,
    msix_control: Option<usize>,
}

#[derive(Debug, Default)]
struct ByteRow {
    value: AtomicU8,
    initial: u8,
    mask: u8,
    writable: u8,
    forward: u8,
    resets: u8,
    flr: u8,
}

/// A byte that is the device's alone, as all behind the last row are.
static DEVICE: ByteRow = ByteRow {
    value: AtomicU8::new(0),
    initial: 0,
    mask: 0,
    writable: 0,
    forward: 0,
    resets: 0,
    flr: 0,
};

/// What a write leaves to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// For the device, in order.
    pub runs: Vec<ConfigWrite>,
    /// Having seen them, the device has reset itself.
    pub resets: bool,
}

/// What is left of a write for the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWrite {
    /// First byte.
    pub offset: usize,
    /// Data, the overlay's bits cleared.
    pub data: Vec<u8>,
}

impl Overlay {
    /// Lays the rows, in order, over `size` bytes of configuration space; rows outside are an error
    /// that names the row. `msix` is the offset of the MSI-X capability, if the function has one.
    pub fn new(size: usize, rows: &[OverlayRow], msix: Option<u16>) -> Result<Self, OverlayRow> {
        let mut bytes: Vec<ByteRow> = Vec::new();
        for row in rows {
            let start = usize::from(row.offset);
            let width = usize::from(row.width);
            let end = start + width;
            if !matches!(width, 1 | 2 | 4) || end > size {
                return Err(*row);
            }
            bytes.resize_with(bytes.len().max(end), ByteRow::default);
            for (i, byte) in bytes[start..end].iter_mut().enumerate() {
                let part = |word: u32| word.to_le_bytes()[i];
                let mask = part(row.mask);
                byte.initial = byte.initial & !mask | part(row.value) & mask;
                byte.value = AtomicU8::new(byte.initial);
                byte.mask |= mask;
                byte.writable = byte.writable & !mask | part(row.writable) & mask;
                byte.forward = byte.forward & !mask | if row.forward { mask } else { 0 };
                byte.resets = byte.resets & !mask | if row.resets { mask } else { 0 };
                byte.flr |= part(row.flr);
            }
        }
        let msix_control = msix
            .map(|cap| usize::from(cap) + pci::MSIX_CONTROL + 1)
            .filter(|&at| at < bytes.len());
        Ok(Self {
            bytes: bytes.into(),
            size,
            msix_control,
        })
    }

    /// Bytes of configuration space.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Blends the overlay over what the device answered for `offset..`.
    pub fn read(&self, offset: usize, device: &mut [u8]) {
        for (row, byte) in self.bytes.iter().skip(offset).zip(device) {
            *byte = *byte & !row.mask | row.value.load(Ordering::Relaxed) & row.mask;
        }
    }

    /// Takes a write, and returns what the device has to see of it.
    pub fn write(&self, offset: usize, data: &[u8]) -> Written {
        let mut runs: Vec<ConfigWrite> = Vec::new();
        let mut resets = false;
        let rows = self.bytes.iter().chain(repeat(&DEVICE)).take(self.size);
        for (at, (row, byte)) in rows.skip(offset).zip(data).enumerate() {
            if row.writable != 0 {
                let kept = row.value.load(Ordering::Relaxed) & !row.writable;
                row.value
                    .store(kept | byte & row.writable, Ordering::Relaxed);
            }
            resets |= byte & row.flr != 0;
            let visible = !row.mask | row.forward;
            if visible == 0 {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.offset + run.data.len() == offset + at => {
                    run.data.push(byte & visible);
                }
                _ => runs.push(ConfigWrite {
                    offset: offset + at,
                    data: vec![byte & visible],
                }),
            }
        }
        Written { runs, resets }
    }

    /// What a function reset does to the overlay.
    pub fn reset(&self) {
        for row in self.bytes.iter().filter(|row| row.resets != 0) {
            let kept = row.value.load(Ordering::Relaxed) & !row.resets;
            row.value
                .store(kept | row.initial & row.resets, Ordering::Relaxed);
        }
    }

    /// Clears the guest's MSI-X enable bit: nobody is left to take the interrupts.
    pub fn disable_msix(&self) {
        if let Some(row) = self.msix_control.and_then(|at| self.bytes.get(at)) {
            row.value.fetch_and(!MSIX_ENABLE, Ordering::Relaxed);
        }
    }

    /// Whether the guest lets the function decode I/O space; always, if the overlay does not own the
    /// bit.
    #[inline]
    pub fn io_enabled(&self) -> bool {
        let io = pci::COMMAND_IO as u8;
        self.bytes
            .get(pci::COMMAND)
            .is_none_or(|row| row.mask & io == 0 || row.value.load(Ordering::Relaxed) & io != 0)
    }

    /// The MSI-X enable bit as the guest sees it.
    pub fn msix_enabled(&self) -> bool {
        self.msix_control
            .is_some_and(|at| self.bytes[at].value.load(Ordering::Relaxed) & MSIX_ENABLE != 0)
    }
}

/// In the upper byte of the MSI-X capability's control register.
const MSIX_ENABLE: u8 = (pci::MSIX_CONTROL_ENABLE >> 8) as u8;

#[cfg(test)]
mod tests {
    use super::*;

    const MSIX: u16 = 0x40;
    const DEVCTL: u16 = 0x58;

    fn overlay() -> Overlay {
        let row = |offset, width, value, mask, writable| OverlayRow {
            offset,
            width,
            value,
            mask,
            writable,
            forward: false,
            resets: true,
            flr: 0,
        };
        let rows = [
            row(2, 2, 0x1000, 0xffff, 0),
            row(4, 2, 0, 1, 1),
            OverlayRow {
                resets: false,
                ..row(0x10, 4, 1, 0xffff_ffff, 0xffff_ffe0)
            },
            row(MSIX + 2, 2, 0, 0xc000, 0xc000),
            OverlayRow {
                flr: 0x8000,
                ..row(DEVCTL, 2, 0, 0, 0)
            },
        ];
        Overlay::new(256, &rows, Some(MSIX)).unwrap()
    }

    #[test]
    fn any_access_agrees_with_one_read_of_the_whole_space() {
        let overlay = overlay();
        overlay.write(0x10, &0x1234_5678u32.to_le_bytes());
        let device: Vec<u8> = (0..=255).collect();
        let mut whole = device.clone();
        overlay.read(0, &mut whole);
        for width in 1..=8 {
            for at in 0..=256 - width {
                let mut part = device[at..at + width].to_vec();
                overlay.read(at, &mut part);
                assert_eq!(part, whole[at..at + width], "{width} bytes at {at:#x}");
            }
        }
        assert_eq!(whole[2..4], [0x00, 0x10]);
        assert_eq!(whole[0x10..0x14], 0x1234_5661u32.to_le_bytes());
    }

    #[test]
    fn sizing_an_io_bar_of_32_bytes_reads_ffffffe1() {
        let overlay = overlay();
        assert_eq!(overlay.write(0x10, &[0xff; 4]).runs, []);
        let mut out = [0; 4];
        overlay.read(0x10, &mut out);
        assert_eq!(u32::from_le_bytes(out), 0xffff_ffe1);
    }

    #[test]
    fn the_io_bit_stays_here_and_the_rest_of_command_goes_to_the_device() {
        let overlay = overlay();
        assert!(!overlay.io_enabled());
        let forwarded = overlay.write(4, &[0x07, 0x04]);
        assert_eq!(
            forwarded.runs,
            [ConfigWrite {
                offset: 4,
                data: vec![0x06, 0x04]
            }]
        );
        assert!(overlay.io_enabled());
        overlay.reset();
        assert!(!overlay.io_enabled());
    }

    #[test]
    fn msix_enable_follows_byte_writes_and_reset() {
        let overlay = overlay();
        overlay.write(usize::from(MSIX) + 3, &[0x80]);
        assert!(overlay.msix_enabled());
        overlay.reset();
        assert!(!overlay.msix_enabled());
        overlay.write(usize::from(MSIX) + 2, &[0, 0xc0]);
        overlay.disable_msix();
        assert!(!overlay.msix_enabled());
        let mut control = [0; 2];
        overlay.read(usize::from(MSIX) + 2, &mut control);
        assert_eq!(control, [0, 0x40], "the mask bit is not the enable bit");
    }

    #[test]
    fn a_write_that_sets_the_flr_bit_reaches_the_device_and_says_so() {
        let overlay = overlay();
        let devctl = usize::from(DEVCTL);
        for (at, data) in [
            (devctl, &[0x10, 0x80][..]),
            (devctl + 1, &[0x80]),
            (devctl - 2, &[0; 8][..3]),
        ] {
            let written = overlay.write(at, data);
            assert_eq!(written.resets, data.contains(&0x80), "{data:x?} at {at:#x}");
            let data = data.to_vec();
            assert_eq!(written.runs, [ConfigWrite { offset: at, data }]);
        }
    }

    #[test]
    fn a_write_over_our_bytes_reaches_the_device_in_runs_around_them() {
        let overlay = overlay();
        let Written { runs, resets } = overlay.write(0x0e, &[9; 8]);
        assert!(!resets);
        assert_eq!(
            runs,
            [
                ConfigWrite {
                    offset: 0x0e,
                    data: vec![9, 9]
                },
                ConfigWrite {
                    offset: 0x14,
                    data: vec![9, 9]
                }
            ]
        );
    }

    #[test]
    fn behind_the_last_row_everything_is_the_devices_and_takes_no_room() {
        let overlay = Overlay::new(4096, &[], None).unwrap();
        assert!(overlay.bytes.is_empty());
        let mut out = [7; 4];
        overlay.read(4092, &mut out);
        assert_eq!(out, [7; 4]);
        let runs = self::overlay().write(0x5a, &[1, 2, 3]).runs;
        assert_eq!(
            runs,
            [ConfigWrite {
                offset: 0x5a,
                data: vec![1, 2, 3]
            }]
        );
        let [run] = &overlay.write(4094, &[1, 2, 3]).runs[..] else {
            panic!("one run");
        };
        assert_eq!(run.data, [1, 2], "nothing is behind the space");
    }

    #[test]
    fn a_row_outside_the_space_is_named() {
        let row = OverlayRow {
            offset: 254,
            width: 4,
            value: 0,
            mask: 0,
            writable: 0,
            forward: false,
            resets: false,
            flr: 0,
        };
        assert_eq!(Overlay::new(256, &[row], None).unwrap_err(), row);
    }
}
