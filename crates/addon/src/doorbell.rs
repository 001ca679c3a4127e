//! The thread that forwards eventfds to devices.

use std::io::ErrorKind;
use std::time::Duration;

use napi_derive::napi;
use retrovf_vfio_user::{start_engine, EngineOptions, Mode};

use crate::failure::{Failure, Result};

#[napi(object)]
pub struct DoorbellOptions {
    pub mode: String,
    pub spin_us: Option<u32>,
    pub cpu: Option<u32>,
}

#[napi]
pub fn start_doorbell(options: DoorbellOptions) -> Result<()> {
    let mode = match (options.mode.as_str(), options.spin_us) {
        ("blocking", _) => Mode::Blocking,
        ("busy", _) => Mode::Busy,
        ("adaptive", Some(spin)) => Mode::Adaptive {
            spin: Duration::from_micros(spin.into()),
        },
        (mode, _) => {
            return Err(Failure::invalid(format!("Doorbell mode {mode:?} is incomplete")).into())
        }
    };
    let cpu = options.cpu.map(|cpu| cpu as usize);
    start_engine(EngineOptions { mode, cpu }).map_err(|error| {
        let failure = match error.kind() {
            ErrorKind::AlreadyExists => {
                Failure::new("ERR_BUSY", "The doorbell thread runs already")
            }
            ErrorKind::InvalidInput => {
                let cpu = options.cpu.unwrap_or_default();
                Failure::invalid(format!("This process may not run on CPU {cpu}"))
            }
            _ => {
                let message = format!("The doorbell thread cannot be started: {error}");
                Failure::new(retrovf_pci::io_code(&error), message)
            }
        };
        failure.into()
    })
}
