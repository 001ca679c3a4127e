//! The one client of all servers: as little as can be between its clock and the socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use retrovf_vfio_user::wire::{Command, Header, RegionAccess, ACCESS_SIZE, HEADER_SIZE, NO_REPLY};

use crate::Result;

/// A write of 2 bytes to Queue Notify, and its reply.
pub(crate) const NOTIFY_SIZE: usize = HEADER_SIZE + ACCESS_SIZE + 2;
pub(crate) const REPLY_SIZE: usize = HEADER_SIZE + ACCESS_SIZE;

const QUEUE_NOTIFY: u64 = 16;
const PCI_COMMAND: u64 = 4;
const CONFIG: u32 = 7;

pub(crate) struct Notifier {
    stream: UnixStream,
    notify: [u8; NOTIFY_SIZE],
    posted: Vec<u8>,
    /// Looks at the socket without sleeping until something is there.
    busy: bool,
}

impl Notifier {
    /// Connects, agrees on a version, and lets the device decode I/O.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let mut notifier = Self::raw(UnixStream::connect(path)?);
        let json = b"{\"capabilities\":{\"max_msg_fds\":1}}\0";
        let mut payload = vec![0, 0, 0, 0];
        payload.extend(json);
        notifier.exchange(Command::VERSION, &payload)?;
        notifier.write(CONFIG, PCI_COMMAND, &[7, 0])?;
        Ok(notifier)
    }

    /// Over a socket whose other end needs no greeting.
    pub(crate) fn raw(stream: UnixStream) -> Self {
        let message = |flags| {
            let access = RegionAccess {
                offset: QUEUE_NOTIFY,
                region: 0,
                count: 2,
            };
            let mut header = Header::command(1, Command::REGION_WRITE, ACCESS_SIZE + 2);
            header.flags |= flags;
            let mut bytes = [0; NOTIFY_SIZE];
            let parts = header.encode().into_iter().chain(access.encode());
            bytes
                .iter_mut()
                .zip(parts)
                .for_each(|(byte, part)| *byte = part);
            bytes
        };
        Self {
            stream,
            notify: message(0),
            posted: message(NO_REPLY).repeat(BATCH),
            busy: false,
        }
    }

    pub(crate) fn spin(mut self) -> Result<Self> {
        self.stream.set_nonblocking(true)?;
        self.busy = true;
        Ok(self)
    }

    /// Rings queue 0 and waits for the reply.
    pub(crate) fn round_trip(&mut self) -> Result<Duration> {
        let mut reply = [0; REPLY_SIZE];
        let start = Instant::now();
        self.stream.write_all(&self.notify)?;
        if self.busy {
            let mut have = 0;
            while have < reply.len() {
                match self.stream.read(&mut reply[have..]) {
                    Ok(0) => return Err("the server has left".into()),
                    Ok(n) => have += n,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        } else {
            self.stream.read_exact(&mut reply)?;
        }
        let elapsed = start.elapsed();
        refuse_error(&reply)?;
        Ok(elapsed)
    }

    /// Rings queue 0, and waits for nothing.
    pub(crate) fn post(&mut self) -> Result<()> {
        let message = self.posted.get(..NOTIFY_SIZE).unwrap_or_default();
        Ok(self.stream.write_all(message)?)
    }

    /// Rings queue 0 [`BATCH`] times in one send without replies, then once with: the time of all.
    pub(crate) fn posted(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.stream.write_all(&self.posted)?;
        self.round_trip()?;
        Ok(start.elapsed())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let count = data.len() as u32;
        let access = RegionAccess {
            offset,
            region,
            count,
        };
        self.exchange(Command::REGION_WRITE, &[&access.encode(), data].concat())
    }

    fn exchange(&mut self, command: Command, payload: &[u8]) -> Result<()> {
        let header = Header::command(0, command, payload.len());
        self.stream
            .write_all(&[&header.encode(), payload].concat())?;
        let mut reply = [0; HEADER_SIZE];
        self.stream.read_exact(&mut reply)?;
        refuse_error(&reply)?;
        let size = Header::parse(&reply).map_or(0, |header| header.size as usize);
        let rest = size.saturating_sub(HEADER_SIZE).min(1 << 16);
        self.stream.read_exact(&mut vec![0; rest])?;
        Ok(())
    }
}

/// Posted writes in one send.
pub(crate) const BATCH: usize = 32;

/// A contender that answers with an error would win any race.
fn refuse_error(reply: &[u8]) -> Result<()> {
    match Header::parse(reply) {
        Some(header) if header.error == 0 && header.is_reply() => Ok(()),
        other => Err(format!("the server refuses: {other:?}").into()),
    }
}
