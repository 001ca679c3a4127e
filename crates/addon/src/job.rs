//! Work that may wait, as a promise served by libuv's thread pool.

use napi::bindgen_prelude::{AsyncTask, ToNapiValue, TypeName};
use napi::{Env, Task};

use crate::failure::Failure;

type Work<T> = Box<dyn FnOnce() -> Result<T, Failure> + Send>;

/// One piece of work.
pub struct Job<T>(Option<Work<T>>);

/// Starts the work and returns its promise.
pub fn promise<T, E: Into<Failure>>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> AsyncTask<Job<T>>
where
    T: Send + ToNapiValue + TypeName + 'static,
{
    AsyncTask::new(Job(Some(Box::new(move || work().map_err(Into::into)))))
}

impl<T: Send + ToNapiValue + TypeName + 'static> Task for Job<T> {
    type Output = Result<T, Failure>;
    type JsValue = T;

    fn compute(&mut self) -> napi::Result<Self::Output> {
        Ok(match self.0.take() {
            Some(work) => work(),
            None => Err(Failure::closed("A finished job")),
        })
    }

    fn resolve(&mut self, env: Env, output: Self::Output) -> napi::Result<T> {
        output.map_err(|failure| failure.reject(env))
    }
}
