//! A UNIX stream socket with QEMU's framing (`-netdev stream`): each frame after its length as a
//! big-endian u32.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    connect, send, socket_with, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::BATCH;
use crate::switch::{Frame, Outlet, Port, Switch, MAX_FRAME};
use crate::sync::{lock, try_lock};
use crate::Error;

/// Where to connect to, and the sending half of the connection.
#[derive(Debug)]
pub(super) struct Peer {
    address: SocketAddrUnix,
    name: String,
    sender: Mutex<Option<Sender>>,
}

impl Peer {
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let address = SocketAddrUnix::new(path).map_err(|_| Error::Config {
            reason: "the uplink's path is too long for a socket",
        })?;
        let name = path.display().to_string();
        Ok(Self {
            address,
            name,
            sender: Mutex::default(),
        })
    }

    fn connect(&self) -> rustix::io::Result<Receiver> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &self.address)?;
        let socket = Arc::new(socket);
        *lock(&self.sender) = Some(Sender {
            socket: Arc::clone(&socket),
            output: Vec::new(),
            sent: 0,
        });
        Ok(Receiver {
            socket,
            input: Vec::new(),
        })
    }

    /// Sends what the socket takes; false if something is left.
    fn send(&self, port: &Port) -> Result<bool, Loss> {
        match &mut *lock(&self.sender) {
            Some(sender) => sender.send(port),
            None => Ok(false),
        }
    }
}

impl Outlet for Peer {
    fn take(&self, port: &Port) -> bool {
        let Some(mut sender) = try_lock(&self.sender) else {
            // Somebody sends, but perhaps not what has come since.
            return false;
        };
        // Without a connection, with a full socket or a failure, the thread has something to do.
        sender
            .as_mut()
            .is_some_and(|sender| sender.send(port) == Ok(true))
    }
}

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Moves frames until the port is stopped, and connects again whenever the peer goes.
pub(super) fn run(peer: &Peer, switch: &Switch, port: &Port) {
    let mut delay = FIRST_DELAY;
    let mut link = None;
    let mut next_try = Instant::now();
    while !port.kicks().stopping() {
        port.kicks().take();
        let Some(open) = &mut link else {
            // Nobody is there to receive them.
            port.drop_lane(0);
            let now = Instant::now();
            if now < next_try {
                port.kicks().sleep(None, Some(next_try - now));
                continue;
            }
            match peer.connect() {
                Ok(new) => {
                    log::info!("The uplink is connected to {}", peer.name);
                    link = Some(new);
                }
                Err(errno) => log::debug!("Connecting to {}: {errno}", peer.name),
            }
            next_try = now + delay;
            delay = (delay * 2).min(LAST_DELAY);
            continue;
        };
        let moved = peer.send(port).and_then(|all| Ok((all, open.receive()?)));
        match moved {
            Ok((all, frames)) => {
                if !frames.is_empty() {
                    delay = FIRST_DELAY;
                }
                switch.forward(port, &frames);
                let mut interest = PollFlags::IN;
                interest.set(PollFlags::OUT, !all);
                port.kicks()
                    .sleep(Some((open.socket.as_fd(), interest)), None);
            }
            Err(reason) => {
                log::warn!("The uplink lost {}: {reason}", peer.name);
                *lock(&peer.sender) = None;
                link = None;
            }
        }
    }
}

/// The receiving half of a connection, with what is half received.
struct Receiver {
    socket: Arc<OwnedFd>,
    input: Vec<u8>,
}

/// The sending half, with what is half sent.
#[derive(Debug)]
struct Sender {
    socket: Arc<OwnedFd>,
    output: Vec<u8>,
    sent: usize,
}

/// Output that is collected before the socket has to take some.
const MAX_OUTPUT: usize = 256 << 10;
const LENGTH: usize = 4;

impl Sender {
    /// Sends what the socket takes; false if something is left.
    fn send(&mut self, port: &Port) -> Result<bool, Loss> {
        loop {
            while self.output.len() - self.sent < MAX_OUTPUT {
                let Some(frame) = port.pop() else {
                    break;
                };
                let length = u32::try_from(frame.len()).unwrap_or(0);
                self.output.extend(length.to_be_bytes());
                self.output.extend_from_slice(&frame);
            }
            let rest = self.output.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.output.clear();
                self.sent = 0;
                return Ok(true);
            }
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.output.drain(..self.sent);
                    self.sent = 0;
                    return Ok(false);
                }
                Err(errno) => return Err(Loss::Failed(errno)),
            }
        }
    }
}

impl Receiver {
    /// Receives some frames, if there are any.
    fn receive(&mut self) -> Result<Vec<Frame>, Loss> {
        let mut frames = Vec::new();
        let mut chunk = [0; 16 << 10];
        while frames.len() < BATCH {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Err(Loss::Closed),
                Ok(n) => {
                    self.input.extend(chunk.iter().take(n));
                    take_frames(&mut self.input, &mut frames)?;
                    if n < chunk.len() {
                        // That was all.
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(Loss::Failed(errno)),
            }
        }
        Ok(frames)
    }
}

/// Moves the whole frames out of `input`, which then holds less than one.
fn take_frames(input: &mut Vec<u8>, frames: &mut Vec<Frame>) -> Result<(), Loss> {
    let mut rest = input.as_slice();
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH>() {
        let length = u32::from_be_bytes(*length);
        let Some(length) = usize::try_from(length).ok().filter(|&n| n <= MAX_FRAME) else {
            return Err(Loss::Length(length));
        };
        let Some((frame, after)) = after.split_at_checked(length) else {
            break;
        };
        frames.push(frame.into());
        rest = after;
    }
    let done = input.len() - rest.len();
    input.drain(..done);
    Ok(())
}

/// Why a connection ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Loss {
    #[error("it closed the connection")]
    Closed,
    #[error("it announced a frame of {0} bytes")]
    Length(u32),
    #[error("{0}")]
    Failed(Errno),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(len: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        bytes.resize(4 + len, 7);
        bytes
    }

    #[test]
    fn frames_are_found_however_the_stream_is_cut() {
        let stream: Vec<u8> = [20, 0, 1500, MAX_FRAME]
            .into_iter()
            .flat_map(framed)
            .collect();
        for cut in [1, 3, 4, 5, 1000, stream.len()] {
            let (mut input, mut frames) = (Vec::new(), Vec::new());
            for part in stream.chunks(cut) {
                input.extend_from_slice(part);
                take_frames(&mut input, &mut frames).unwrap();
            }
            let lengths: Vec<_> = frames.iter().map(|f| f.len()).collect();
            assert_eq!(lengths, [20, 0, 1500, MAX_FRAME], "cut into {cut}");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_connection() {
        let mut input = framed(MAX_FRAME + 1);
        input.truncate(4);
        assert!(take_frames(&mut input, &mut Vec::new()).is_err());
    }
}
