//! Kicks of one device, beside which a server process has more or fewer that are idle.
//!
//! The servers run already, each with its devices on the sockets `0` to `n - 1` of a folder and with
//! its notify words on the pages of the file `words` there. This process is the client of all devices
//! and holds the eventfds of all their queues, as VMMs would.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use retrovf_pci::SharedMemory;
use retrovf_spec::{legacy, pci};
use retrovf_vfio_user::{Client, ClientOptions};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use serde_json::{json, Value};

use crate::placement::{run_on, Placement, CLIENT_CPU};
use crate::series::{self, Contender, Plan};
use crate::Result;

/// The last of the queues that have an eventfd.
const QUEUE: u16 = 7;
const NOTHING: u16 = 0xffff;
/// A kick that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);
const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// Connects to everything, says so, and measures once a line arrives: until then the servers are
/// idle.
pub(crate) fn measure(plan: &Plan, servers: &[String]) -> Result<Value> {
    take_all_descriptors()?;
    let mut active = Vec::new();
    let mut idle = Vec::new();
    for server in servers {
        let (count, folder) = server.split_once(':').ok_or("COUNT:FOLDER is missing")?;
        let folder = Path::new(folder);
        active.push(Active::connect(count, folder)?);
        for device in 1..count.parse()? {
            idle.push(connect(folder, device)?);
        }
    }
    println!("connected");
    std::io::stdin().lock().read_line(&mut String::new())?;

    // Percentiles of the tail vary more between times than medians: shorter blocks, and more of them.
    let plan = &Plan {
        rounds: 8 * plan.rounds,
        warm_up: plan.warm_up / 8,
        samples: plan.samples / 8,
    };
    run_on(CLIENT_CPU)?;
    let kicks = active.iter().map(|device| Box::new(Kick(device)) as _);
    let kicks = series::measure(
        "scale, eventfd to store",
        "eventfd write to the store of one device; the others of its process are idle",
        plan,
        &mut kicks.collect::<Vec<_>>(),
    )?;
    // Servers run on the other CPU. On one, no wake-up of a CPU drowns what is measured.
    run_on(Placement::Across.server_cpu())?;
    let writes = active.iter_mut().map(|device| Box::new(Write(device)) as _);
    let writes = series::measure(
        "scale, vfio-user round trip",
        "REGION_WRITE of Queue Notify and its reply on one CPU; one device active",
        plan,
        &mut writes.collect::<Vec<_>>(),
    )?;
    drop(idle);
    Ok(json!({ "paths": [kicks, writes] }))
}

/// Each queue of each device has one.
fn take_all_descriptors() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

/// A client whose guest decodes I/O space, and its eventfds.
fn connect(folder: &Path, device: u16) -> Result<(Client, Vec<OwnedFd>)> {
    let path = folder.join(device.to_string());
    let mut client = Client::connect(path, ClientOptions::default())?;
    let command = pci::COMMAND_IO | pci::COMMAND_MEMORY;
    client.region_write(CONFIG, pci::COMMAND as u64, &command.to_le_bytes())?;
    let fds = client.region_io_fds(BAR0)?.into_iter().map(|(_, fd)| fd);
    let fds: Vec<_> = fds.collect();
    if fds.len() != usize::from(QUEUE) + 1 {
        return Err(format!("a device has {} doorbells", fds.len()).into());
    }
    Ok((client, fds))
}

/// The device that is not idle.
struct Active {
    name: String,
    client: Client,
    fds: Vec<OwnedFd>,
    words: SharedMemory,
}

impl Active {
    fn connect(count: &str, folder: &Path) -> Result<Self> {
        let (client, fds) = connect(folder, 0)?;
        let words = folder.join("words");
        let file = File::options().read(true).write(true).open(words)?;
        let page = rustix::param::page_size() as u64;
        let plural = if count == "1" { "" } else { "s" };
        Ok(Self {
            name: format!("{count} device{plural}"),
            client,
            fds,
            words: SharedMemory::from_fd(file.into(), 0, page, true)?,
        })
    }
}

struct Kick<'a>(&'a Active);

impl Contender for Kick<'_> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn sample(&mut self) -> Result<Duration> {
        let Active {
            name, fds, words, ..
        } = self.0;
        let fd = fds.last().ok_or("a device has no doorbells")?;
        words.store_u16(0, NOTHING)?;
        let start = Instant::now();
        rustix::io::write(fd, &1u64.to_ne_bytes())?;
        while words.load_u16(0)? != QUEUE {
            if start.elapsed() > PATIENCE {
                return Err(format!("a kick of {name} is lost").into());
            }
        }
        Ok(start.elapsed())
    }
}

struct Write<'a>(&'a mut Active);

impl Contender for Write<'_> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn sample(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let queue = QUEUE.to_le_bytes();
        let client = &mut self.0.client;
        client.region_write(BAR0, legacy::QUEUE_NOTIFY, &queue)?;
        Ok(start.elapsed())
    }
}
