//! On which CPUs threads run, and how much of them they have used.

use std::time::Duration;

use rustix::thread::{sched_setaffinity, CpuSet, Pid};

use crate::Result;

/// Where the two ends of a path run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Client and server on different CPUs.
    Across,
    /// Both on one CPU, which therefore never waits for another to wake up.
    OneCpu,
}

impl Placement {
    pub(crate) fn server_cpu(self) -> usize {
        match self {
            Self::Across => 1,
            Self::OneCpu => 0,
        }
    }
}

pub(crate) const CLIENT_CPU: usize = 0;

/// Binds the calling thread to a CPU; threads that it starts from now on inherit it.
pub(crate) fn run_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None::<Pid>, &set)?)
}

/// Starts what serves on the server's CPU, and returns to the client's.
pub(crate) fn on_server_cpu<T>(
    placement: Placement,
    start: impl FnOnce() -> Result<T>,
) -> Result<T> {
    run_on(placement.server_cpu())?;
    let started = start();
    run_on(CLIENT_CPU)?;
    started
}

/// Threads of this process by their name, of which the kernel keeps 15 bytes.
fn threads_named(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
        if let (true, Some(id)) = (comm.trim_end() == name.get(..15).unwrap_or(name), id) {
            found.push(id);
        }
    }
    Ok(found)
}

/// CPU time of a thread, as the scheduler counts it.
pub(crate) fn cpu_time(thread: u32) -> Option<Duration> {
    let path = format!("/proc/self/task/{thread}/schedstat");
    let text = std::fs::read_to_string(path).ok()?;
    let nanos = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// The thread that `start` started.
pub(crate) fn thread_of<T>(name: &str, start: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let before = threads_named(name)?;
    let started = start()?;
    // A thread gives itself its name, a little after it was started.
    for _ in 0..1_000 {
        let after = threads_named(name)?;
        if let Some(new) = after.into_iter().find(|thread| !before.contains(thread)) {
            return Ok((started, new));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(format!("no new thread {name}").into())
}
