use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::counters::count;
use crate::device::ServedDevice;
use crate::link::Link;
use crate::output::Output;
use crate::receiver::{Received, Receiver};
use crate::server::{Closing, EventHandler, STACK};
use crate::session::{timespec_until, Session, Timing};
use crate::socket::{send, Listener};
use crate::version::{negotiate, payload, PeerVersion, MAX_VERSION_MESSAGE};
use crate::wire::Header;
use crate::ServerEvent;

/// The server's own thread: accepts connections, does their handshakes (without ever waiting for one
/// of them), and starts a session thread for the one client that may be served.
pub(crate) struct Acceptor {
    listener: Listener,
    closing: Arc<Closing>,
    device: Arc<ServedDevice>,
    timing: Timing,
    on_event: EventHandler,
    candidates: Vec<Candidate>,
    session: Option<Running>,
    /// Set when no connection could be accepted for want of descriptors or memory.
    pause: Option<Instant>,
}

/// A connection whose handshake is not over.
struct Candidate {
    socket: OwnedFd,
    receiver: Receiver,
    deadline: Instant,
    /// Its VERSION is good and it waits for the session before it to end.
    ready: Option<(Header, PeerVersion)>,
}

struct Running {
    link: Arc<Link>,
    thread: JoinHandle<()>,
    ended: Arc<AtomicBool>,
}

/// How long a client may take for VERSION.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that may be in their handshake; one more pushes out the oldest.
const MAX_CANDIDATES: usize = 16;
/// How long to leave connections alone when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a candidate.
enum Verdict {
    Wait,
    Drop,
    Refuse(Header, i32),
    Serve,
}

impl Acceptor {
    pub(crate) fn new(
        listener: Listener,
        closing: Arc<Closing>,
        device: Arc<ServedDevice>,
        timing: Timing,
        on_event: EventHandler,
    ) -> Self {
        Self {
            listener,
            closing,
            device,
            timing,
            on_event,
            candidates: Vec::new(),
            session: None,
            pause: None,
        }
    }

    pub(crate) fn run(mut self) {
        while !self.closing.requested() {
            self.wait();
            self.reap();
            self.accept();
            self.look_at_candidates();
        }
        if let Some(session) = &self.session {
            session.link.output.close();
        }
        self.join();
    }

    fn wait(&self) {
        let now = Instant::now();
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::IN, self.pause.is_none_or(|until| until <= now));
        let mut fds = vec![
            PollFd::new(&self.closing.wake, PollFlags::IN),
            PollFd::new(&self.listener, interest),
        ];
        for candidate in &self.candidates {
            // Not of interest any more once it only waits for its turn.
            if candidate.ready.is_none() {
                fds.push(PollFd::new(&candidate.socket, PollFlags::IN));
            }
        }
        let deadlines = self.candidates.iter().map(|candidate| candidate.deadline);
        let next = deadlines.chain(self.pause).min();
        let timeout: Option<Timespec> = next.map(timespec_until);
        // An error leaves everything to be looked at, which is harmless.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(self.closing.wake.as_fd(), &mut [0u8; 8]);
    }

    fn accept(&mut self) {
        if self.pause.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.pause = None;
        loop {
            match self.listener.accept() {
                Ok(socket) => {
                    if self.candidates.len() >= MAX_CANDIDATES {
                        self.candidates.remove(0);
                    }
                    self.candidates.push(Candidate {
                        socket,
                        receiver: Receiver::new(MAX_VERSION_MESSAGE),
                        deadline: Instant::now() + HANDSHAKE_TIMEOUT,
                        ready: None,
                    });
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    log::warn!("Accepting a client failed: {errno}");
                    self.pause = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn look_at_candidates(&mut self) {
        for mut candidate in std::mem::take(&mut self.candidates) {
            match self.verdict(&mut candidate) {
                Verdict::Wait => self.candidates.push(candidate),
                Verdict::Drop => {}
                Verdict::Refuse(header, errno) => {
                    let reply = header.error_reply(errno).encode();
                    // The reply is all that is left to do: a client that does not take it loses it.
                    let _ = send(candidate.socket.as_fd(), &reply, &[], false);
                }
                Verdict::Serve => self.serve(candidate),
            }
        }
    }

    fn verdict(&self, candidate: &mut Candidate) -> Verdict {
        if candidate.ready.is_none() {
            match self.handshake(candidate) {
                Ok(ready) => candidate.ready = ready,
                Err(verdict) => return verdict,
            }
        }
        match (&candidate.ready, &self.session) {
            (Some(_), None) => Verdict::Serve,
            // The client before it may just have left: its successor waits for the clean-up.
            (Some((header, _)), Some(session)) if !session.is_ending() => {
                (self.on_event)(ServerEvent::ClientRefused);
                Verdict::Refuse(*header, libc::EBUSY)
            }
            _ if Instant::now() < candidate.deadline => Verdict::Wait,
            (Some((header, _)), _) => Verdict::Refuse(*header, libc::EBUSY),
            (None, _) => Verdict::Drop,
        }
    }

    /// Takes what the candidate has sent.
    fn handshake(
        &self,
        candidate: &mut Candidate,
    ) -> Result<Option<(Header, PeerVersion)>, Verdict> {
        let violated = |detail: String| {
            count(&self.device.counters.protocol_errors);
            (self.on_event)(ServerEvent::ProtocolError { detail });
        };
        let Candidate {
            socket, receiver, ..
        } = candidate;
        let frame = match receiver.receive(socket.as_fd(), false) {
            Ok(Received::Closed) => return Err(Verdict::Drop),
            Ok(_) => receiver.next(),
            Err(violation) => Err(violation),
        };
        let frame = frame.map_err(|violation| {
            violated(violation.to_string());
            Verdict::Drop
        })?;
        let Some(frame) = frame else {
            return Ok(None);
        };
        let version = negotiate(&frame.header, receiver.bytes(&frame.payload));
        match version {
            Ok(version) => Ok(Some((frame.header, version))),
            Err(error) => {
                violated(error.to_string());
                Err(if frame.header.no_reply() {
                    Verdict::Drop
                } else {
                    Verdict::Refuse(frame.header, libc::EINVAL)
                })
            }
        }
    }

    fn serve(&mut self, candidate: Candidate) {
        let Candidate {
            socket,
            mut receiver,
            ready,
            ..
        } = candidate;
        let Some((header, peer)) = ready else {
            return;
        };
        let output = match Output::new(socket) {
            Ok(output) => output,
            Err(errno) => {
                log::warn!("A client cannot be served: {errno}");
                return;
            }
        };
        let payload = payload();
        let mut reply = header.reply(payload.len()).encode().to_vec();
        reply.extend(payload);
        output.send(&reply);
        receiver.lift_limit();
        let link = Arc::new(Link::new(output, &peer));
        let session = Session::new(
            Arc::clone(&self.device),
            Arc::clone(&link),
            receiver,
            peer,
            self.timing,
            Arc::clone(&self.on_event),
        );
        let ended = Arc::new(AtomicBool::new(false));
        let mark = EndMark {
            ended: Arc::clone(&ended),
            closing: Arc::clone(&self.closing),
        };
        let thread = std::thread::Builder::new()
            .name("vfio-user".into())
            .stack_size(STACK)
            .spawn(move || {
                let _mark = mark;
                session.run();
            });
        match thread {
            Ok(thread) => {
                self.session = Some(Running {
                    link,
                    thread,
                    ended,
                });
            }
            Err(error) => log::warn!("A client cannot be served: {error}"),
        }
    }

    fn reap(&mut self) {
        if self.session.as_ref().is_some_and(Running::has_ended) {
            self.join();
        }
    }

    fn join(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        if session.thread.join().is_err() {
            // The device panicked under the session: what the client gave it must go all the same.
            log::error!("A session ended by a panic");
            session.link.output.close();
            session.link.close();
            self.device.release();
        }
    }
}

impl Running {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// True if the session is over or is about to find out that its client has left.
    fn is_ending(&self) -> bool {
        let mut socket = [PollFd::from_borrowed_fd(
            self.link.output.socket(),
            PollFlags::RDHUP,
        )];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.has_ended() || poll(&mut socket, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// Tells the acceptor that the session's thread is over, however it ended.
struct EndMark {
    ended: Arc<AtomicBool>,
    closing: Arc<Closing>,
}

impl Drop for EndMark {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.closing.wake();
    }
}
