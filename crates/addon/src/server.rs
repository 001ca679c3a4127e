//! A vfio-user socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use napi::bindgen_prelude::{AsyncTask, FnArgs, Function, Status};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use retrovf_vfio_user::{Server, ServerEvent, ServerOptions};

use crate::device::ServedDevice;
use crate::failure::{Result, Throw};
use crate::job::{promise, Job};

#[napi(object)]
pub struct VfioUserServerOptions {
    pub path: String,
    pub access_timeout_ms: Option<u32>,
    pub spin_us: Option<u32>,
}

type Event = FnArgs<(String, String)>;
/// Events that wait for the event loop; a peer that provokes more loses the rest, not our memory.
const QUEUE: usize = 256;
/// Keeps the process alive as long as the server is open, as a listening `net.Server` does.
type OnEvent = ThreadsafeFunction<Event, (), Event, Status, false, false, QUEUE>;

#[napi]
pub struct VfioUserServer {
    path: String,
    server: Arc<Mutex<Option<Server>>>,
}

#[napi]
impl VfioUserServer {
    #[napi(constructor)]
    pub fn new(
        device: &ServedDevice,
        options: VfioUserServerOptions,
        on_event: Function<'_, Event, ()>,
    ) -> Result<Self> {
        let on_event: OnEvent = on_event
            .build_threadsafe_function()
            .max_queue_size::<QUEUE>()
            .build()
            .or_throw()?;
        let forward = move |event: ServerEvent| {
            let args = (event.kind().to_owned(), event.to_string());
            on_event.call(args.into(), ThreadsafeFunctionCallMode::NonBlocking);
        };
        let server = Server::start(
            Arc::clone(device.get().or_throw()?),
            ServerOptions {
                access_timeout: Duration::from_millis(
                    options.access_timeout_ms.unwrap_or(1000).into(),
                ),
                spin: Duration::from_micros(options.spin_us.unwrap_or(0).into()),
                ..ServerOptions::new(&options.path)
            },
            Arc::new(forward),
        )
        .or_throw()?;
        Ok(Self {
            path: options.path,
            server: Arc::new(Mutex::new(Some(server))),
        })
    }

    #[napi(getter)]
    pub fn path(&self) -> String {
        self.path.clone()
    }

    #[napi]
    pub fn close(&self) -> AsyncTask<Job<()>> {
        let server = Arc::clone(&self.server);
        promise(move || {
            let server = server.lock().map(|mut slot| slot.take());
            match server {
                Ok(Some(server)) => server.close(),
                _ => Ok(()),
            }
        })
    }
}
