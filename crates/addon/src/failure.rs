//! Errors on their way to JavaScript: a stable `code` and one sentence.

use napi::{Env, JsError, Status};

/// An error code, in the place where napi-rs keeps its status; JavaScript sees it as `code`.
#[derive(Debug, Clone)]
pub struct Code(&'static str);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.0
    }
}

impl From<Status> for Code {
    /// What napi-rs itself refuses is a misuse of the addon: a wrong argument type.
    fn from(_: Status) -> Self {
        Self("ERR_INVALID_ARG")
    }
}

/// An error that JavaScript will see.
#[derive(Debug)]
pub struct Failure {
    code: &'static str,
    message: String,
}

/// Result of a synchronous method.
pub type Result<T> = napi::Result<T, Code>;

impl Failure {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("ERR_INVALID_ARG", message)
    }

    pub fn closed(what: &str) -> Self {
        Self::new("ERR_CLOSED", format!("{what} is closed"))
    }

    /// The message with those of its causes, as one line.
    fn of(code: &'static str, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self { code, message }
    }

    /// For a promise: an error object with the code, as the synchronous methods throw it.
    pub fn reject(self, env: Env) -> napi::Error {
        let error = napi::Error::new(Code(self.code), self.message);
        napi::Error::from(JsError::from(error).into_unknown(env))
    }
}

impl From<Failure> for napi::Error<Code> {
    fn from(failure: Failure) -> Self {
        Self::new(Code(failure.code), failure.message)
    }
}

impl From<napi::Error> for Failure {
    /// napi-rs refuses to make a callback of what it was given.
    fn from(error: napi::Error) -> Self {
        Self::invalid(error.reason.clone())
    }
}

macro_rules! coded {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::of(error.code(), &error)
            }
        })*
    };
}

coded!(
    retrovf_pci::Error,
    retrovf_softnic::Error,
    retrovf_vfio::Error,
    retrovf_virtio::Error,
    retrovf_vfio_user::Error,
    retrovf_guest::Error
);

/// Turns any of our errors into a thrown one.
pub trait Throw<T> {
    fn or_throw(self) -> Result<T>;
}

impl<T, E: Into<Failure>> Throw<T> for std::result::Result<T, E> {
    fn or_throw(self) -> Result<T> {
        self.map_err(|error| error.into().into())
    }
}
