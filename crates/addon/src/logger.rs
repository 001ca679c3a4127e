//! Log lines on their way to winston: a bounded queue that counts what it drops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};
use napi::bindgen_prelude::{FnArgs, Function, Status};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;

use crate::failure::{Result, Throw};

type Line = FnArgs<(String, String, String)>;
/// At most so many lines wait for the event loop.
const QUEUE: usize = 1024;
type Sink = ThreadsafeFunction<Line, (), Line, Status, false, true, QUEUE>;

#[derive(Default)]
struct Bridge {
    sink: RwLock<Option<Sink>>,
    dropped: AtomicU64,
}

static BRIDGE: OnceLock<Bridge> = OnceLock::new();

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("retrovf")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let Ok(sink) = self.sink.read() else { return };
        let Some(sink) = sink.as_ref() else { return };
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut message = record.args().to_string();
        if dropped > 0 {
            message = format!("{message} ({dropped} lines before this one were dropped)");
        }
        let line = (level.to_owned(), record.target().to_owned(), message);
        let status = sink.call(line.into(), ThreadsafeFunctionCallMode::NonBlocking);
        if status != Status::Ok {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

#[napi]
pub fn set_logger(on_line: Function<'_, Line, ()>) -> Result<()> {
    let sink = on_line
        .build_threadsafe_function()
        .weak::<true>()
        .max_queue_size::<QUEUE>()
        .build()
        .or_throw()?;
    let bridge = BRIDGE.get_or_init(Bridge::default);
    if let Ok(mut slot) = bridge.sink.write() {
        *slot = Some(sink);
    }
    // A second call replaces the sink; the logger itself stays.
    if log::set_logger(bridge).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
    Ok(())
}
