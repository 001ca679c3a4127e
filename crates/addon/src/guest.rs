//! Our own guest. Its work waits for the device, so each step is a promise.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use napi::bindgen_prelude::AsyncTask;
use napi_derive::napi;
use retrovf_guest::{AccessRegion, Guest, GuestOptions};

use crate::failure::{Failure, Result, Throw};
use crate::histogram::NativeHistogram;
use crate::job::{promise, Job};

#[napi(object)]
pub struct ConnectOptions {
    pub shared_memory: Option<bool>,
    pub msix: Option<bool>,
    pub ioeventfds: Option<bool>,
}

#[napi(object)]
pub struct GuestIdentity {
    pub vendor: u32,
    pub device: u32,
    pub revision: u32,
    pub subsystem_vendor: u32,
    pub subsystem: u32,
    pub class_code: u32,
    pub bar0: u32,
    pub bar0_size: u32,
    pub interrupt_pin: u32,
    pub msix_vectors: u32,
}

#[napi(object)]
pub struct GuestDriverState {
    pub offered: u32,
    pub accepted: u32,
    pub mac: String,
    pub link_up: bool,
    pub queue_sizes: Vec<u32>,
    pub msix: bool,
}

#[napi(object)]
pub struct GuestLease {
    pub address: String,
    pub prefix: u32,
    pub router: Option<String>,
    pub server: String,
    pub lease_seconds: u32,
}

#[napi(object)]
pub struct GuestPing {
    pub sent: u32,
    pub received: u32,
    pub rtt: NativeHistogram,
}

#[napi(object)]
pub struct GuestAccess {
    pub region: String,
    pub write: bool,
    pub offset: u32,
    pub width: u32,
    pub value: u32,
    pub ns: f64,
}

#[napi]
pub struct LegacyGuest {
    guest: Option<Arc<Mutex<Guest>>>,
}

impl LegacyGuest {
    fn get(&self) -> Result<&Arc<Mutex<Guest>>> {
        self.guest
            .as_ref()
            .ok_or_else(|| Failure::closed("The guest"))
            .or_throw()
    }

    fn step<T>(
        &self,
        work: impl FnOnce(&mut Guest) -> retrovf_guest::Result<T> + Send + 'static,
    ) -> Result<AsyncTask<Job<T>>>
    where
        T: Send + napi::bindgen_prelude::ToNapiValue + napi::bindgen_prelude::TypeName + 'static,
    {
        let guest = Arc::clone(self.get()?);
        Ok(promise(move || {
            work(&mut guest.lock().unwrap_or_else(PoisonError::into_inner))
        }))
    }
}

#[napi]
impl LegacyGuest {
    #[napi]
    pub fn connect(path: String, options: Option<ConnectOptions>) -> AsyncTask<Job<LegacyGuest>> {
        promise(move || {
            let options = options.unwrap_or(ConnectOptions {
                shared_memory: None,
                msix: None,
                ioeventfds: None,
            });
            let options = GuestOptions {
                shared_memory: options.shared_memory.unwrap_or(true),
                msix: options.msix.unwrap_or(true),
                ioeventfds: options.ioeventfds.unwrap_or(false),
                ..GuestOptions::default()
            };
            let guest = Guest::connect(&path, options)?;
            Ok::<_, retrovf_guest::Error>(LegacyGuest {
                guest: Some(Arc::new(Mutex::new(guest))),
            })
        })
    }

    #[napi]
    pub fn enumerate(&self) -> Result<AsyncTask<Job<GuestIdentity>>> {
        self.step(|guest| {
            let identity = guest.enumerate()?;
            Ok(GuestIdentity {
                vendor: identity.vendor.into(),
                device: identity.device.into(),
                revision: identity.revision.into(),
                subsystem_vendor: identity.subsystem_vendor.into(),
                subsystem: identity.subsystem.into(),
                class_code: identity.class_code,
                bar0: identity.bar0,
                bar0_size: identity.bar0_size,
                interrupt_pin: identity.interrupt_pin.into(),
                msix_vectors: identity.msix_vectors.into(),
            })
        })
    }

    #[napi]
    pub fn start(&self) -> Result<AsyncTask<Job<GuestDriverState>>> {
        self.step(|guest| {
            let state = guest.start()?;
            Ok(GuestDriverState {
                offered: state.offered,
                accepted: state.accepted,
                mac: state.mac.map(|byte| format!("{byte:02x}")).join(":"),
                link_up: state.link_up,
                queue_sizes: state.queue_sizes.into_iter().map(u32::from).collect(),
                msix: state.msix,
            })
        })
    }

    #[napi]
    pub fn dhcp(&self, timeout_ms: u32) -> Result<AsyncTask<Job<GuestLease>>> {
        self.step(move |guest| {
            let lease = guest.dhcp(Duration::from_millis(timeout_ms.into()))?;
            Ok(GuestLease {
                address: lease.address.to_string(),
                prefix: lease.prefix.into(),
                router: lease.router.map(|router| router.to_string()),
                server: lease.server.to_string(),
                lease_seconds: lease.lease_seconds,
            })
        })
    }

    #[napi]
    pub fn ping(
        &self,
        target: String,
        count: u32,
        timeout_ms: u32,
    ) -> Result<AsyncTask<Job<GuestPing>>> {
        let target = target
            .parse()
            .map_err(|_| Failure::invalid(format!("{target:?} is not an IPv4 address")))
            .or_throw()?;
        self.step(move |guest| {
            let report = guest.ping(target, count, Duration::from_millis(timeout_ms.into()))?;
            Ok(GuestPing {
                sent: report.sent,
                received: report.received,
                rtt: report.rtt.into(),
            })
        })
    }

    #[napi]
    pub fn measure_control(&self, count: u32) -> Result<AsyncTask<Job<NativeHistogram>>> {
        self.step(move |guest| guest.measure_control(count).map(Into::into))
    }

    #[napi]
    pub fn measure_doorbell(&self, count: u32) -> Result<AsyncTask<Job<NativeHistogram>>> {
        self.step(move |guest| guest.measure_notify(count).map(Into::into))
    }

    #[napi]
    pub fn stop(&self) -> Result<AsyncTask<Job<()>>> {
        self.step(Guest::stop)
    }

    #[napi]
    pub fn take_trace(&self) -> Result<Vec<GuestAccess>> {
        let mut guest = match self.get()?.try_lock() {
            Ok(guest) => guest,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let busy = "The guest is busy: await its last step before taking the trace";
                return Err(Failure::new("ERR_BUSY", busy).into());
            }
        };
        let trace = guest.take_trace().into_iter().map(|access| GuestAccess {
            region: match access.region {
                AccessRegion::Config => "config",
                AccessRegion::Bar0 => "bar0",
            }
            .to_owned(),
            write: access.write,
            // Offsets of configuration space and BAR0 are below 4096.
            offset: access.offset as u32,
            width: access.width.into(),
            value: access.value,
            ns: access.ns as f64,
        });
        Ok(trace.collect())
    }

    /// A step under way keeps the guest until it ends.
    #[napi]
    pub fn close(&mut self) {
        self.guest = None;
    }
}
