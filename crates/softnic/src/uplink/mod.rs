//! What the switch is connected to: one thread with a port of its own.

mod dhcp;
mod gateway;
mod tap;
mod unix;

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::Uplink;
use crate::kicks::Kicks;
use crate::nic::Nic;
use crate::switch::{Frame, Port, Switch};
use crate::Error;

pub use gateway::{GATEWAY_ADDRESS, GATEWAY_MAC};

/// Port number of the uplink; functions have their member id.
const PORT: u32 = u32::MAX;

/// Frames moved in each direction before the other one has its turn.
const BATCH: usize = 64;

/// What the thread runs.
type Work = Box<dyn FnOnce(&Switch, &Port) + Send>;

/// A running uplink. Dropping it ends and joins the thread.
#[derive(Debug)]
pub(crate) struct UplinkThread {
    nic: Arc<Nic>,
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
}

impl UplinkThread {
    /// Starts the uplink, unless there is none.
    pub(crate) fn start(nic: &Arc<Nic>, uplink: Uplink) -> Result<Option<Self>, Error> {
        let port = Arc::new(Port::new(PORT, 1, Arc::new(Kicks::new()?)));
        let work: Work = match uplink {
            Uplink::None => return Ok(None),
            Uplink::Gateway => Box::new(gateway::run),
            Uplink::Unix(path) => {
                let peer = Arc::new(unix::Peer::new(&path)?);
                port.set_outlet(Arc::clone(&peer) as _);
                Box::new(move |switch, port| unix::run(&peer, switch, port))
            }
            Uplink::Tap(name) => {
                let tap = tap::open(&name)?;
                Box::new(move |switch, port| run_tap(&tap, switch, port))
            }
        };
        let thread = std::thread::Builder::new()
            .name("softnic-uplink".to_owned())
            .spawn({
                let (nic, port) = (Arc::clone(nic), Arc::clone(&port));
                move || work(&nic.switch, &port)
            })
            .map_err(Error::io("Starting the uplink's thread"))?;
        nic.switch.attach(Arc::clone(&port));
        Ok(Some(Self {
            nic: Arc::clone(nic),
            port,
            thread: Some(thread),
        }))
    }
}

impl Drop for UplinkThread {
    fn drop(&mut self) {
        self.nic.switch.detach(PORT);
        self.port.kicks().stop();
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                log::error!("The uplink's thread panicked");
            }
        }
    }
}

/// Moves frames between the switch and a tap interface.
fn run_tap(tap: &std::os::fd::OwnedFd, switch: &Switch, port: &Port) {
    use rustix::event::PollFlags;
    use rustix::io::Errno;
    use std::os::fd::AsFd;

    let mut buffer = vec![0; crate::switch::MAX_FRAME + 1];
    let mut alive = true;
    while !port.kicks().stopping() {
        port.kicks().take();
        while let Some(frame) = port.pop() {
            // A full or disabled interface drops, as any does.
            let _ = rustix::io::write(tap, &frame);
        }
        let mut frames: Vec<Frame> = Vec::new();
        while alive && frames.len() < BATCH {
            match rustix::io::read(tap, buffer.as_mut_slice()) {
                Ok(len) => frames.extend(buffer.get(..len).map(Frame::from)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    log::error!("The tap interface is gone: {errno}");
                    alive = false;
                }
            }
        }
        switch.forward(port, &frames);
        let readable = (tap.as_fd(), PollFlags::IN);
        port.kicks().sleep(alive.then_some(readable), None);
    }
}
