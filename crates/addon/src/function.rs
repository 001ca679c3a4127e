//! A PCI function that this process holds.
#![expect(
    missing_docs,
    reason = "what JavaScript sees is documented in lib/native.ts"
)]

use std::sync::Arc;

use napi::bindgen_prelude::{AsyncTask, Buffer, Function as Callback, Status};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use retrovf_pci::{Bdf, Function, IrqIndex, Region, RegionInfo};
use retrovf_vfio::{Event, OpenOptions, Roots, Token, Via};

use crate::failure::{Failure, Result, Throw};
use crate::job::{promise, Job};

/// As much as one call may move: more than any BAR register block, far from a way to exhaust memory.
const MAX_ACCESS: u32 = 1 << 20;

pub fn buffer_of(length: u32) -> std::result::Result<Vec<u8>, Failure> {
    if length > MAX_ACCESS {
        return Err(Failure::invalid(format!(
            "An access of {length} bytes exceeds {MAX_ACCESS}"
        )));
    }
    Ok(vec![0; length as usize])
}

/// A JavaScript number as an offset or address.
pub fn whole(number: f64, what: &str) -> std::result::Result<u64, Failure> {
    // 2^53: what a JavaScript number holds exactly.
    if number.fract() != 0.0 || !(0.0..=9_007_199_254_740_992.0).contains(&number) {
        return Err(Failure::invalid(format!(
            "{what} {number} is not a whole number >= 0"
        )));
    }
    Ok(number as u64)
}

#[napi(object)]
pub struct NativeRegionInfo {
    pub size: f64,
    pub readable: bool,
    pub writable: bool,
}

impl From<RegionInfo> for NativeRegionInfo {
    fn from(info: RegionInfo) -> Self {
        Self {
            size: info.size as f64,
            readable: info.readable,
            writable: info.writable,
        }
    }
}

/// How to open a function of the host.
#[napi(object)]
pub struct VfioOptions {
    pub via: Option<String>,
    pub vf_token: Option<String>,
    pub sys: Option<String>,
    pub dev: Option<String>,
}

impl TryFrom<VfioOptions> for OpenOptions {
    type Error = Failure;

    fn try_from(options: VfioOptions) -> std::result::Result<Self, Failure> {
        let Roots { sys, dev } = Roots::default();
        Ok(Self {
            via: match options.via.as_deref() {
                None | Some("auto") => Via::Auto,
                Some("group") => Via::Group,
                Some("cdev") => Via::Cdev,
                Some(other) => {
                    return Err(Failure::invalid(format!("The way {other:?} is not known")))
                }
            },
            token: options
                .vf_token
                .map(|text| text.parse::<Token>())
                .transpose()
                .map_err(|error| Failure::invalid(error.to_string()))?,
            roots: Roots {
                sys: options.sys.map_or(sys, Into::into),
                dev: options.dev.map_or(dev, Into::into),
            },
        })
    }
}

/// Events that wait for the event loop; they are repeated or of no more use.
const EVENT_QUEUE: usize = 16;
/// Does not keep the process alive: whoever holds the function does.
type OnEvent = ThreadsafeFunction<String, (), String, Status, false, true, EVENT_QUEUE>;

pub fn bdf(text: &str) -> std::result::Result<Bdf, Failure> {
    text.parse()
        .map_err(|error| Failure::new("ERR_BDF_SYNTAX", format!("{error}")))
}

#[napi]
pub struct PciFunction {
    bdf: String,
    function: Option<Arc<dyn Function>>,
}

impl PciFunction {
    pub fn new(function: Arc<dyn Function>) -> Self {
        Self {
            bdf: function.bdf().to_string(),
            function: Some(function),
        }
    }

    pub fn get(&self) -> std::result::Result<&Arc<dyn Function>, Failure> {
        self.function
            .as_ref()
            .ok_or_else(|| Failure::closed(&self.bdf))
    }
}

#[napi]
impl PciFunction {
    /// Opens a function of the host, which resets it.
    #[napi]
    pub fn open(
        address: String,
        options: VfioOptions,
        on_event: Callback<'_, String, ()>,
    ) -> Result<AsyncTask<Job<Self>>> {
        let address = bdf(&address).or_throw()?;
        let options = OpenOptions::try_from(options).or_throw()?;
        let on_event: OnEvent = on_event
            .build_threadsafe_function()
            .weak::<true>()
            .max_queue_size::<EVENT_QUEUE>()
            .build()
            .or_throw()?;
        let forward = move |event| {
            let name = match event {
                Event::UnplugRequested => "unplug-requested",
                Event::DeviceError => "device-error",
            };
            on_event.call(name.to_owned(), ThreadsafeFunctionCallMode::NonBlocking);
        };
        Ok(promise(move || {
            let function = retrovf_vfio::open(address, &options, forward)?;
            Ok::<_, retrovf_vfio::Error>(Self::new(function))
        }))
    }

    #[napi(getter)]
    pub fn bdf(&self) -> String {
        self.bdf.clone()
    }

    #[napi(getter)]
    pub fn config_size(&self) -> Result<u32> {
        let function = self.get().or_throw()?;
        Ok(function.config_size() as u32)
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

    #[napi]
    pub fn irq_count(&self, index: u32) -> Result<u32> {
        Ok(self.get().or_throw()?.irq(IrqIndex(index)).count)
    }

    #[napi]
    pub fn reset(&self) -> Result<AsyncTask<Job<()>>> {
        let function = Arc::clone(self.get().or_throw()?);
        Ok(promise(move || function.reset()))
    }

    /// Gives the function back; a reset goes with it, which takes its time.
    #[napi]
    pub fn close(&mut self) -> AsyncTask<Job<()>> {
        let function = self.function.take();
        promise(move || {
            drop(function);
            Ok::<_, Failure>(())
        })
    }
}
