use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    recvmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags,
};

use crate::error::Violation;
use crate::wire::{Header, HEADER_SIZE, MAX_FDS, MAX_MESSAGE};

/// Takes messages off a socket: as many bytes as there are in one receive, parsed in place.
///
/// # Which message a descriptor belongs to
///
/// Descriptors travel with the first byte of their message. One receive may return the bytes of
/// several sends, but the kernel ends it with the first send that carried descriptors: it never goes
/// on to the bytes behind them. So descriptors belong to the last message that begins in the bytes
/// they came with; if none begins there, they came in the middle of one, which is a violation. (A
/// peer that puts several messages into one send has its descriptors given to the last of these.)
#[derive(Debug)]
pub(crate) struct Receiver {
    buffer: Vec<u8>,
    /// The unread bytes.
    unread: Range<usize>,
    /// Position in the stream of the buffer's first byte.
    base: u64,
    /// Position in the stream of the last message that has begun.
    begun: u64,
    /// Descriptors that arrived, by the position of their message.
    descriptors: VecDeque<(u64, Vec<OwnedFd>)>,
    limit: usize,
}

/// A whole message. The payload is where [`Receiver::bytes`] says until the next receive.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Range<usize>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What came of a receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Bytes,
    Nothing,
    Closed,
}

/// A receive into less room than this is not worth its system call. Room enough for most clients, who
/// wait for the reply to each message.
const LITTLE: usize = 4 << 10;
/// Room for those who send in bursts; longer messages make it grow.
const READ_AHEAD: usize = 64 << 10;

impl Receiver {
    /// Accepts messages up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: vec![0; LITTLE],
            unread: 0..0,
            base: 0,
            begun: 0,
            descriptors: VecDeque::new(),
            limit,
        }
    }

    /// Accepts messages up to the protocol's limit from now on.
    pub(crate) fn lift_limit(&mut self) {
        self.limit = MAX_MESSAGE;
    }

    /// Bytes of a frame's payload.
    pub(crate) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// True if bytes are waiting that no [`Receiver::next`] has taken.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Takes the next message, if the whole of it is here.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Violation> {
        let Some(header) = Header::parse(self.bytes(&self.unread)) else {
            return Ok(None);
        };
        let size = self.admit(header.size)?;
        if self.unread.len() < size {
            return Ok(None);
        }
        let position = self.position(self.unread.start);
        let mut fds = Vec::new();
        if self
            .descriptors
            .front()
            .is_some_and(|(at, _)| *at <= position)
        {
            fds = self
                .descriptors
                .pop_front()
                .map(|(_, fds)| fds)
                .unwrap_or_default();
        }
        let payload = self.unread.start + HEADER_SIZE..self.unread.start + size;
        self.unread.start = payload.end;
        Ok(Some(Frame {
            header,
            payload,
            fds,
        }))
    }

    /// Receives once. With `wait`, waits for bytes as long as the socket is set to.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        wait: bool,
    ) -> Result<Received, Violation> {
        self.make_room();
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = &mut self.buffer[self.unread.end..];
        let received = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, flags);
        let RecvMsg { bytes, flags, .. } = match received {
            Ok(received) => received,
            Err(Errno::INTR) => return self.receive(socket, wait),
            // ENOBUFS and ENOMEM pass; the caller comes back.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Ok(Received::Nothing),
            Err(_) => return Ok(Received::Closed),
        };
        // Owned from here on: whatever happens next, they are closed.
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(Violation::DescriptorsLost);
        }
        if bytes == 0 {
            return Ok(Received::Closed);
        }
        let first = self.position(self.unread.end);
        self.unread.end += bytes;
        self.find_begun();
        if !fds.is_empty() {
            if self.begun < first {
                return Err(Violation::StrayDescriptors);
            }
            self.descriptors.push_back((self.begun, fds));
        }
        Ok(Received::Bytes)
    }

    fn position(&self, index: usize) -> u64 {
        self.base + index as u64
    }

    fn admit(&self, size: u32) -> Result<usize, Violation> {
        let bytes = size as usize;
        if bytes < HEADER_SIZE {
            return Err(Violation::ShorterThanHeader { size });
        }
        if bytes > self.limit {
            let limit = self.limit;
            return Err(Violation::TooLong { size, limit });
        }
        Ok(bytes)
    }

    /// Moves `begun` to the last message that has at least one byte here. A size that cannot be is
    /// left for `next` to find.
    fn find_begun(&mut self) {
        let end = self.position(self.unread.end);
        loop {
            let at = (self.begun.saturating_sub(self.base)) as usize;
            let Some(header) = Header::parse(self.bytes(&(at..self.unread.end))) else {
                return;
            };
            match self.admit(header.size) {
                Ok(size) if self.begun + (size as u64) < end => self.begun += size as u64,
                _ => return,
            }
        }
    }

    /// Makes room for the rest of the message that has begun, and for a good read-ahead once the
    /// client has sent more than there was room for.
    fn make_room(&mut self) {
        let unread = self.unread.len();
        let filled = self.unread.end == self.buffer.len();
        let wanted = Header::parse(self.bytes(&self.unread))
            .and_then(|header| self.admit(header.size).ok())
            .unwrap_or(HEADER_SIZE)
            .max(unread + 1)
            .max(if filled { READ_AHEAD } else { 0 });
        let tail = self.buffer.len() - self.unread.end;
        if unread == 0 || tail < LITTLE || self.unread.start + wanted > self.buffer.len() {
            // `begun` may name a message that was already taken whole; nothing before the unread
            // bytes is looked at again except its header's size, so take the step now.
            self.begun = self.begun.max(self.position(self.unread.start));
            self.buffer.copy_within(self.unread.clone(), 0);
            self.base += self.unread.start as u64;
            self.unread = 0..unread;
        }
        if self.buffer.len() < wanted {
            let len = wanted.next_power_of_two().min(self.limit).max(wanted);
            self.buffer.resize(len, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::wire::{Command, NO_REPLY};

    #[test]
    fn a_client_that_sends_more_than_there_is_room_for_gets_a_read_ahead() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::new(MAX_MESSAGE);
        let mut header = Header::command(1, Command::RESET, 0);
        header.flags |= NO_REPLY;
        let message = header.encode();
        let mut send = |count: usize| client.write_all(&message.repeat(count)).unwrap();
        let mut receive = || {
            let received = receiver.receive(server.as_fd(), false).unwrap();
            assert_eq!(received, Received::Bytes);
            std::iter::from_fn(|| receiver.next().unwrap()).count()
        };
        let room = LITTLE / HEADER_SIZE;
        send(room);
        assert_eq!(receive(), room);
        send(3 * room);
        assert_eq!(receive(), 3 * room);
    }
}
