//! What firmware and the PCI core of an operating system do with a function.

use retrovf_spec::pci;

use crate::bus::{AccessRegion, Bus};
use crate::{Error, Result};

const CONFIG: AccessRegion = AccessRegion::Config;
/// The address that the guest gives to the I/O BAR, a multiple of every possible size.
const IO_ADDRESS: u32 = 0xc000;
/// Bits of an I/O BAR that are not address.
const IO_FLAGS: u32 = 0b11;

/// What the function says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id: the virtio device id of a transitional device.
    pub subsystem: u16,
    /// Class, subclass and programming interface.
    pub class_code: u32,
    /// BAR0 after the guest gave it an address.
    pub bar0: u32,
    /// Bytes of BAR0.
    pub bar0_size: u32,
    /// Interrupt pin: 0 none, 1 INTA.
    pub interrupt_pin: u8,
    /// Vectors of the MSI-X capability, 0 without.
    pub msix_vectors: u16,
    /// Offset of the MSI-X capability.
    pub(crate) msix: Option<u64>,
}

/// Reads the header, sizes BAR0 and gives it an address, walks the capabilities, and enables the
/// function.
pub(crate) fn enumerate(bus: &mut Bus) -> Result<Identity> {
    let ids = bus.read32(CONFIG, at(pci::VENDOR_ID))?;
    if ids == u32::MAX {
        return Err(Error::Refused {
            reason: "there is none: its ids read as ones",
        });
    }
    if bus.read8(CONFIG, at(pci::HEADER_TYPE))? & 0x7f != 0 {
        return Err(Error::Refused {
            reason: "its header is not that of an endpoint",
        });
    }
    let class = bus.read32(CONFIG, at(pci::REVISION_ID))?;
    let subsystem = bus.read32(CONFIG, at(pci::SUBSYSTEM_VENDOR_ID))?;
    let command = bus.read16(CONFIG, at(pci::COMMAND))?;
    let decode = pci::COMMAND_IO | pci::COMMAND_MEMORY;
    bus.write16(CONFIG, at(pci::COMMAND), command & !decode)?;
    let (bar0, bar0_size) = place_bar0(bus)?;
    let msix = find_msix(bus)?;
    let msix_vectors = match msix {
        Some(cap) => {
            let control = bus.read16(CONFIG, cap + at(pci::MSIX_CONTROL))?;
            // What ran before may have left it on; PCI cores switch it off when they find a function.
            if control & pci::MSIX_CONTROL_ENABLE != 0 {
                let off = control & !pci::MSIX_CONTROL_ENABLE;
                bus.write16(CONFIG, cap + at(pci::MSIX_CONTROL), off)?;
            }
            (control & pci::MSIX_CONTROL_SIZE) + 1
        }
        None => 0,
    };
    let interrupt_pin = bus.read8(CONFIG, at(pci::INTERRUPT_PIN))?;
    let enabled = command | decode | pci::COMMAND_MASTER;
    bus.write16(CONFIG, at(pci::COMMAND), enabled)?;
    Ok(Identity {
        vendor: ids as u16,
        device: (ids >> 16) as u16,
        revision: class as u8,
        subsystem_vendor: subsystem as u16,
        subsystem: (subsystem >> 16) as u16,
        class_code: class >> 8,
        bar0,
        bar0_size,
        interrupt_pin,
        msix_vectors,
        msix,
    })
}

/// The bits that take no ones are the size.
fn place_bar0(bus: &mut Bus) -> Result<(u32, u32)> {
    let bar = at(pci::BAR0);
    bus.write32(CONFIG, bar, u32::MAX)?;
    let mask = bus.read32(CONFIG, bar)?;
    if mask & pci::BAR_IO == 0 {
        return Err(Error::Refused {
            reason: "BAR0 is not in I/O space",
        });
    }
    let size = (mask & !IO_FLAGS).wrapping_neg();
    // The upper half of an I/O BAR may be hard-wired to zero, which makes the size look huge.
    let size = if size > 0xffff { size & 0xffff } else { size };
    if !size.is_power_of_two() || size > IO_ADDRESS & IO_ADDRESS.wrapping_neg() {
        return Err(Error::Refused {
            reason: "the size of BAR0 is not a power of two that I/O space has room for",
        });
    }
    bus.write32(CONFIG, bar, IO_ADDRESS)?;
    let bar0 = bus.read32(CONFIG, bar)?;
    if bar0 & !IO_FLAGS != IO_ADDRESS {
        return Err(Error::Device {
            reason: "BAR0 does not keep its address",
        });
    }
    Ok((bar0, size))
}

fn find_msix(bus: &mut Bus) -> Result<Option<u64>> {
    if bus.read16(CONFIG, at(pci::STATUS))? & pci::STATUS_CAPABILITIES == 0 {
        return Ok(None);
    }
    let mut cap = bus.read8(CONFIG, at(pci::CAPABILITY_LIST))? & !3;
    // 48 capabilities fill the space; a longer list is a loop.
    for _ in 0..48 {
        if cap < 0x40 {
            return Ok(None);
        }
        let header = bus.read16(CONFIG, cap.into())?;
        if header as u8 == pci::CAP_MSIX {
            return Ok(Some(cap.into()));
        }
        cap = (header >> 8) as u8 & !3;
    }
    Err(Error::Device {
        reason: "its capability list is a loop",
    })
}

fn at(offset: usize) -> u64 {
    offset as u64
}
