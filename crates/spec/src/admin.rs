//! Group administration commands: opcodes, status codes, and the command header (virtio 1.4, "Group
//! administration commands").

/// Group type: the device itself.
pub const GROUP_SELF: u16 = 0;
/// Group type: SR-IOV; owner the PF, member id n the n-th VF, from 1.
pub const GROUP_SRIOV: u16 = 1;

/// Lists the opcodes that the device supports for a group type.
pub const LIST_QUERY: u16 = 0x00;
/// Tells which opcodes the driver uses.
pub const LIST_USE: u16 = 0x01;
/// Writes a register of the common part of a member's legacy registers.
pub const LEGACY_COMMON_CFG_WRITE: u16 = 0x02;
/// Reads a register of the common part of a member's legacy registers.
pub const LEGACY_COMMON_CFG_READ: u16 = 0x03;
/// Writes a member's legacy device configuration.
pub const LEGACY_DEV_CFG_WRITE: u16 = 0x04;
/// Reads a member's legacy device configuration.
pub const LEGACY_DEV_CFG_READ: u16 = 0x05;
/// Where notifications to a member may be written instead.
pub const LEGACY_NOTIFY_INFO: u16 = 0x06;

/// Status: done.
pub const STATUS_OK: u16 = 0;
/// Status: no such capability or resource.
pub const STATUS_ENXIO: u16 = 6;
/// Status: try again.
pub const STATUS_EAGAIN: u16 = 11;
/// Status: out of memory, safe to try again.
pub const STATUS_ENOMEM: u16 = 12;
/// Status: device busy.
pub const STATUS_EBUSY: u16 = 16;
/// Status: invalid.
pub const STATUS_EINVAL: u16 = 22;
/// Status: out of space.
pub const STATUS_ENOSPC: u16 = 28;

/// Qualifier: nothing to add.
pub const QUALIFIER_OK: u16 = 0;
/// Qualifier: the command is malformed.
pub const QUALIFIER_INVALID_COMMAND: u16 = 1;
/// Qualifier: the opcode is unknown or not in use.
pub const QUALIFIER_INVALID_OPCODE: u16 = 2;
/// Qualifier: a field of the command is invalid.
pub const QUALIFIER_INVALID_FIELD: u16 = 3;
/// Qualifier: the group type is invalid.
pub const QUALIFIER_INVALID_GROUP: u16 = 4;
/// Qualifier: the member id is invalid.
pub const QUALIFIER_INVALID_MEMBER: u16 = 5;
/// Qualifier: the device lacks a resource for it.
pub const QUALIFIER_NORESOURCE: u16 = 6;
/// Qualifier: the device asks to try again.
pub const QUALIFIER_TRYAGAIN: u16 = 7;

/// Bytes of the readable header: opcode u16, group type u16, 12 reserved, member id u64.
pub const HEADER_SIZE: usize = 24;
/// Bytes of the writable header: status u16, qualifier u16, 4 reserved.
pub const RESULT_HEADER_SIZE: usize = 8;
/// Bytes between the readable header and the data of a legacy write: offset u8, 7 reserved.
pub const LEGACY_WRITE_PREFIX: usize = 8;
/// Bytes of one LEGACY_NOTIFY_INFO entry: flags u8, bar u8, 6 reserved, offset u64.
pub const NOTIFY_ENTRY_SIZE: usize = 16;
/// Entries in a LEGACY_NOTIFY_INFO result; the last one always ends the list.
pub const NOTIFY_ENTRIES: usize = 4;
/// Notify entry flags: end of the list.
pub const NOTIFY_END: u8 = 0;
/// Notify entry flags: the address is in a BAR of the owner.
pub const NOTIFY_OWNER: u8 = 1;
/// Notify entry flags: the address is in a BAR of the member.
pub const NOTIFY_MEMBER: u8 = 2;

/// The readable header of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What to do.
    pub opcode: u16,
    /// Which kind of group.
    pub group_type: u16,
    /// Which member, where the command uses one.
    pub member: u64,
}

impl Header {
    /// The header as the device reads it.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..2].copy_from_slice(&self.opcode.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.group_type.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.member.to_le_bytes());
        bytes
    }

    /// Reads a header; missing bytes count as zero, as the specification asks of a device.
    pub fn from_prefix(bytes: &[u8]) -> Self {
        let mut whole = [0; HEADER_SIZE];
        let n = bytes.len().min(HEADER_SIZE);
        whole[..n].copy_from_slice(&bytes[..n]);
        let u16_at = |at: usize| u16::from_le_bytes([whole[at], whole[at + 1]]);
        let mut member = [0; 8];
        member.copy_from_slice(&whole[16..24]);
        Self {
            opcode: u16_at(0),
            group_type: u16_at(2),
            member: u64::from_le_bytes(member),
        }
    }
}

/// The readable part of a legacy register write.
pub fn legacy_write(header: Header, offset: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_bytes().to_vec();
    bytes.push(offset);
    bytes.extend_from_slice(&[0; LEGACY_WRITE_PREFIX - 1]);
    bytes.extend_from_slice(data);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_laid_out_as_the_specification_has_it() {
        let header = Header {
            opcode: 0x0302,
            group_type: 1,
            member: 0x0807_0605_0403_0201,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..4], [2, 3, 1, 0]);
        assert_eq!(bytes[4..16], [0; 12]);
        assert_eq!(bytes[16..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::from_prefix(&bytes), header);
    }

    #[test]
    fn missing_header_bytes_read_as_zero() {
        assert_eq!(
            Header::from_prefix(&[5]),
            Header {
                opcode: 5,
                group_type: 0,
                member: 0
            }
        );
    }

    #[test]
    fn a_legacy_status_write_has_33_readable_bytes() {
        let header = Header {
            opcode: LEGACY_COMMON_CFG_WRITE,
            group_type: 1,
            member: 1,
        };
        let bytes = legacy_write(header, 0x12, &[7]);
        assert_eq!(bytes.len(), 33);
        assert_eq!((bytes[24], bytes[32]), (0x12, 7));
    }
}
