//! From a native thread into JavaScript and back: what a control access costs at least.

use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use napi::bindgen_prelude::{AsyncTask, Env, Function, Status, Task};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;

type Call = ThreadsafeFunction<f64, (), f64, Status, false>;

/// Calls into JavaScript, each answered by `answer` before the next.
#[napi]
pub struct RoundTrip {
    call: Arc<Call>,
    answers: SyncSender<()>,
    answered: Arc<Mutex<Receiver<()>>>,
}

#[napi]
impl RoundTrip {
    #[napi(constructor)]
    pub fn new(call: Function<'_, f64, ()>) -> napi::Result<Self> {
        let (answers, answered) = sync_channel(1);
        Ok(Self {
            call: Arc::new(call.build_threadsafe_function().build()?),
            answers,
            answered: Arc::new(Mutex::new(answered)),
        })
    }

    #[napi]
    pub fn answer(&self) {
        // Full only if nobody waits.
        let _ = self.answers.try_send(());
    }

    /// Times of so many round trips, in nanoseconds, measured on a thread of the pool.
    #[napi]
    pub fn measure(&self, count: u32) -> AsyncTask<Measure> {
        AsyncTask::new(Measure {
            call: Arc::clone(&self.call),
            answered: Arc::clone(&self.answered),
            count,
        })
    }
}

pub struct Measure {
    call: Arc<Call>,
    answered: Arc<Mutex<Receiver<()>>>,
    count: u32,
}

impl Task for Measure {
    type Output = Vec<f64>;
    type JsValue = Vec<f64>;

    fn compute(&mut self) -> napi::Result<Self::Output> {
        let lost = || napi::Error::from_reason("an answer is lost");
        let answered = self.answered.lock().map_err(|_| lost())?;
        (0..self.count)
            .map(|id| {
                let start = Instant::now();
                let mode = ThreadsafeFunctionCallMode::NonBlocking;
                self.call.call(id.into(), mode);
                answered.recv().map_err(|_| lost())?;
                Ok(start.elapsed().as_nanos() as f64)
            })
            .collect()
    }

    fn resolve(&mut self, _: Env, output: Self::Output) -> napi::Result<Self::JsValue> {
        Ok(output)
    }
}
