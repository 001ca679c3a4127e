use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::wire::MAX_SENT_FDS;
use crate::{Error, Result};

/// The socket file is for its owner and its group: whoever may connect drives the device.
const MODE: u32 = 0o660;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Sends bytes, with descriptors on the first of them; returns how many went. Never raises SIGPIPE.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> rustix::io::Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, !wait);
    let sent = if fds.is_empty() {
        rustix::net::send(socket, bytes, flags)
    } else {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
    };
    match sent {
        Err(Errno::INTR) => send(socket, bytes, fds, wait),
        sent => sent,
    }
}

pub(crate) fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A listening socket, and its file as long as it is there.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file that nobody listens on is replaced; one in use, or a file of
    /// another kind, is left alone and an error.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(|_| Error::PathTooLong {
            path: path.to_owned(),
        })?;
        remove_stale(path, &address)?;
        let socket = stream_socket().map_err(Error::io("Creating a socket"))?;
        // Before bind, the mode of the socket becomes that of the file, less the umask: at no time
        // is the file open to more users than it will be.
        rustix::fs::fchmod(&socket, Mode::from_bits_truncate(MODE))
            .map_err(Error::io("Setting the mode of a socket"))?;
        rustix::net::bind(&socket, &address).map_err(|errno| match errno {
            Errno::ADDRINUSE => Error::SocketInUse {
                path: path.to_owned(),
            },
            errno => Error::io("Binding the server's socket")(errno),
        })?;
        let mut listener = Self {
            socket,
            path: path.to_owned(),
            identity: (0, 0),
        };
        let file = std::fs::symlink_metadata(path).map_err(Error::io("Reading a socket file"))?;
        listener.identity = (file.dev(), file.ino());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
            .map_err(Error::io("Setting the mode of a socket file"))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(Error::io("Listening"))?;
        rustix::io::ioctl_fionbio(&listener.socket, true).map_err(Error::io("Listening"))?;
        Ok(listener)
    }

    pub(crate) fn accept(&self) -> rustix::io::Result<OwnedFd> {
        rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    /// Removes the file, unless somebody has put another one in its place.
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            if let Err(error) = std::fs::remove_file(&self.path) {
                log::warn!("Removing {} failed: {error}", self.path.display());
            }
        }
    }
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("Looking for a socket file")(source)),
    };
    let path = path.to_owned();
    if !file.file_type().is_socket() {
        return Err(Error::NotASocket { path });
    }
    let probe = stream_socket().map_err(Error::io("Creating a socket"))?;
    // A full backlog of a live server must not make us wait: EAGAIN instead.
    rustix::io::ioctl_fionbio(&probe, true).map_err(Error::io("Creating a socket"))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(&path).map_err(Error::io("Removing a stale socket file"))
        }
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => Err(Error::SocketInUse { path }),
        Err(errno) => Err(Error::io("Trying a socket file that exists")(errno)),
    }
}
