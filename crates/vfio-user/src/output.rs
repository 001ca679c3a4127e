use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::socket::send;
use crate::wire::MAX_MESSAGE;

/// What may wait for a client that does not read. A session takes no further command while anything
/// waits, so this is one large reply and the requests of the device's own threads.
const MAX_BACKLOG: usize = 2 * MAX_MESSAGE;

/// The sending half of a connection, shared by the session, the control plane's threads and the
/// device's: each sends straight to the socket and none ever blocks. What the socket does not take
/// waits here for the session to flush it.
#[derive(Debug)]
pub(crate) struct Output {
    socket: OwnedFd,
    wake: OwnedFd,
    queue: Mutex<Queue>,
    waiting: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    closed: bool,
}

#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<Arc<OwnedFd>>,
}

impl Output {
    pub(crate) fn new(socket: OwnedFd) -> rustix::io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            socket,
            wake,
            queue: Mutex::default(),
            waiting: AtomicBool::new(false),
        })
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Readable when the session should look around.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the session is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(crate) fn drain_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// True while something waits to be flushed.
    pub(crate) fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Sends a whole message.
    pub(crate) fn send(&self, message: &[u8]) {
        self.send_with_fds(message, &[]);
    }

    /// Sends a whole message with descriptors on its first byte.
    pub(crate) fn send_with_fds(&self, message: &[u8], fds: &[Arc<OwnedFd>]) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        let mut sent = 0;
        if queue.chunks.is_empty() {
            match self.send_now(message, fds) {
                Ok(n) if n == message.len() => return,
                Ok(n) => sent = n,
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {}
                Err(errno) => return self.fail(&mut queue, errno),
            }
        }
        queue.bytes += message.len() - sent;
        if queue.bytes > MAX_BACKLOG {
            return self.fail(&mut queue, Errno::NOBUFS);
        }
        queue.chunks.push_back(Chunk {
            bytes: message.get(sent..).unwrap_or_default().to_vec(),
            sent: 0,
            // They went with the first byte, if that has gone.
            fds: if sent > 0 { Vec::new() } else { fds.to_vec() },
        });
        self.waiting.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&self) {
        if !self.waiting() {
            return;
        }
        let mut queue = self.lock();
        while let Some(chunk) = queue.chunks.front_mut() {
            let rest = chunk.bytes.get(chunk.sent..).unwrap_or_default();
            match self.send_now(rest, &chunk.fds) {
                Ok(n) => {
                    chunk.fds.clear();
                    chunk.sent += n;
                    let done = n == rest.len();
                    queue.bytes -= n;
                    if done {
                        queue.chunks.pop_front();
                    }
                }
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return,
                Err(errno) => return self.fail(&mut queue, errno),
            }
        }
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// Ends the connection: the session's receive returns, sends do nothing.
    pub(crate) fn close(&self) {
        self.shut(&mut self.lock());
    }

    fn send_now(&self, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> rustix::io::Result<usize> {
        if fds.is_empty() {
            return send(self.socket.as_fd(), bytes, &[], false);
        }
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        send(self.socket.as_fd(), bytes, &fds, false)
    }

    fn fail(&self, queue: &mut Queue, errno: Errno) {
        log::debug!("Sending to a client failed: {errno}");
        self.shut(queue);
    }

    fn shut(&self, queue: &mut Queue) {
        queue.closed = true;
        queue.chunks.clear();
        queue.bytes = 0;
        self.waiting.store(false, Ordering::Relaxed);
        // Fails only if the peer has left already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.wake();
    }

    // No operation panics half-way, so a poisoned queue is a whole one.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
