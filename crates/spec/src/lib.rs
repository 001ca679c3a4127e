//! Constants and byte layouts of PCI and virtio, and nothing else: no I/O, no unsafe, no policy.
//!
//! Sources: PCI Local Bus 3.0 and PCI Express Base (headers, capabilities), the Linux uapi headers
//! `pci_regs.h` and `virtio_*.h`, and the virtio specification 1.4 ("Virtio Over PCI Bus", "Group
//! administration commands", and every "Legacy Interface" subsection).
#![forbid(unsafe_code)]

pub mod admin;
pub mod legacy;
pub mod pci;
pub mod virtio;
