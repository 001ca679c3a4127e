//! The walk over the virtio vendor capabilities (virtio 1.4, "Virtio Structure PCI Capabilities").

use std::sync::Arc;

use retrovf_pci::{Function, Region, Registers};
use retrovf_spec::{pci, virtio};

use crate::{Error, Result};

/// Where the structures of a device are.
pub(crate) struct Structures {
    pub(crate) common: Registers,
    pub(crate) notify: Notify,
    /// Absent if the device type has no configuration.
    pub(crate) device: Option<Registers>,
}

/// The window with the notify words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notify {
    pub(crate) region: Region,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) multiplier: u32,
}

/// First byte behind the header.
const CAPABILITIES: usize = 0x40;
/// The fields up to `QUEUE_DEVICE`, which every modern device has.
const COMMON_MIN: u64 = virtio::common::QUEUE_DEVICE + 8;

/// Finds the structures. Of several capabilities of a kind the first usable one counts, as the
/// specification asks; kinds and BARs that it reserves are passed over.
pub(crate) fn find(function: &Arc<dyn Function>) -> Result<Structures> {
    let bdf = function.bdf();
    let fail = |reason| Error::Capabilities { bdf, reason };
    // One copy: the walk cannot be led astray by contents that change under it.
    let mut config = [0; pci::CONFIG_SIZE];
    function.config_read(0, &mut config)?;

    let mut common = None;
    let mut notify = None;
    let mut device = None;
    for at in walk(&config).map_err(fail)? {
        let Some(cap) = Capability::parse(&config, at) else {
            continue;
        };
        let window = || {
            let region = Region::bar(cap.bar);
            Registers::new(Arc::clone(function), region, cap.offset, cap.length).ok()
        };
        match cap.kind {
            virtio::CFG_COMMON if common.is_none() && cap.length >= COMMON_MIN => {
                common = window();
            }
            virtio::CFG_DEVICE if device.is_none() => device = window(),
            virtio::CFG_NOTIFY if notify.is_none() => {
                notify = window().zip(cap.multiplier).map(|(_, multiplier)| Notify {
                    region: Region::bar(cap.bar),
                    offset: cap.offset,
                    length: cap.length,
                    multiplier,
                });
            }
            _ => {}
        }
    }
    Ok(Structures {
        common: common.ok_or(fail("no usable common configuration capability"))?,
        notify: notify.ok_or(fail("no usable notification capability"))?,
        device,
    })
}

/// Offsets of the vendor capabilities.
fn walk(config: &[u8; pci::CONFIG_SIZE]) -> std::result::Result<Vec<usize>, &'static str> {
    let byte = |at: usize| config.get(at).copied().unwrap_or(0);
    if byte(pci::STATUS) & pci::STATUS_CAPABILITIES as u8 == 0 {
        return Err("no capability list");
    }
    let mut seen = [false; pci::CONFIG_SIZE];
    let mut found = Vec::new();
    let mut at = usize::from(byte(pci::CAPABILITY_LIST) & !3);
    while at != 0 {
        if at < CAPABILITIES {
            return Err("the capability list points into the header");
        }
        if std::mem::replace(&mut seen[at], true) {
            return Err("the capability list is a loop");
        }
        if byte(at) == pci::CAP_VENDOR {
            found.push(at);
        }
        at = usize::from(byte(at + 1) & !3);
    }
    Ok(found)
}

struct Capability {
    kind: u8,
    bar: u8,
    offset: u64,
    length: u64,
    /// Of a notify capability that is long enough to have one.
    multiplier: Option<u32>,
}

impl Capability {
    fn parse(config: &[u8], at: usize) -> Option<Self> {
        let len = usize::from(*config.get(at + virtio::cap::LEN)?);
        let cap = config.get(at..at + len)?;
        let word = |at: usize| Some(u32::from_le_bytes(*cap.get(at..)?.first_chunk()?));
        let bar = *cap.get(virtio::cap::BAR)?;
        (len >= virtio::cap::SIZE && Region::bar(bar).is_bar()).then_some(Self {
            kind: *cap.get(virtio::cap::CFG_TYPE)?,
            bar,
            offset: word(virtio::cap::OFFSET)?.into(),
            length: word(virtio::cap::LENGTH)?.into(),
            multiplier: word(virtio::cap::NOTIFY_MULTIPLIER),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(capabilities: &[(usize, &[u8])]) -> [u8; pci::CONFIG_SIZE] {
        let mut config = [0; pci::CONFIG_SIZE];
        config[pci::STATUS] = pci::STATUS_CAPABILITIES as u8;
        config[pci::CAPABILITY_LIST] = capabilities[0].0 as u8;
        for (at, bytes) in capabilities {
            config[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        config
    }

    #[test]
    fn only_vendor_capabilities_are_found() {
        let config = config(&[
            (0x40, &[pci::CAP_MSIX, 0x50]),
            (0x50, &[pci::CAP_VENDOR, 0x60]),
            (0x60, &[pci::CAP_VENDOR, 0]),
        ]);
        assert_eq!(walk(&config).unwrap(), [0x50, 0x60]);
    }

    #[test]
    fn a_loop_is_an_error() {
        let config = config(&[(0x40, &[pci::CAP_VENDOR, 0x50]), (0x50, &[9, 0x40])]);
        assert_eq!(walk(&config).unwrap_err(), "the capability list is a loop");
    }

    #[test]
    fn a_list_that_leaves_for_the_header_is_an_error() {
        let config = config(&[(0x40, &[pci::CAP_VENDOR, 0x10])]);
        assert!(walk(&config).is_err());
    }

    #[test]
    fn the_low_bits_of_a_pointer_are_ignored() {
        let config = config(&[(0x43, &[]), (0x40, &[pci::CAP_VENDOR, 3])]);
        assert_eq!(walk(&config).unwrap(), [0x40]);
    }

    #[test]
    fn a_capability_that_is_cut_short_is_none() {
        let mut config = config(&[(0xfc, &[pci::CAP_VENDOR, 0, 16, 1])]);
        assert!(Capability::parse(&config, 0xfc).is_none());
        config[0x40..0x44].copy_from_slice(&[pci::CAP_VENDOR, 0, 15, 1]);
        assert!(Capability::parse(&config, 0x40).is_none());
        config[0x42] = 16;
        assert!(Capability::parse(&config, 0x40).is_some());
        config[0x44] = 6;
        assert!(Capability::parse(&config, 0x40).is_none(), "BAR 6");
    }

    proptest! {
        #[test]
        fn no_configuration_space_makes_the_walk_panic_or_hang(
            mut bytes in proptest::collection::vec(any::<u8>(), pci::CONFIG_SIZE),
        ) {
            bytes[pci::STATUS] |= pci::STATUS_CAPABILITIES as u8;
            let config: [u8; pci::CONFIG_SIZE] = bytes.try_into().unwrap();
            for at in walk(&config).unwrap_or_default() {
                let _ = Capability::parse(&config, at);
            }
        }
    }
}
