use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use retrovf_pci::{Error, RemoteMemory, Result};

use crate::output::Output;
use crate::version::PeerVersion;
use crate::wire::{u64_at, Command, Header, ACCESS_SIZE, ERROR, MAX_DATA};

/// How long the device waits for one answer of its client. QEMU answers from its main loop, which may
/// be held up by a guest's access that we are answering, for up to a second.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What the threads of the device and of the control plane share with a session: its output, and the
/// requests to the client (DMA_READ, DMA_WRITE) that wait for their replies.
///
/// As [`RemoteMemory`] it is the guest memory of a client that passed no descriptor for it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) output: Output,
    calls: Mutex<Calls>,
    changed: Condvar,
    closed: AtomicBool,
    /// The session's thread: it routes the replies, so it cannot wait for one.
    session: OnceLock<ThreadId>,
    max_data: usize,
    /// QEMU's layout of DMA messages; see [`Link::data_at`].
    packed: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    last_id: u16,
    waiting: HashMap<u16, Call>,
}

#[derive(Debug)]
struct Call {
    command: Command,
    reply: Option<(Header, Vec<u8>)>,
}

/// Between two attempts to send to a client whose socket is full.
const FLUSH: Duration = Duration::from_millis(1);
/// Calls at once; the device has a handful of threads.
const MAX_CALLS: usize = 256;
/// Where the data begins in the payload by the specification, and as QEMU 10.2 has it.
const DATA_AT: usize = ACCESS_SIZE;
const DATA_AT_PACKED: usize = 12;

impl Link {
    pub(crate) fn new(output: Output, peer: &PeerVersion) -> Self {
        Self {
            output,
            calls: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            session: OnceLock::new(),
            max_data: peer.max_data_xfer_size.min(MAX_DATA),
            packed: AtomicBool::new(peer.write_multiple),
        }
    }

    /// Called by the session's thread when it begins.
    pub(crate) fn adopt(&self) {
        let _ = self.session.set(std::thread::current().id());
    }

    /// Fails all calls, now and from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Hands a reply to its caller. One that nobody waits for (any more) is dropped.
    pub(crate) fn route(&self, header: Header, payload: &[u8]) {
        let mut calls = self.lock();
        let call = calls.waiting.get_mut(&header.id);
        match call.filter(|call| call.command == header.command && call.reply.is_none()) {
            Some(call) => {
                call.reply = Some((header, payload.to_vec()));
                self.changed.notify_all();
            }
            None => log::debug!("A reply to {} came unasked or too late", header.command),
        }
    }

    /// Sends a request and waits for its reply's payload.
    fn call(&self, command: Command, payload: &[u8], cancel: &AtomicBool) -> Option<Vec<u8>> {
        if self.session.get() == Some(&std::thread::current().id()) {
            return None;
        }
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut calls = self.lock();
        if calls.waiting.len() >= MAX_CALLS {
            return None;
        }
        let mut id = calls.last_id;
        loop {
            id = id.wrapping_add(1);
            if !calls.waiting.contains_key(&id) {
                break;
            }
        }
        calls.last_id = id;
        let reply = None;
        calls.waiting.insert(id, Call { command, reply });
        drop(calls);

        let mut message = Header::command(id, command, payload.len())
            .encode()
            .to_vec();
        message.extend(payload);
        self.output.send(&message);

        let mut calls = self.lock();
        loop {
            let answered = calls
                .waiting
                .get(&id)
                .is_some_and(|call| call.reply.is_some());
            let left = deadline.saturating_duration_since(Instant::now());
            let over = self.closed.load(Ordering::SeqCst) || cancel.load(Ordering::SeqCst);
            if answered || over || left.is_zero() {
                break;
            }
            // The session may be in a receive, and does not learn that the socket was full.
            self.output.flush();
            let wait = if self.output.waiting() { FLUSH } else { left };
            calls = self
                .changed
                .wait_timeout(calls, wait.min(left))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let (header, payload) = calls.waiting.remove(&id)?.reply?;
        (header.flags & ERROR == 0).then_some(payload)
    }

    /// Where the data of a DMA message begins in its payload.
    ///
    /// The specification and libvfio-user have {address u64, count u64, data}. QEMU 10.2 declares
    /// {address u64, count u32, data} but computes sizes with the padded structure, so that its data
    /// begins 4 bytes early in a message of the same length. A request to read is the same in both; a
    /// write, and the data of a reply, are not. QEMU is recognised by its capabilities
    /// (`write_multiple`), and a reply that contradicts the guess corrects it: the 4 bytes before
    /// (or behind) the data are zero in the layout that holds.
    fn data_at(&self) -> usize {
        if self.packed.load(Ordering::Relaxed) {
            DATA_AT_PACKED
        } else {
            DATA_AT
        }
    }

    fn read_some(&self, address: u64, out: &mut [u8], cancel: &AtomicBool) -> Option<()> {
        let request = dma_head(address, out.len());
        let reply = self.call(Command::DMA_READ, &request, cancel)?;
        if reply.len() != DATA_AT + out.len() || u64_at(&reply, 0) != Some(address) {
            return None;
        }
        let nonzero = |at: usize| reply.get(at..at + 4).is_some_and(|pad| pad != [0; 4]);
        match self.data_at() {
            DATA_AT if nonzero(DATA_AT_PACKED) => self.packed.store(true, Ordering::Relaxed),
            DATA_AT_PACKED if nonzero(DATA_AT_PACKED + out.len()) => {
                self.packed.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        let data = reply.get(self.data_at()..)?.get(..out.len())?;
        out.copy_from_slice(data);
        Some(())
    }

    fn write_some(&self, address: u64, data: &[u8], cancel: &AtomicBool) -> Option<()> {
        let mut request = dma_head(address, data.len()).to_vec();
        request.truncate(self.data_at());
        request.extend(data);
        // QEMU checks the size against its padded structure.
        request.resize(DATA_AT + data.len(), 0);
        self.call(Command::DMA_WRITE, &request, cancel).map(drop)
    }

    // No operation panics half-way, so a poisoned table is a whole one.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dma_head(address: u64, count: usize) -> [u8; ACCESS_SIZE] {
    let mut head = [0; ACCESS_SIZE];
    head[..8].copy_from_slice(&address.to_ne_bytes());
    head[8..].copy_from_slice(&(count as u64).to_ne_bytes());
    head
}

impl RemoteMemory for Link {
    fn read(&self, address: u64, out: &mut [u8], cancel: &AtomicBool) -> Result<()> {
        let len = out.len() as u64;
        let mut at = address;
        for part in out.chunks_mut(self.max_data) {
            self.read_some(at, part, cancel)
                .ok_or(Error::DmaFault { iova: address, len })?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8], cancel: &AtomicBool) -> Result<()> {
        let len = data.len() as u64;
        let mut at = address;
        for part in data.chunks(self.max_data) {
            self.write_some(at, part, cancel)
                .ok_or(Error::DmaFault { iova: address, len })?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn wake(&self) {
        // Under the lock, so that a caller between its look at the flags and its wait is not missed.
        let _calls = self.lock();
        self.changed.notify_all();
    }
}
