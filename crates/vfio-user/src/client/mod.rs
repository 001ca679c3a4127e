mod commands;
mod types;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::SocketAddrUnix;

use crate::receiver::{Frame, Received, Receiver};
use crate::session::timespec_until;
use crate::socket::{send, stream_socket};
use crate::version::{parse, payload, PeerVersion};
use crate::wire::*;
use crate::ClientError;

pub use types::{
    ClientIrqInfo, ClientMemory, ClientOptions, ClientRegionInfo, DeviceInfo, IoFd, RawMessage,
};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// A vfio-user client: one connection, used from one thread at a time, one command at a time.
///
/// Small region accesses allocate nothing.
pub struct Client {
    socket: OwnedFd,
    receiver: Receiver,
    options: ClientOptions,
    version: PeerVersion,
    last_id: u16,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("version", &self.version)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl AsFd for Client {
    /// The socket, to wait on for requests of the server (see [`Client::serve`]).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(path: impl AsRef<Path>, options: ClientOptions) -> Result<Self> {
        let mut client = Self::connect_raw(path, options)?;
        let reply = client.call(Command::VERSION, &payload(), &[])?;
        let version = parse(client.receiver.bytes(&reply.payload));
        client.version = version.map_err(ClientError::protocol)?;
        Ok(client)
    }

    /// Connects without a word, for tests of what a server does then.
    pub fn connect_raw(path: impl AsRef<Path>, options: ClientOptions) -> Result<Self> {
        let path = path.as_ref();
        let connect = || {
            let address = SocketAddrUnix::new(path)?;
            let socket = stream_socket()?;
            rustix::net::connect(&socket, &address)?;
            for direction in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&socket, direction, Some(options.timeout))?;
            }
            Ok(socket)
        };
        let socket = connect().map_err(|source: rustix::io::Errno| ClientError::Connect {
            path: path.to_owned(),
            source: source.into(),
        })?;
        Ok(Self {
            socket,
            receiver: Receiver::new(MAX_MESSAGE),
            options,
            version: PeerVersion {
                major: 0,
                minor: 0,
                max_msg_fds: 1,
                max_data_xfer_size: MAX_DATA,
                write_multiple: false,
            },
            last_id: 0,
        })
    }

    /// What the server said in VERSION.
    pub fn version(&self) -> &PeerVersion {
        &self.version
    }

    /// Serves the server's requests for memory until `timeout` has passed; for a client that waits
    /// for an interrupt rather than for an answer.
    pub fn serve(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(frame) = self.receiver.next().map_err(ClientError::protocol)? {
                self.request(&frame)?;
            }
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut ready, Some(&timespec_until(deadline))) {
                Ok(0) => return Ok(()),
                Ok(_) => match self.receiver.receive(self.socket.as_fd(), false) {
                    Ok(Received::Closed) => return Err(ClientError::Closed),
                    Ok(_) => {}
                    Err(violation) => return Err(ClientError::protocol(violation)),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(ClientError::io("Waiting for the server")(errno)),
            }
        }
    }

    /// Sends any bytes, for tests of what a server does with them.
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.transmit(bytes, fds)
    }

    /// Receives the next message, whatever it is.
    pub fn receive_raw(&mut self) -> Result<RawMessage> {
        let frame = self.frame(Command(0))?;
        Ok(RawMessage {
            header: frame.header,
            payload: self.receiver.bytes(&frame.payload).to_vec(),
            fds: frame.fds,
        })
    }

    fn header(&mut self, command: Command, payload: usize) -> Header {
        self.last_id = self.last_id.wrapping_add(1);
        Header::command(self.last_id, command, payload)
    }

    fn call(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Frame> {
        let header = self.header(command, payload.len());
        self.transmit(&[&header.encode(), payload].concat(), fds)?;
        self.answer(&header)
    }

    fn transmit(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut fds = fds;
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(self.socket.as_fd(), rest, fds, true) {
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    fds = &[];
                }
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(ClientError::Closed)
                }
                Err(errno) => return Err(ClientError::io("Sending to the server")(errno)),
            }
        }
        Ok(())
    }

    /// Waits for the reply to a command, serving the server's requests meanwhile.
    fn answer(&mut self, to: &Header) -> Result<Frame> {
        loop {
            let frame = self.frame(to.command)?;
            let header = frame.header;
            if !header.is_reply() {
                self.request(&frame)?;
            } else if header.id != to.id || header.command != to.command {
                // A reply to a command that was given up.
                log::debug!("A reply to {} came late", header.command);
            } else if header.flags & ERROR != 0 {
                return Err(ClientError::Refused {
                    command: to.command,
                    errno: i32::try_from(header.error).unwrap_or(libc::EIO),
                });
            } else {
                return Ok(frame);
            }
        }
    }

    fn frame(&mut self, command: Command) -> Result<Frame> {
        loop {
            if let Some(frame) = self.receiver.next().map_err(ClientError::protocol)? {
                return Ok(frame);
            }
            match self.receiver.receive(self.socket.as_fd(), true) {
                Ok(Received::Bytes) => {}
                // The socket's own timeout.
                Ok(Received::Nothing) => return Err(ClientError::TimedOut { command }),
                Ok(Received::Closed) => return Err(ClientError::Closed),
                Err(violation) => return Err(ClientError::protocol(violation)),
            }
        }
    }

    /// A request of the server: DMA_READ or DMA_WRITE.
    fn request(&mut self, frame: &Frame) -> Result<()> {
        let header = frame.header;
        let payload = self.receiver.bytes(&frame.payload);
        let address = u64_at(payload, 0).unwrap_or(0);
        let count = u64_at(payload, 8).and_then(|count| usize::try_from(count).ok());
        let data = payload.get(ACCESS_SIZE..).unwrap_or_default();
        let head = payload.get(..ACCESS_SIZE).unwrap_or_default();
        let memory = self.options.memory.as_deref();
        let answer = match (header.command, memory, count) {
            (Command::DMA_READ, Some(memory), Some(count)) if count <= MAX_DATA => {
                let mut answer = head.to_vec();
                answer.resize(ACCESS_SIZE + count, 0);
                let out = answer.get_mut(ACCESS_SIZE..).unwrap_or_default();
                memory
                    .read(address, out)
                    .then_some(answer)
                    .ok_or(libc::EFAULT)
            }
            (Command::DMA_WRITE, Some(memory), Some(count)) if count == data.len() => {
                let done = memory.write(address, data);
                done.then(|| head.to_vec()).ok_or(libc::EFAULT)
            }
            (Command::DMA_READ | Command::DMA_WRITE, ..) => Err(libc::EINVAL),
            _ => Err(libc::ENOSYS),
        };
        if header.no_reply() {
            return Ok(());
        }
        let reply = match answer {
            Ok(answer) => [&header.reply(answer.len()).encode(), answer.as_slice()].concat(),
            Err(errno) => header.error_reply(errno).encode().to_vec(),
        };
        self.transmit(&reply, &[])
    }
}
