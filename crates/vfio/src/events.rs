use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{epoll, eventfd, EventfdFlags};

/// What the host has to say about a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody unbinds or unplugs it, and waits until it is closed. Repeated about every 10 s.
    UnplugRequested,
    /// The bus reported an error of it (AER): it may not work any more.
    DeviceError,
}

type Handler = Box<dyn Fn() + Send + Sync>;

struct Entry {
    fd: OwnedFd,
    handler: Handler,
}

/// The thread "retrovf-vfio-events", one for all functions of the process, which waits for their
/// event descriptors. It ends with the last [`Watch`].
struct Watcher {
    epoll: OwnedFd,
    /// Ends the thread.
    stop: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Arc<Entry>>,
    last: u64,
}

/// An event descriptor that is waited for, until dropped.
pub(crate) struct Watch {
    watcher: Arc<Watcher>,
    key: u64,
    fd: OwnedFd,
}

/// The key of `stop`, which no entry has.
const STOP: u64 = 0;

static WATCHER: Mutex<Weak<Watcher>> = Mutex::new(Weak::new());

impl Watch {
    /// Calls the handler, on the watcher's thread, whenever the descriptor is signalled.
    pub(crate) fn new(handler: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let fd = new_eventfd()?;
        let entry = Arc::new(Entry {
            fd: fd.try_clone()?,
            handler: Box::new(handler),
        });
        let mut shared = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
        let watcher = match shared.upgrade() {
            Some(watcher) => watcher,
            None => {
                let watcher = Watcher::start()?;
                *shared = Arc::downgrade(&watcher);
                watcher
            }
        };
        let mut table = watcher.lock();
        table.last += 1;
        let key = table.last;
        let data = epoll::EventData::new_u64(key);
        epoll::add(&watcher.epoll, &fd, data, epoll::EventFlags::IN)?;
        table.entries.insert(key, entry);
        drop(table);
        Ok(Self { watcher, key, fd })
    }

    /// The descriptor to signal.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only if it is not there any more.
        let _ = epoll::delete(&self.watcher.epoll, &self.fd);
        let mut table = self.watcher.lock();
        table.entries.remove(&self.key);
    }
}

impl Watcher {
    fn start() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = new_eventfd()?;
        let data = epoll::EventData::new_u64(STOP);
        epoll::add(&epoll, &stop, data, epoll::EventFlags::IN)?;
        let watcher = Arc::new(Self {
            epoll: epoll.try_clone()?,
            stop: stop.try_clone()?,
            table: Mutex::default(),
        });
        let weak = Arc::downgrade(&watcher);
        std::thread::Builder::new()
            .name("retrovf-vfio-events".into())
            // The thread holds `stop`: a descriptor that nobody has open wakes no epoll.
            .spawn(move || run(&epoll, &weak, &stop))?;
        Ok(watcher)
    }

    // Nothing panics while a table is half-way changed.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }
}

/// `_stop` wakes the thread for the last time.
fn run(epoll: &OwnedFd, watcher: &Weak<Watcher>, _stop: &OwnedFd) {
    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::error!("Events of functions are not seen any more: {error}");
                return;
            }
        }
        for event in &events {
            let Some(watcher) = watcher.upgrade() else {
                return;
            };
            let entry = watcher.lock().entries.get(&event.data.u64()).cloned();
            drop(watcher);
            let Some(entry) = entry else {
                continue;
            };
            let mut counter = [0; 8];
            if rustix::io::read(entry.fd.as_fd(), &mut counter).is_ok() {
                (entry.handler)();
            }
        }
    }
}

fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn signal(watch: &Watch) {
        rustix::io::write(watch.fd(), &1u64.to_ne_bytes()).unwrap();
    }

    #[test]
    fn each_descriptor_calls_its_own_handler_until_it_is_dropped() {
        let (send, events) = channel();
        let other = send.clone();
        let one = Watch::new(move || send.send(1).unwrap()).unwrap();
        let two = Watch::new(move || other.send(2).unwrap()).unwrap();
        signal(&two);
        let patience = Duration::from_secs(10);
        assert_eq!(events.recv_timeout(patience), Ok(2));
        let kept = two.fd().try_clone().unwrap();
        drop(two);
        rustix::io::write(&kept, &1u64.to_ne_bytes()).unwrap();
        signal(&one);
        assert_eq!(events.recv_timeout(patience), Ok(1));
        drop(one);
        // Both handlers are gone, and with them the senders.
        assert!(events.recv_timeout(patience).is_err());
    }
}
