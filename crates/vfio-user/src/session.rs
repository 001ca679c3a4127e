use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{set_socket_timeout, Timeout};

use crate::commands::{Outcome, Reply};
use crate::counters::count;
use crate::device::ServedDevice;
use crate::error::Violation;
use crate::io_fds::IoFds;
use crate::link::Link;
use crate::memory::MemoryFiles;
use crate::receiver::{Frame, Received, Receiver};
use crate::server::EventHandler;
use crate::version::PeerVersion;
use crate::wire::{Command, Header, RegionAccess, HEADER_SIZE, NO_REPLY};
use crate::ServerEvent;

/// Bytes of commands that may wait behind a control access; then nothing more is received.
const MAX_PARKED: usize = 4 << 20;

/// One client's connection, after the handshake: reads the socket and carries out its commands, in
/// order, on a thread of its own.
///
/// While nothing is under way the thread blocks in `recvmsg` itself, so that a kick costs two system
/// calls here: receive and reply; also behind a control access, whose time limits the receive. It
/// polls instead while something else can happen: messages that wait for a control access, or output
/// that the client does not read.
///
/// Requests of the device's threads to the client are no reason to poll. QEMU has memory that is
/// reached by them (ROMs come without a file), and would have each kick take one more system call.
/// Whoever calls flushes its own request ([`Link`]); what is left of one that was given up goes out
/// when the limited receive ends.
pub(crate) struct Session {
    pub(crate) receiver: Receiver,
    pub(crate) core: Core,
}

/// The session but for its receiver, whose bytes the commands look at.
pub(crate) struct Core {
    pub(crate) device: Arc<ServedDevice>,
    pub(crate) link: Arc<Link>,
    pub(crate) peer: PeerVersion,
    pub(crate) timing: Timing,
    pub(crate) on_event: EventHandler,
    /// The control access under way: id, deadline, what it is, and whether it writes.
    pub(crate) pending: Option<(u64, Instant, RegionAccess, bool)>,
    /// What waits behind it.
    pub(crate) parked: VecDeque<Work>,
    parked_bytes: usize,
    pub(crate) io_fds: IoFds,
    pub(crate) files: MemoryFiles,
    /// A receive that waits ends after the time of a control access.
    limited: bool,
    /// The client has mapped memory that is reached by messages: there may be output that the session
    /// has not sent.
    pub(crate) remote_memory: bool,
    /// The client has mapped memory that is reached by a file.
    pub(crate) shares_memory: bool,
    /// The operator was told that the device cannot reach the client's memory.
    pub(crate) complained: bool,
    /// The reply under construction: room for the header, then the payload.
    pub(crate) buffer: Vec<u8>,
}

/// How long a session waits, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// For the control plane's answer.
    pub(crate) access: Duration,
    /// Awake, for the next request.
    pub(crate) spin: Duration,
}

/// Something to do when its turn comes.
pub(crate) enum Work {
    /// A command that came while another was under way.
    Message {
        header: Header,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
        arrived: Instant,
    },
    /// A write of REGION_WRITE_MULTI.
    Write {
        access: RegionAccess,
        data: [u8; 8],
        arrived: Instant,
    },
    /// The end of a REGION_WRITE_MULTI.
    MultiDone { header: Header, count: u64 },
}

impl Session {
    pub(crate) fn new(
        device: Arc<ServedDevice>,
        link: Arc<Link>,
        receiver: Receiver,
        peer: PeerVersion,
        timing: Timing,
        on_event: EventHandler,
    ) -> Self {
        let core = Core {
            device,
            link,
            peer,
            timing,
            on_event,
            pending: None,
            parked: VecDeque::new(),
            parked_bytes: 0,
            io_fds: IoFds::default(),
            files: MemoryFiles::default(),
            limited: false,
            remote_memory: false,
            shares_memory: false,
            complained: false,
            buffer: Vec::new(),
        };
        Self { receiver, core }
    }

    /// Serves until the connection ends, and takes from the device what the client gave it.
    pub(crate) fn run(mut self) {
        self.core.link.adopt();
        count(&self.core.device.counters.sessions);
        (self.core.on_event)(ServerEvent::ClientConnected);
        let reason = match self.serve() {
            Ok(()) => "the connection was closed".to_owned(),
            Err(violation) => {
                count(&self.core.device.counters.protocol_errors);
                let detail = violation.to_string();
                (self.core.on_event)(ServerEvent::ProtocolError {
                    detail: detail.clone(),
                });
                detail
            }
        };
        let core = self.core;
        core.link.output.close();
        // Before the device is touched: its threads may be waiting for this client.
        core.link.close();
        core.device.release();
        drop(core.io_fds);
        (core.on_event)(ServerEvent::ClientDisconnected { reason });
    }

    fn serve(&mut self) -> Result<(), Violation> {
        loop {
            let Self { receiver, core } = self;
            core.link.output.flush();
            core.expire();
            while !core.busy() {
                let Some(work) = core.parked.pop_front() else {
                    break;
                };
                core.carry_out(work);
            }
            while core.parked_bytes <= MAX_PARKED {
                let Some(frame) = receiver.next()? else {
                    break;
                };
                core.take(receiver, frame);
            }
            if !self.wait()? {
                return Ok(());
            }
        }
    }

    /// Waits for something to do; false when the connection has ended.
    fn wait(&mut self) -> Result<bool, Violation> {
        let Self { receiver, core } = self;
        let open = |received| received != Received::Closed;
        let busy = core.busy();
        if !busy && !core.parked.is_empty() {
            return Ok(true);
        }
        if !busy && (!core.remote_memory || core.limit_receive(true)) {
            let socket = core.link.output.socket();
            let received = match core.timing.spin {
                Duration::ZERO => receiver.receive(socket, true),
                spin => look(receiver, socket, spin),
            };
            if received == Ok(Received::Nothing) && !core.remote_memory {
                // Nobody waits for a time to pass: an idle session sleeps for good.
                core.limit_receive(false);
            }
            return received.map(open);
        }
        if core.may_await_next(receiver) && core.limit_receive(true) {
            return receiver.receive(core.link.output.socket(), true).map(open);
        }
        let output = &core.link.output;
        let mut deadline = None;
        if let Some((id, at, ..)) = core.pending {
            deadline = Some(at);
            let waits = !core.parked.is_empty() || receiver.has_unread();
            if waits && !core.device.control.wake_when_done(id) {
                return Ok(true);
            }
        }
        let may_read = core.parked_bytes <= MAX_PARKED;
        let mut interest = PollFlags::RDHUP;
        interest.set(PollFlags::IN, may_read);
        interest.set(PollFlags::OUT, output.waiting());
        let mut ready = [
            PollFd::from_borrowed_fd(output.socket(), interest),
            PollFd::from_borrowed_fd(output.wake_fd(), PollFlags::IN),
        ];
        let timeout = deadline.map(timespec_until);
        if poll(&mut ready, timeout.as_ref()).is_err() {
            return Ok(true);
        }
        let [socket, wake] = ready.map(|fd| fd.revents());
        if !wake.is_empty() {
            output.drain_wake();
        }
        let ended = socket.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
        if may_read && (ended || socket.contains(PollFlags::IN)) {
            return receiver.receive(output.socket(), false).map(open);
        }
        Ok(!ended)
    }
}

/// Looks for bytes for some time, then waits for them. Ends like any receive when the socket is shut.
fn look(
    receiver: &mut Receiver,
    socket: BorrowedFd<'_>,
    spin: Duration,
) -> Result<Received, Violation> {
    let until = Instant::now() + spin;
    loop {
        match receiver.receive(socket, false)? {
            Received::Nothing if Instant::now() < until => std::hint::spin_loop(),
            Received::Nothing => return receiver.receive(socket, true),
            received => return Ok(received),
        }
    }
}

/// The time left until `deadline`, rounded up so that a poll does not end just before it.
pub(crate) fn timespec_until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(1);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

impl Core {
    /// True while no further command may be carried out: a control access is under way, or the client
    /// has to read its replies first.
    fn busy(&mut self) -> bool {
        let control = &self.device.control;
        self.pending = self.pending.take_if(|(id, ..)| control.is_pending(*id));
        self.pending.is_some() || self.link.output.waiting()
    }

    /// True if all there is to wait for is the client's next message, which comes after the answer to
    /// its control access, or the end of that access's time. A receive can wait for both: one system
    /// call where a poll takes two, a tenth of the time of an access.
    ///
    /// It does not notice if the answer finds the socket full; that is flushed when the time is over.
    fn may_await_next(&self, receiver: &Receiver) -> bool {
        // The time of a command that was parked has begun earlier.
        let all_time = |at: Instant| at + SLACK >= Instant::now() + self.timing.access;
        self.pending.is_some_and(|(_, at, ..)| all_time(at))
            && self.parked.is_empty()
            && !receiver.has_unread()
            && !self.link.output.waiting()
    }

    /// Makes a receive end after the time of a control access, or never; false if that fails.
    fn limit_receive(&mut self, limited: bool) -> bool {
        if self.limited != limited {
            let time = limited.then_some(self.timing.access);
            match set_socket_timeout(self.link.output.socket(), Timeout::Recv, time) {
                Ok(()) => self.limited = limited,
                Err(errno) => log::error!("Setting a socket's timeout: {errno}"),
            }
        }
        self.limited == limited
    }

    /// A message from the socket: carried out now, or parked.
    fn take(&mut self, receiver: &Receiver, frame: Frame) {
        let Frame {
            header,
            payload,
            fds,
        } = frame;
        let payload = receiver.bytes(&payload);
        if header.is_reply() {
            // Ours to wait for, whatever else is under way.
            return self.link.route(header, payload);
        }
        if self.parked.is_empty() && !self.busy() {
            return self.run(&header, payload, fds, None);
        }
        // The struct and the descriptors count too, or empty messages would be free.
        self.parked_bytes += payload.len() + PARKED_OVERHEAD;
        self.parked.push_back(Work::Message {
            header,
            payload: payload.to_vec(),
            fds,
            arrived: Instant::now(),
        });
    }

    /// Something that was parked.
    fn carry_out(&mut self, work: Work) {
        match work {
            Work::Message {
                header,
                payload,
                fds,
                arrived,
            } => {
                self.parked_bytes -= payload.len() + PARKED_OVERHEAD;
                self.run(&header, &payload, fds, Some(arrived));
            }
            Work::Write {
                access,
                data,
                arrived,
            } => {
                let mut header = Header::command(0, Command::REGION_WRITE, 0);
                header.flags |= NO_REPLY;
                let data = data.get(..access.count as usize).unwrap_or_default();
                let outcome = self.write_region(&header, &access, data, Some(arrived));
                self.finish(&header, outcome);
            }
            Work::MultiDone { header, count } => {
                self.reply(count.to_ne_bytes());
                self.finish(&header, Ok(Reply::Payload));
            }
        }
    }

    fn run(
        &mut self,
        header: &Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        arrived: Option<Instant>,
    ) {
        let outcome = self.command(header, payload, fds, arrived);
        self.finish(header, outcome);
    }

    /// Sends what is to be sent.
    fn finish(&mut self, header: &Header, outcome: Outcome) {
        match outcome {
            Ok(Reply::Elsewhere) => {}
            Ok(Reply::Payload) => self.send_reply(header, &[]),
            Ok(Reply::Header) => {
                if !header.no_reply() {
                    self.link.output.send(&header.reply(0).encode());
                }
            }
            Err(errno) => {
                log::debug!("{} is answered with errno {errno}", header.command);
                if !header.no_reply() {
                    self.link.output.send(&header.error_reply(errno).encode());
                }
            }
        }
    }

    /// Puts a reply's payload together.
    pub(crate) fn reply(&mut self, payload: impl IntoIterator<Item = u8>) {
        self.buffer.clear();
        self.buffer.resize(HEADER_SIZE, 0);
        self.buffer.extend(payload);
    }

    /// Sends the payload that was put together.
    pub(crate) fn send_reply(&mut self, header: &Header, fds: &[Arc<OwnedFd>]) {
        if header.no_reply() {
            return;
        }
        let reply = header.reply(self.buffer.len().saturating_sub(HEADER_SIZE));
        if let Some(head) = self.buffer.first_chunk_mut() {
            *head = reply.encode();
        }
        self.link.output.send_with_fds(&self.buffer, fds);
    }

    /// Answers a control access whose time is over.
    fn expire(&mut self) {
        let Some((id, deadline, access, write)) = self.pending else {
            return;
        };
        if Instant::now() < deadline {
            return;
        }
        self.pending = None;
        if self.device.control.expire(id, &self.device.counters) {
            (self.on_event)(ServerEvent::AccessTimeout {
                offset: access.offset,
                length: access.count,
                write,
            });
        }
    }
}

/// How much later than in time a control access may be answered that nobody has answered.
const SLACK: Duration = Duration::from_millis(5);
/// What a parked message is charged beside its payload.
const PARKED_OVERHEAD: usize = 256;
