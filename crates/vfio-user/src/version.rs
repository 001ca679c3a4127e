use serde_json::Value;

use crate::wire::{u16_at, Command, Header, MAX_DATA, MAX_FDS};

/// The major version we speak; another one is another protocol.
const MAJOR: u16 = 0;
/// Both minor versions in use (0 of QEMU, 2 of libvfio-user) accept 0, and QEMU accepts no more.
const MINOR: u16 = 0;
/// The longest VERSION message that is read. QEMU's has about 270 bytes.
pub(crate) const MAX_VERSION_MESSAGE: usize = 4096;

/// What the other end said in VERSION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerVersion {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Descriptors it takes in one message.
    pub max_msg_fds: usize,
    /// Largest `count` of a transfer that it takes.
    pub max_data_xfer_size: usize,
    /// It named the capability `write_multiple`, as only QEMU and its relatives do.
    pub write_multiple: bool,
}

/// Why a VERSION message is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VersionError {
    #[error("the first message is {0} and not VERSION")]
    NotVersion(Command),
    #[error("VERSION wants no reply")]
    NoReply,
    #[error("VERSION is shorter than its two numbers")]
    Short,
    #[error("major version {0} is not 0")]
    Major(u16),
    #[error("the version data does not end in NUL")]
    NoNul,
    #[error("the version data is not JSON")]
    NotJson,
    #[error("the capability {0} has no usable value")]
    Capability(&'static str),
}

/// Reads a VERSION payload.
pub(crate) fn parse(payload: &[u8]) -> Result<PeerVersion, VersionError> {
    let (Some(major), Some(minor)) = (u16_at(payload, 0), u16_at(payload, 2)) else {
        return Err(VersionError::Short);
    };
    if major != MAJOR {
        return Err(VersionError::Major(major));
    }
    let data = payload.get(4..).unwrap_or_default();
    // The data is optional, and so is each part of it.
    let json = match data {
        [] => Value::Null,
        [json @ .., 0] => serde_json::from_slice(json).map_err(|_| VersionError::NotJson)?,
        _ => return Err(VersionError::NoNul),
    };
    let capabilities = json.get("capabilities");
    let number = |name: &'static str, default: u64| {
        capabilities
            .and_then(|all| all.get(name))
            .map_or(Some(default), Value::as_u64)
            .and_then(|number| usize::try_from(number).ok())
            .ok_or(VersionError::Capability(name))
    };
    let max_data_xfer_size = number("max_data_xfer_size", MAX_DATA as u64)?;
    if max_data_xfer_size == 0 {
        return Err(VersionError::Capability("max_data_xfer_size"));
    }
    Ok(PeerVersion {
        major,
        minor,
        max_msg_fds: number("max_msg_fds", 1)?,
        max_data_xfer_size,
        write_multiple: capabilities.is_some_and(|all| all.get("write_multiple").is_some()),
    })
}

/// Checks the first message of a client.
pub(crate) fn negotiate(header: &Header, payload: &[u8]) -> Result<PeerVersion, VersionError> {
    if header.command != Command::VERSION || header.is_reply() {
        return Err(VersionError::NotVersion(header.command));
    }
    if header.no_reply() {
        return Err(VersionError::NoReply);
    }
    parse(payload)
}

/// Our own VERSION payload, as a request or a reply.
///
/// QEMU receives the reply into the buffer of its request: the JSON may not be longer than QEMU's
/// own, so it holds the two keys that matter. It must not offer `write_multiple`: QEMU's flag for it
/// also contains the one that makes every send queued.
pub(crate) fn payload() -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(MAJOR.to_ne_bytes());
    payload.extend(MINOR.to_ne_bytes());
    let json = format!(
        r#"{{"capabilities":{{"max_msg_fds":{MAX_FDS},"max_data_xfer_size":{MAX_DATA}}}}}"#
    );
    payload.extend(json.as_bytes());
    payload.push(0);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 10.2 sends, with its own spacing.
    const QEMU: &[u8] =
        b"{\"capabilities\": {\"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \
        \"max_dma_maps\": 65535, \"pgsizes\": 4096, \"migration\": {\"pgsize\": 4096, \
        \"max_bitmap_size\": 268435456}, \"write_multiple\": true}}\0";

    fn version(minor: u16, data: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 0];
        payload.extend(minor.to_ne_bytes());
        payload.extend(data);
        payload
    }

    #[test]
    fn the_reply_fits_the_buffer_of_qemus_request() {
        assert!(payload().len() <= 4 + QEMU.len());
        let ours = parse(&payload()).unwrap();
        assert_eq!((ours.major, ours.minor), (0, 0));
        assert_eq!((ours.max_msg_fds, ours.max_data_xfer_size), (8, 1 << 20));
        assert!(!ours.write_multiple);
    }

    #[test]
    fn qemus_capabilities_are_understood() {
        let qemu = parse(&version(0, QEMU)).unwrap();
        assert_eq!(qemu.max_msg_fds, 16);
        assert!(qemu.write_multiple);
    }

    #[test]
    fn what_a_client_leaves_out_has_the_default_of_the_specification() {
        for data in [&b""[..], b"{}\0", b"{\"capabilities\":{\"other\":[]}}\0"] {
            let peer = parse(&version(7, data)).unwrap();
            assert_eq!((peer.minor, peer.max_msg_fds), (7, 1));
            assert_eq!(peer.max_data_xfer_size, 1 << 20);
        }
    }

    #[test]
    fn version_data_that_is_malformed_is_refused() {
        let refused = |payload: &[u8]| parse(payload).unwrap_err();
        assert_eq!(refused(&[0, 0, 0]), VersionError::Short);
        assert_eq!(refused(&[1, 0, 0, 0]), VersionError::Major(1));
        assert_eq!(refused(&version(0, b"{}")), VersionError::NoNul);
        let deep = [&[b'['; 3000][..], b"\0"].concat();
        for data in [&b"{\0"[..], b"\0", b"\xff\0", b"{}\0\0", &deep] {
            assert_eq!(refused(&version(0, data)), VersionError::NotJson);
        }
        for value in ["-1", "\"8\"", "1.5", "99999999999999999999"] {
            let data = format!("{{\"capabilities\":{{\"max_msg_fds\":{value}}}}}\0");
            let refused = refused(&version(0, data.as_bytes()));
            assert_eq!(refused, VersionError::Capability("max_msg_fds"));
        }
        let none = b"{\"capabilities\":{\"max_data_xfer_size\":0}}\0";
        assert_eq!(
            refused(&version(0, none)),
            VersionError::Capability("max_data_xfer_size")
        );
    }
}
