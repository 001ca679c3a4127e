use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::EventfdFlags;

use crate::acceptor::Acceptor;
use crate::device::ServedDevice;
use crate::session::Timing;
use crate::socket::Listener;
use crate::{Error, Result};

/// Where and how to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Path of the socket.
    pub path: PathBuf,
    /// After so long without the control plane's answer a register access is answered in its stead.
    /// QEMU waits 5 seconds, and loses its connection over a later answer.
    pub access_timeout: Duration,
    /// After a request the session looks for the next one for so long before it sleeps. A client
    /// whose requests follow each other closely is then served without a wake-up, and this process
    /// uses a CPU meanwhile.
    pub spin: Duration,
}

impl ServerOptions {
    /// Serves at `path`, with a second for each access and without spinning.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access_timeout: Duration::from_secs(1),
            spin: Duration::ZERO,
        }
    }
}

/// What happens at a server. Handlers run on its threads and must not block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// A client has finished its handshake.
    ClientConnected,
    /// The client is gone; its memory, interrupts and bus mastering are off.
    ClientDisconnected {
        /// Why.
        reason: String,
    },
    /// A second client was turned away.
    ClientRefused,
    /// The client reset the device.
    DeviceReset,
    /// A register access was answered in the control plane's stead.
    AccessTimeout {
        /// First byte in BAR0.
        offset: u64,
        /// Bytes.
        length: u32,
        /// A write.
        write: bool,
    },
    /// A client broke the protocol and was disconnected.
    ProtocolError {
        /// How.
        detail: String,
    },
}

impl ServerEvent {
    /// A stable name for the kind of event.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClientConnected => "client-connected",
            Self::ClientDisconnected { .. } => "client-disconnected",
            Self::ClientRefused => "client-refused",
            Self::DeviceReset => "device-reset",
            Self::AccessTimeout { .. } => "access-timeout",
            Self::ProtocolError { .. } => "protocol-error",
        }
    }
}

impl fmt::Display for ServerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientConnected => f.write_str("A client has connected"),
            Self::ClientDisconnected { reason } => write!(f, "The client is gone: {reason}"),
            Self::ClientRefused => f.write_str("A second client was refused"),
            Self::DeviceReset => f.write_str("The client reset the device"),
            Self::AccessTimeout {
                offset,
                length,
                write,
            } => {
                let kind = if *write { "write" } else { "read" };
                write!(
                    f,
                    "A {kind} of {length} bytes at {offset:#x} was not answered in time"
                )
            }
            Self::ProtocolError { detail } => write!(f, "The client broke the protocol: {detail}"),
        }
    }
}

pub(crate) type EventHandler = Arc<dyn Fn(ServerEvent) + Send + Sync>;

/// Serves a device at a socket, one client at a time.
pub struct Server {
    path: PathBuf,
    closing: Arc<Closing>,
    thread: Mutex<Option<(JoinHandle<()>, mpsc::Receiver<()>)>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// How the server's thread is told to end.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) wake: OwnedFd,
    requested: AtomicBool,
}

impl Closing {
    pub(crate) fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
    }
}

/// Stacks of our threads, two a device. Larger ones would cost a page table each.
pub(crate) const STACK: usize = 256 << 10;

/// How long [`Server::close`] waits: longer than a function's reset takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Server {
    /// Listens at the path and serves whoever connects. A socket file that a dead server left is
    /// replaced.
    pub fn start(
        device: Arc<ServedDevice>,
        options: ServerOptions,
        on_event: Arc<dyn Fn(ServerEvent) + Send + Sync>,
    ) -> Result<Self> {
        let lease = Lease::take(Arc::clone(&device))?;
        let listener = Listener::bind(&options.path)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(Error::io("Creating an eventfd"))?;
        let closing = Arc::new(Closing {
            wake,
            requested: AtomicBool::new(false),
        });
        let timing = Timing {
            access: options.access_timeout,
            spin: options.spin,
        };
        let acceptor = Acceptor::new(listener, Arc::clone(&closing), device, timing, on_event);
        let (done, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vfio-user-accept".into())
            .stack_size(STACK)
            .spawn(move || {
                acceptor.run();
                drop(lease);
                drop(done);
            })
            .map_err(Error::io("Starting the server's thread"))?;
        Ok(Self {
            path: options.path,
            closing,
            thread: Mutex::new(Some((thread, ended))),
        })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the session, removes the socket file and joins the threads. May be called twice. Blocks
    /// for as long as a command under way takes, 5 seconds at most.
    pub fn close(&self) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((thread, ended)) = thread.take() else {
            return Ok(());
        };
        self.closing.requested.store(true, Ordering::SeqCst);
        self.closing.wake();
        // The thread drops its sender when it is done; it never sends.
        match ended.recv_timeout(CLOSE_TIMEOUT) {
            Err(RecvTimeoutError::Timeout) => Err(Error::CloseTimeout {
                seconds: CLOSE_TIMEOUT.as_secs(),
            }),
            _ => {
                if thread.join().is_err() {
                    log::error!("The server at {} ended by a panic", self.path.display());
                }
                Ok(())
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("{error}");
        }
    }
}

/// The right to serve a device, given back on drop.
struct Lease(Arc<ServedDevice>);

impl Lease {
    fn take(device: Arc<ServedDevice>) -> Result<Self> {
        if device.served.swap(true, Ordering::SeqCst) {
            return Err(Error::AlreadyServed);
        }
        Ok(Self(device))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.served.store(false, Ordering::SeqCst);
    }
}
