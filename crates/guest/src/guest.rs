use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_histogram::{Histogram, Snapshot};
use retrovf_vfio_user::wire::{DEVICE_PCI, DEVICE_RESETS};
use retrovf_vfio_user::{Client, ClientMemory, ClientOptions};

use crate::bus::{nanoseconds, Bus};
use crate::driver::Driver;
use crate::enumerate::enumerate;
use crate::ram::Ram;
use crate::stack::Stack;
use crate::{Access, Error, Identity, Lease, PingReport, Result, Started};

/// How the guest is run.
#[derive(Debug, Clone, Copy)]
pub struct GuestOptions {
    /// The device gets the guest's memory as a file. Otherwise it has to ask for every access, and
    /// is answered only while a method of the guest runs.
    pub shared_memory: bool,
    /// Interrupts by MSI-X if the device has it, otherwise the driver polls.
    pub msix: bool,
    /// Notifications by the eventfds that the server offers, if it does.
    pub ioeventfds: bool,
    /// How long the server may take to answer.
    pub timeout: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            shared_memory: true,
            msix: true,
            ioeventfds: false,
            timeout: Duration::from_secs(5),
        }
    }
}

/// A guest with one network device, driven by whoever calls its methods.
pub struct Guest {
    driver: Driver,
    msix: bool,
    identity: Option<Identity>,
    /// There while the driver runs.
    stack: Option<Stack>,
}

impl Guest {
    /// Connects to a server, offers it the guest's memory and resets the device, as a virtual
    /// machine monitor does before a guest boots.
    pub fn connect(path: impl AsRef<Path>, options: GuestOptions) -> Result<Self> {
        let ram = Arc::new(Ram::new()?);
        let by_messages = Arc::clone(&ram) as Arc<dyn ClientMemory>;
        let client_options = ClientOptions {
            timeout: options.timeout,
            memory: (!options.shared_memory).then_some(by_messages),
        };
        let mut client = Client::connect(path, client_options)?;
        ram.map(&mut client, options.shared_memory)?;
        let flags = client.device_info()?.flags;
        if flags & DEVICE_PCI == 0 {
            return Err(Error::Refused {
                reason: "it is not a PCI function",
            });
        }
        if flags & DEVICE_RESETS != 0 {
            client.reset()?;
        }
        let mut bus = Bus::new(client);
        if options.ioeventfds {
            bus.take_ioeventfds()?;
        }
        Ok(Self {
            driver: Driver::new(bus, ram),
            msix: options.msix,
            identity: None,
            stack: None,
        })
    }

    /// Finds out what the device is, places BAR0 and enables the function.
    pub fn enumerate(&mut self) -> Result<Identity> {
        if self.driver.is_running() {
            return Err(Error::State {
                reason: "stop the driver before enumerating",
            });
        }
        self.identity = None;
        let identity = enumerate(&mut self.driver.bus)?;
        self.identity = Some(identity);
        Ok(identity)
    }

    /// Starts the driver.
    pub fn start(&mut self) -> Result<Started> {
        let identity = self.identity.filter(|_| !self.driver.is_running());
        let identity = identity.ok_or(Error::State {
            reason: "the driver starts once, after enumerating",
        })?;
        let started = self.driver.start(identity, self.msix)?;
        self.stack = Some(Stack::new(&mut self.driver, started.mac));
        Ok(started)
    }

    /// Sends an Ethernet frame.
    pub fn send_frame(&mut self, frame: &[u8]) -> Result<()> {
        self.driver.send(frame)
    }

    /// Waits for an Ethernet frame.
    pub fn recv_frame(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let (driver, _) = self.running()?;
        let started = Instant::now();
        loop {
            if let Some(frame) = driver.receive()? {
                return Ok(Some(frame));
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            driver.wait(Instant::now() + left.min(Duration::from_secs(1)))?;
        }
    }

    /// Asks for an address and takes it.
    pub fn dhcp(&mut self, timeout: Duration) -> Result<Lease> {
        let (driver, stack) = self.running()?;
        stack.dhcp(driver, timeout)
    }

    /// Sends `count` echo requests one after another and waits up to `timeout` for the reply to each.
    pub fn ping(&mut self, target: Ipv4Addr, count: u32, timeout: Duration) -> Result<PingReport> {
        let (driver, stack) = self.running()?;
        stack.ping(driver, target, count, timeout)
    }

    /// Times `count` reads of the status register, each from request to answer.
    pub fn measure_control(&mut self, count: u32) -> Result<Snapshot> {
        self.measure(count, Driver::read_status)
    }

    /// Times `count` writes of the notify register, each from request to answer, or signals of its
    /// eventfd.
    pub fn measure_notify(&mut self, count: u32) -> Result<Snapshot> {
        self.measure(count, Driver::notify_idle)
    }

    /// Without the trace, which would be part of the time.
    fn measure(
        &mut self,
        count: u32,
        access: impl Fn(&mut Driver) -> Result<()>,
    ) -> Result<Snapshot> {
        let (driver, _) = self.running()?;
        let histogram = Histogram::new();
        let tracing = std::mem::replace(&mut driver.bus.tracing, false);
        let done = (0..count).try_for_each(|_| {
            let started = Instant::now();
            access(driver)?;
            histogram.record(nanoseconds(started.elapsed()));
            Ok(())
        });
        driver.bus.tracing = tracing;
        done.map(|()| histogram.snapshot())
    }

    /// Resets the device and takes it out of use. The driver can be started again.
    pub fn stop(&mut self) -> Result<()> {
        self.stack = None;
        self.driver.stop()
    }

    /// Register accesses since the last call, up to 4096; those that measure and those that poll
    /// are left out.
    pub fn take_trace(&mut self) -> Vec<Access> {
        self.driver.bus.take_trace()
    }

    /// Switches the trace on (as it is at first) or off.
    pub fn set_tracing(&mut self, on: bool) {
        self.driver.bus.tracing = on;
    }

    fn running(&mut self) -> Result<(&mut Driver, &mut Stack)> {
        match &mut self.stack {
            Some(stack) => Ok((&mut self.driver, stack)),
            None => Err(Error::State {
                reason: "start the driver first",
            }),
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("identity", &self.identity)
            .field("running", &self.driver.is_running())
            .finish_non_exhaustive()
    }
}
