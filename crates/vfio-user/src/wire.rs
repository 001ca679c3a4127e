//! Layouts and numbers of the protocol. All integers are in the byte order of the host: both ends run
//! on one machine.

use std::fmt;

/// Bytes of a message header.
pub const HEADER_SIZE: usize = 16;
/// Largest `count` of a data transfer, as we advertise it.
pub const MAX_DATA: usize = 1 << 20;
/// Largest message that is accepted: the largest transfer with its headers.
pub const MAX_MESSAGE: usize = HEADER_SIZE + ACCESS_SIZE + MAX_DATA;
/// Descriptors that one message may carry, as we advertise it.
pub const MAX_FDS: usize = 8;
/// Descriptors that we send in one message, if the peer takes as many.
pub const MAX_SENT_FDS: usize = 64;
/// Bytes of the fixed part of a region access and of a DMA access.
pub const ACCESS_SIZE: usize = 16;
/// Bytes of the fixed part of DEVICE_SET_IRQS.
pub const SET_IRQS_SIZE: usize = 20;
/// Bytes of a GET_REGION_IO_FDS entry.
pub const IO_FD_SIZE: usize = 40;

/// Header flags: the bits that tell commands from replies.
pub const TYPE_MASK: u32 = 0xf;
/// Header flags: a command.
pub const TYPE_COMMAND: u32 = 0;
/// Header flags: a reply.
pub const TYPE_REPLY: u32 = 1;
/// Header flags: the command wants no reply.
pub const NO_REPLY: u32 = 1 << 4;
/// Header flags: the command failed.
pub const ERROR: u32 = 1 << 5;

/// DMA_MAP flags: the device may read.
pub const DMA_READABLE: u32 = 1 << 0;
/// DMA_MAP flags: the device may write.
pub const DMA_WRITABLE: u32 = 1 << 1;
/// DMA_MAP flags: hints of libvfio-user (map it, or use file I/O) that change nothing here.
pub const DMA_HINTS: u32 = 1 << 2 | 1 << 3;
/// DMA_UNMAP flags: everything, with address and size 0.
pub const UNMAP_ALL: u32 = 1 << 1;

/// GET_INFO flags: the device can be reset.
pub const DEVICE_RESETS: u32 = 1 << 0;
/// GET_INFO flags: the device is a PCI function.
pub const DEVICE_PCI: u32 = 1 << 1;

/// Region flags: can be read.
pub const REGION_READABLE: u32 = 1 << 0;
/// Region flags: can be written.
pub const REGION_WRITABLE: u32 = 1 << 1;

/// IRQ info flags: signalled by eventfd.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// IRQ info flags: can be masked.
pub const IRQ_MASKABLE: u32 = 1 << 1;
/// IRQ info flags: masks itself when it fires.
pub const IRQ_AUTOMASKED: u32 = 1 << 2;
/// IRQ info flags: the set of vectors cannot grow.
pub const IRQ_NORESIZE: u32 = 1 << 3;

/// SET_IRQS flags: no data.
pub const IRQ_DATA_NONE: u32 = 1 << 0;
/// SET_IRQS flags: one byte a vector.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// SET_IRQS flags: eventfds, in the ancillary data.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// SET_IRQS flags: mask.
pub const IRQ_ACTION_MASK: u32 = 1 << 3;
/// SET_IRQS flags: unmask.
pub const IRQ_ACTION_UNMASK: u32 = 1 << 4;
/// SET_IRQS flags: trigger.
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// IO_FDS entry: the type of an ioeventfd.
pub const IO_FD_IOEVENTFD: u32 = 0;
/// IO_FDS entry flags, those of KVM_IOEVENTFD: only the value of `datamatch` signals.
pub const IO_FD_DATAMATCH: u32 = 1 << 0;
/// IO_FDS entry flags, those of KVM_IOEVENTFD: the region is I/O space.
pub const IO_FD_PIO: u32 = 1 << 1;

/// A command number. Numbers of a peer stay open: an unknown one is an answer, not a crash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

#[expect(missing_docs, reason = "the names are those of the protocol")]
impl Command {
    pub const VERSION: Self = Self(1);
    pub const DMA_MAP: Self = Self(2);
    pub const DMA_UNMAP: Self = Self(3);
    pub const GET_INFO: Self = Self(4);
    pub const REGION_INFO: Self = Self(5);
    pub const REGION_IO_FDS: Self = Self(6);
    pub const IRQ_INFO: Self = Self(7);
    pub const SET_IRQS: Self = Self(8);
    pub const REGION_READ: Self = Self(9);
    pub const REGION_WRITE: Self = Self(10);
    pub const DMA_READ: Self = Self(11);
    pub const DMA_WRITE: Self = Self(12);
    pub const RESET: Self = Self(13);
    pub const DIRTY_PAGES: Self = Self(14);
    pub const WRITE_MULTI: Self = Self(15);
    pub const FEATURE: Self = Self(16);
    pub const MIG_DATA_READ: Self = Self(17);
    pub const MIG_DATA_WRITE: Self = Self(18);

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::GET_INFO => "DEVICE_GET_INFO",
            Self::REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            Self::IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::RESET => "DEVICE_RESET",
            Self::DIRTY_PAGES => "DIRTY_PAGES",
            Self::WRITE_MULTI => "REGION_WRITE_MULTI",
            Self::FEATURE => "DEVICE_FEATURE",
            Self::MIG_DATA_READ => "MIG_DATA_READ",
            Self::MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => return None,
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Belongs to the sender; a reply echoes it.
    pub id: u16,
    /// What is wanted.
    pub command: Command,
    /// Bytes of the message, this header included.
    pub size: u32,
    /// Type, NO_REPLY and ERROR.
    pub flags: u32,
    /// The errno of an error reply.
    pub error: u32,
}

impl Header {
    /// A command with `payload` bytes behind the header.
    pub fn command(id: u16, command: Command, payload: usize) -> Self {
        Self {
            id,
            command,
            size: message_size(payload),
            flags: TYPE_COMMAND,
            error: 0,
        }
    }

    /// The header of the reply to this command.
    pub fn reply(&self, payload: usize) -> Self {
        Self {
            size: message_size(payload),
            flags: TYPE_REPLY,
            error: 0,
            ..*self
        }
    }

    /// The error reply to this command: a bare header. An errno of 0, which QEMU takes for success,
    /// becomes EIO.
    pub fn error_reply(&self, errno: i32) -> Self {
        let errno = u32::try_from(errno).unwrap_or(0);
        Self {
            flags: TYPE_REPLY | ERROR,
            error: if errno == 0 { EIO } else { errno },
            ..self.reply(0)
        }
    }

    /// True for a command that is not to be answered.
    pub fn no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// True for a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_REPLY
    }

    /// The first bytes of a message; `None` if there are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            id: u16_at(bytes, 0)?,
            command: Command(u16_at(bytes, 2)?),
            size: u32_at(bytes, 4)?,
            flags: u32_at(bytes, 8)?,
            error: u32_at(bytes, 12)?,
        })
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.0.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.error.to_ne_bytes());
        bytes
    }
}

const EIO: u32 = libc::EIO as u32;

fn message_size(payload: usize) -> u32 {
    u32::try_from(HEADER_SIZE + payload).unwrap_or(u32::MAX)
}

/// The fixed part of REGION_READ and REGION_WRITE, and of their replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionAccess {
    /// First byte.
    pub offset: u64,
    /// Region index.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

impl RegionAccess {
    /// Reads the fixed part from the start of a payload.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        Some(Self {
            offset: u64_at(payload, 0)?,
            region: u32_at(payload, 8)?,
            count: u32_at(payload, 12)?,
        })
    }

    /// The bytes of the fixed part.
    pub fn encode(&self) -> [u8; ACCESS_SIZE] {
        let mut bytes = [0; ACCESS_SIZE];
        bytes[0..8].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.region.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_ne_bytes());
        bytes
    }

    /// Header and fixed part in one: a small access is one `send` from the stack.
    pub fn message(&self, header: &Header) -> [u8; HEADER_SIZE + ACCESS_SIZE] {
        let mut bytes = [0; HEADER_SIZE + ACCESS_SIZE];
        bytes[..HEADER_SIZE].copy_from_slice(&header.encode());
        bytes[HEADER_SIZE..].copy_from_slice(&self.encode());
        bytes
    }
}

/// Reads 16 bits of a payload.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}

/// Reads 32 bits of a payload.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

/// Reads 64 bits of a payload.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_ne_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A payload of 32-bit words.
pub fn words<const N: usize>(words: [u32; N]) -> impl Iterator<Item = u8> {
    words.into_iter().flat_map(u32::to_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_protocol() {
        let header = Header {
            id: 0x0201,
            command: Command(0x0403),
            size: 0x0807_0605,
            flags: 0x0c0b_0a09,
            error: 0x100f_0e0d,
        };
        let bytes: Vec<u8> = (1..=16).collect();
        assert_eq!(header.encode()[..], bytes);
        assert_eq!(Header::parse(&bytes), Some(header));
        assert_eq!(Header::parse(&bytes[..15]), None);
    }

    #[test]
    fn an_error_reply_is_a_bare_header_and_never_has_errno_0() {
        let header = Header::command(7, Command::DMA_MAP, 32);
        for (errno, sent) in [(libc::EINVAL, 22), (0, 5), (-1, 5)] {
            let reply = header.error_reply(errno);
            assert_eq!((reply.size, reply.error, reply.id), (16, sent, 7));
            assert_eq!(reply.flags, TYPE_REPLY | ERROR);
        }
    }
}
