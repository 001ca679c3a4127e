//! What a vfio-user client sees, and the hand-over of BAR0 control accesses to JavaScript.

use std::sync::Arc;

use napi::bindgen_prelude::{
    ArrayBuffer, AsyncTask, Buffer, BufferSlice, ClassInstance, Env, FnArgs, Function, Status,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use retrovf_pci::{NotifyTarget, OverlayRow, QueueIndex, Region};
use retrovf_vfio_user::{
    ControlAccess, ControlKind, ControlPlane, DeviceConfig, ServedDevice as Device,
};
use retrovf_virtio::CommandDoorbell;

use crate::failure::{Failure, Result, Throw};
use crate::function::{buffer_of, whole, NativeRegionInfo, PciFunction};
use crate::histogram::NativeHistogram;
use crate::job::{promise, Job};
use crate::notify_word;
use crate::virtio::AdminQueue;

#[napi(object)]
pub struct NativeOverlayRow {
    pub offset: u32,
    pub width: u32,
    pub value: u32,
    pub mask: u32,
    pub writable: u32,
    pub forward: bool,
    pub resets: bool,
    pub flr: u32,
}

impl TryFrom<NativeOverlayRow> for OverlayRow {
    type Error = Failure;

    fn try_from(row: NativeOverlayRow) -> std::result::Result<Self, Failure> {
        let misfit = |what| Failure::invalid(format!("Overlay row {what} out of range"));
        Ok(Self {
            offset: u16::try_from(row.offset).map_err(|_| misfit("offset"))?,
            width: u8::try_from(row.width).map_err(|_| misfit("width"))?,
            value: row.value,
            mask: row.mask,
            writable: row.writable,
            forward: row.forward,
            resets: row.resets,
            flr: row.flr,
        })
    }
}

/// Where notifications go: `kind` "region" has `fn`, `region` and `offset`; "command" has `queue`
/// and `member`.
#[napi(object, object_to_js = false)]
pub struct NotifyOptions<'a> {
    pub kind: String,
    #[napi(js_name = "fn")]
    pub function: Option<ClassInstance<'a, PciFunction>>,
    pub region: Option<u32>,
    pub offset: Option<f64>,
    pub queue: Option<ClassInstance<'a, AdminQueue>>,
    pub member: Option<f64>,
}

/// A notify target, and the doorbell behind it if that sends commands.
type Notify = (NotifyTarget, Option<Arc<CommandDoorbell>>);

impl NotifyOptions<'_> {
    fn target(&self, queues: u16) -> std::result::Result<Notify, Failure> {
        match (self.kind.as_str(), self) {
            (
                "region",
                Self {
                    function: Some(f),
                    region: Some(region),
                    offset: Some(at),
                    ..
                },
            ) => {
                let target = f
                    .get()?
                    .notify_target(Region(*region), whole(*at, "Notify offset")?)?;
                Ok((target, None))
            }
            (
                "command",
                Self {
                    queue: Some(queue),
                    member: Some(member),
                    ..
                },
            ) => {
                let member = whole(*member, "Member id")?;
                let doorbell = CommandDoorbell::new(queue.get()?, member, queues);
                Ok((
                    NotifyTarget::device(Arc::clone(&doorbell) as _),
                    Some(doorbell),
                ))
            }
            (kind, _) => Err(Failure::invalid(format!(
                "Notify target {kind:?} is incomplete"
            ))),
        }
    }
}

#[napi(object, object_to_js = false)]
pub struct ServedDeviceOptions<'a> {
    pub member: ClassInstance<'a, PciFunction>,
    pub overlay: Vec<NativeOverlayRow>,
    pub config_size: u32,
    pub msix_capability: Option<u32>,
    pub bar0_size: Option<u32>,
    pub notify: Option<NotifyOptions<'a>>,
    pub queues: Option<u32>,
}

#[napi(object)]
pub struct DeviceCounters {
    pub notifies: f64,
    pub notifies_forwarded: f64,
    pub kernel_doorbells: f64,
    pub engine_doorbells: f64,
    pub control_reads: f64,
    pub control_writes: f64,
    pub gated_accesses: f64,
    pub timed_out_accesses: f64,
    pub protocol_errors: f64,
    pub sessions: f64,
    pub control_latency: NativeHistogram,
}

/// id, write, offset, length, data of a write, MSI-X enabled.
type Access = FnArgs<(f64, bool, u32, u32, Option<Buffer>, bool)>;
type OnAccess = ThreadsafeFunction<Access, (), Access, Status, false, true>;

/// Hands accesses to JavaScript. At most one is outstanding per session, so the queue needs no bound.
struct JavaScript(OnAccess);

impl ControlPlane for JavaScript {
    fn access(&self, access: ControlAccess) {
        let (write, length, data) = match access.kind {
            ControlKind::Read { length } => (false, length as u32, None),
            ControlKind::Write(data) => (true, data.len() as u32, Some(data.into())),
        };
        // Ids count up from 0 and stay below 2^53. If JavaScript is shutting down the call is
        // refused, and the session answers for itself at its deadline.
        let args = (
            access.id as f64,
            write,
            access.offset as u32,
            length,
            data,
            access.msix_enabled,
        );
        self.0
            .call(args.into(), ThreadsafeFunctionCallMode::NonBlocking);
    }
}

#[napi]
pub struct ServedDevice {
    device: Option<Arc<Device>>,
    doorbell: Option<Arc<CommandDoorbell>>,
}

impl ServedDevice {
    pub fn get(&self) -> std::result::Result<&Arc<Device>, Failure> {
        self.device
            .as_ref()
            .ok_or_else(|| Failure::closed("The device"))
    }
}

#[napi]
impl ServedDevice {
    #[napi(constructor)]
    pub fn new(
        options: ServedDeviceOptions<'_>,
        on_access: Function<'_, Access, ()>,
    ) -> Result<Self> {
        Self::open(options, on_access).or_throw()
    }

    fn open(
        options: ServedDeviceOptions<'_>,
        on_access: Function<'_, Access, ()>,
    ) -> std::result::Result<Self, Failure> {
        let misfit = |what| move |_| Failure::invalid(format!("{what} out of range"));
        let overlay = options.overlay.into_iter().map(TryInto::try_into);
        let queues = u16::try_from(options.queues.unwrap_or(0)).map_err(misfit("Queue count"))?;
        let notify = options
            .notify
            .map(|notify| notify.target(queues))
            .transpose()?;
        let (notify, doorbell) = notify.map_or((None, None), |(target, bell)| (Some(target), bell));
        let config = DeviceConfig {
            member: Arc::clone(options.member.get()?),
            overlay: overlay.collect::<std::result::Result<_, _>>()?,
            config_size: options.config_size as usize,
            msix_capability: options
                .msix_capability
                .map(u16::try_from)
                .transpose()
                .map_err(misfit("MSI-X capability"))?,
            bar0_size: options.bar0_size,
            notify,
            queues,
        };
        let on_access = on_access
            .build_threadsafe_function()
            .weak::<true>()
            .build()?;
        let device = Device::new(config, Arc::new(JavaScript(on_access)))?;
        Ok(Self {
            device: Some(device),
            doorbell,
        })
    }

    #[napi]
    pub fn respond(&self, id: f64, data: Option<BufferSlice<'_>>) -> Result<bool> {
        let id = whole(id, "Access id").or_throw()?;
        Ok(self.get().or_throw()?.respond(id, data.as_deref()))
    }

    #[napi]
    pub fn config_read(&self, offset: u32, length: u32) -> Result<Buffer> {
        let mut out = buffer_of(length).or_throw()?;
        self.get()
            .or_throw()?
            .config_read(offset as usize, &mut out)
            .or_throw()?;
        Ok(out.into())
    }

    #[napi]
    pub fn config_write(&self, offset: u32, data: Buffer) -> Result<()> {
        self.get()
            .or_throw()?
            .config_write(offset as usize, &data)
            .or_throw()
    }

    #[napi]
    pub fn region(&self, index: u32) -> Result<NativeRegionInfo> {
        self.get()
            .or_throw()?
            .region(Region(index))
            .map(Into::into)
            .or_throw()
    }

    #[napi]
    pub fn region_read(&self, index: u32, offset: f64, length: u32) -> Result<Buffer> {
        let offset = whole(offset, "Offset").or_throw()?;
        let mut out = buffer_of(length).or_throw()?;
        self.get()
            .or_throw()?
            .region_read(Region(index), offset, &mut out)
            .or_throw()?;
        Ok(out.into())
    }

    #[napi]
    pub fn region_write(&self, index: u32, offset: f64, data: Buffer) -> Result<()> {
        let offset = whole(offset, "Offset").or_throw()?;
        self.get()
            .or_throw()?
            .region_write(Region(index), offset, &data)
            .or_throw()
    }

    #[napi(getter)]
    pub fn io_enabled(&self) -> Result<bool> {
        Ok(self.get().or_throw()?.io_enabled())
    }

    #[napi(getter)]
    pub fn msix_enabled(&self) -> Result<bool> {
        Ok(self.get().or_throw()?.msix_enabled())
    }

    #[napi]
    pub fn enable_bus_master(&self) -> Result<()> {
        self.get().or_throw()?.enable_bus_master().or_throw()
    }

    #[napi]
    pub fn notify(&self, queue: u32) -> Result<()> {
        let queue = u16::try_from(queue)
            .map_err(|_| Failure::invalid(format!("Queue index {queue} exceeds 65535")))
            .or_throw()?;
        if let Some(target) = self.get().or_throw()?.notify_target() {
            target.ring(QueueIndex(queue));
        }
        Ok(())
    }

    /// The word of a mapped BAR that rings the device, if that is what does; to be taken once.
    #[napi]
    pub fn notify_word<'env>(&self, env: &'env Env) -> Result<Option<ArrayBuffer<'env>>> {
        let target = self.get().or_throw()?.notify_target();
        match target.and_then(NotifyTarget::mapped) {
            Some(word) => notify_word::view(env, Arc::clone(word)).or_throw(),
            None => Ok(None),
        }
    }

    /// Notify commands go over this queue from now on; without them nothing happens.
    #[napi]
    pub fn set_notify_queue(&self, queue: &AdminQueue) -> Result<()> {
        self.get().or_throw()?;
        if let Some(doorbell) = &self.doorbell {
            doorbell.set_queue(queue.get().or_throw()?);
        }
        Ok(())
    }

    #[napi]
    pub fn reset(&self) -> Result<AsyncTask<Job<()>>> {
        let device = Arc::clone(self.get().or_throw()?);
        Ok(promise(move || device.reset()))
    }

    #[napi]
    pub fn counters(&self) -> Result<DeviceCounters> {
        let counters = self.get().or_throw()?.counters();
        Ok(DeviceCounters {
            notifies: counters.notifies as f64,
            notifies_forwarded: counters.notifies_forwarded as f64,
            kernel_doorbells: counters.kernel_doorbells as f64,
            engine_doorbells: counters.engine_doorbells as f64,
            control_reads: counters.control_reads as f64,
            control_writes: counters.control_writes as f64,
            gated_accesses: counters.gated_accesses as f64,
            timed_out_accesses: counters.timed_out_accesses as f64,
            protocol_errors: counters.protocol_errors as f64,
            sessions: counters.sessions as f64,
            control_latency: counters.control_latency.into(),
        })
    }

    #[napi]
    pub fn close(&mut self) {
        self.device = None;
        self.doorbell = None;
    }
}
