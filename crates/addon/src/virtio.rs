//! The driver side of virtio-pci.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use napi::bindgen_prelude::{BigInt, Buffer, BufferSlice, FnArgs, Function, Status};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use retrovf_virtio::{
    AdminQueue as Queue, AdminQueueOptions, Completion, CompletionMode, Transport,
};

use crate::failure::{Failure, Result, Throw};
use crate::function::{whole, PciFunction};
use crate::histogram::NativeHistogram;

#[napi(object)]
pub struct AdminQueues {
    pub index: u32,
    pub count: u32,
}

#[napi(object)]
pub struct OpenAdminQueueOptions {
    pub index: u32,
    pub size: Option<u32>,
    pub completion: Option<String>,
}

#[napi(object)]
pub struct AdminQueueStats {
    pub submitted: f64,
    pub completed: f64,
    pub timed_out: f64,
    pub in_flight: f64,
    pub latency: NativeHistogram,
}

/// id, error code, answer.
type Done = FnArgs<(f64, Option<String>, Option<Buffer>)>;
/// Keeps the process alive while the queue is open: a command in flight is pending work.
type OnDone = ThreadsafeFunction<Done, (), Done, Status, false>;

#[napi]
pub struct VirtioTransport {
    transport: Option<Transport>,
}

impl VirtioTransport {
    fn get(&self) -> std::result::Result<&Transport, Failure> {
        self.transport
            .as_ref()
            .ok_or_else(|| Failure::closed("The virtio transport"))
    }
}

#[napi]
impl VirtioTransport {
    #[napi(constructor)]
    pub fn new(owner: &PciFunction) -> Result<Self> {
        let function = Arc::clone(owner.get().or_throw()?);
        Ok(Self {
            transport: Some(Transport::open(function).or_throw()?),
        })
    }

    #[napi(getter)]
    pub fn num_queues(&self) -> Result<u32> {
        self.get()
            .or_throw()?
            .num_queues()
            .map(u32::from)
            .or_throw()
    }

    #[napi]
    pub fn status(&self) -> Result<u32> {
        self.get().or_throw()?.status().map(u32::from).or_throw()
    }

    #[napi]
    pub fn set_status(&self, value: u32) -> Result<()> {
        let value = u8::try_from(value)
            .map_err(|_| Failure::invalid(format!("Status {value} exceeds 255")))
            .or_throw()?;
        self.get().or_throw()?.set_status(value).or_throw()
    }

    #[napi]
    pub fn device_features(&self) -> Result<BigInt> {
        self.get()
            .or_throw()?
            .device_features()
            .map(BigInt::from)
            .or_throw()
    }

    #[napi]
    pub fn set_driver_features(&self, bits: BigInt) -> Result<()> {
        let (_, bits, lossless) = bits.get_u64();
        if !lossless {
            return Err(Failure::invalid("Feature bits above 63 do not exist").into());
        }
        self.get().or_throw()?.set_driver_features(bits).or_throw()
    }

    #[napi]
    pub fn driver_features(&self) -> Result<BigInt> {
        self.get()
            .or_throw()?
            .driver_features()
            .map(BigInt::from)
            .or_throw()
    }

    #[napi]
    pub fn config_generation(&self) -> Result<u32> {
        self.get()
            .or_throw()?
            .config_generation()
            .map(u32::from)
            .or_throw()
    }

    #[napi]
    pub fn device_config_length(&self) -> Result<u32> {
        let length = self.get().or_throw()?.device_config_length();
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    #[napi]
    pub fn admin_queues(&self) -> Result<Option<AdminQueues>> {
        let queues = self.get().or_throw()?.admin_queues().or_throw()?;
        Ok(queues.map(|(index, count)| AdminQueues {
            index: index.into(),
            count: count.into(),
        }))
    }

    #[napi]
    pub fn open_admin_queue(
        &self,
        options: OpenAdminQueueOptions,
        on_complete: Function<'_, Done, ()>,
    ) -> Result<AdminQueue> {
        self.open_queue(options, on_complete).or_throw()
    }

    fn open_queue(
        &self,
        options: OpenAdminQueueOptions,
        on_complete: Function<'_, Done, ()>,
    ) -> std::result::Result<AdminQueue, Failure> {
        let misfit = |what| move |_| Failure::invalid(format!("{what} exceeds 65535"));
        let on_complete: OnDone = on_complete.build_threadsafe_function().build()?;
        let completion = match options.completion.as_deref() {
            None | Some("interrupt") => CompletionMode::Interrupt,
            Some("poll") => CompletionMode::Poll,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "Completion {other:?} is not known"
                )))
            }
        };
        let defaults = AdminQueueOptions::default();
        let options = AdminQueueOptions {
            index: u16::try_from(options.index).map_err(misfit("Queue index"))?,
            size: options
                .size
                .map(u16::try_from)
                .transpose()
                .map_err(misfit("Queue size"))?
                .unwrap_or(defaults.size),
            completion,
            ..defaults
        };
        let done = move |completion: Completion| {
            let (code, data) = match completion.outcome {
                Ok(answer) => (None, Some(answer.into())),
                Err(error) => (Some(error.code().to_owned()), None),
            };
            let args = (completion.id as f64, code, data);
            on_complete.call(args.into(), ThreadsafeFunctionCallMode::NonBlocking);
        };
        let queue = self.get()?.create_admin_queue(options, Box::new(done))?;
        Ok(AdminQueue {
            queue: Mutex::new(Some(queue)),
        })
    }

    #[napi]
    pub fn close(&mut self) {
        self.transport = None;
    }
}

#[napi]
pub struct AdminQueue {
    queue: Mutex<Option<Arc<Queue>>>,
}

impl AdminQueue {
    pub fn get(&self) -> std::result::Result<Arc<Queue>, Failure> {
        let queue = self.queue.lock().ok().and_then(|slot| slot.clone());
        queue.ok_or_else(|| Failure::new("ERR_ADMIN_CLOSED", "The admin queue is closed"))
    }
}

#[napi]
impl AdminQueue {
    #[napi]
    pub fn submit(
        &self,
        id: f64,
        readable: BufferSlice<'_>,
        mut answer: BufferSlice<'_>,
        deadline_ms: f64,
    ) -> Result<i32> {
        let id = whole(id, "Command id").or_throw()?;
        let deadline = Duration::from_millis(whole(deadline_ms, "Deadline").or_throw()?);
        let room = answer.len();
        let queue = self.get().or_throw()?;
        let Some(written) = queue.submit(id, &readable, room, deadline).or_throw()? else {
            return Ok(-1);
        };
        // The queue gives no more than it was told to have room for.
        let length = written.len().min(room);
        for (to, from) in answer.iter_mut().zip(&written) {
            *to = *from;
        }
        Ok(i32::try_from(length).unwrap_or(i32::MAX))
    }

    #[napi]
    pub fn stats(&self) -> Result<AdminQueueStats> {
        let stats = self.get().or_throw()?.stats();
        Ok(AdminQueueStats {
            submitted: stats.submitted as f64,
            completed: stats.completed as f64,
            timed_out: stats.timed_out as f64,
            in_flight: stats.in_flight as f64,
            latency: stats.latency.into(),
        })
    }

    #[napi]
    pub fn close(&self) {
        let queue = self.queue.lock().ok().and_then(|mut slot| slot.take());
        if let Some(queue) = queue {
            queue.close();
        }
    }
}
