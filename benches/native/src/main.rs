//! Measures the notify paths that need no JavaScript, each beside its peers in the same run, and
//! prints one JSON object. `benches/bench.ts` runs it and makes the report. Given servers as
//! COUNT:FOLDER, it is their client instead (see `scale.rs`).
//!
//! Contenders take turns, a block of samples each, for some rounds, so that whatever else the machine
//! does meanwhile hits all of them. A block's percentiles are exact, of all its samples.

mod forwarder;
mod libvfio_user;
mod placement;
mod round_trip;
mod scale;
mod series;
mod vfio_user_peer;
mod wire;

use std::process::ExitCode;

use serde_json::json;

use crate::series::Plan;

/// Failures end the run: half a table misleads.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let (flags, servers): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.starts_with("--"));
    let quick = flags.iter().any(|flag| flag == "--quick");
    let plan = if quick {
        Plan {
            rounds: 3,
            warm_up: 100,
            samples: 1_000,
        }
    } else {
        Plan {
            rounds: 15,
            warm_up: 1_000,
            samples: 10_000,
        }
    };
    let measured = if servers.is_empty() {
        measure(&plan)
    } else {
        scale::measure(&plan, &servers)
    };
    match measured {
        Ok(paths) => {
            println!("{paths}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("retrovf-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(plan: &Plan) -> Result<serde_json::Value> {
    let mut paths = forwarder::measure(plan)?;
    paths.extend(round_trip::measure(plan)?);
    Ok(json!({ "paths": paths, "skipped": libvfio_user::skipped() }))
}
