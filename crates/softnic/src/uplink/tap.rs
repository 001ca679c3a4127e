//! Opens a tap interface. The crate's only unsafe code: the ioctl that names it.
#![expect(unsafe_code, reason = "rustix has no safe TUNSETIFF")]

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{opcode, Setter};

use crate::Error;

/// `struct ifreq` as TUNSETIFF reads it: 40 bytes on x86-64.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
/// `_IOW('T', 202, int)`: the size in the number is not that of what is passed.
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// Opens the tap interface `name`, creating it if the process may.
pub(super) fn open(name: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(Error::io("Opening /dev/net/tun"))?;
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI,
        unused: [0; 22],
    };
    // The last byte stays 0: the configuration allows 15.
    for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` lays out in full, and writes none
    // of our memory but that copy.
    unsafe { rustix::ioctl::ioctl(&fd, Setter::<TUNSETIFF, Request>::new(request)) }
        .map_err(Error::io("Attaching to the tap interface"))?;
    Ok(fd)
}
