//! A client that kicks in every way that a client has, in bursts, and checks after each that the
//! device has seen its last kick.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use napi::bindgen_prelude::{Env, Object};
use napi_derive::napi;
use retrovf_spec::legacy::QUEUE_NOTIFY;
use retrovf_vfio_user::wire::{Command, Header, RegionAccess, ACCESS_SIZE, NO_REPLY};
use retrovf_vfio_user::{Client, ClientError, ClientOptions};

use crate::ledger::{Accounts, Ledger};

// A queue for each way to kick; 3 is left for `notify()`.
const BY_EVENTFD: u16 = 0;
const BY_POSTED: u16 = 1;
const BY_MESSAGE: u16 = 2;

const BURST: u64 = 64;
const PCI_COMMAND: u64 = 4;
const CONFIG: u32 = 7;
/// A kick that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);

#[napi(object)]
pub struct StormOptions {
    pub path: String,
    pub seed: u32,
    /// Kicks by eventfd, by messages without a reply, and by messages with one.
    pub eventfd: u32,
    pub posted: u32,
    pub message: u32,
    /// Leaves right after the last kicks, without a look at what came of them.
    pub leaves: bool,
}

#[napi(object)]
pub struct StormResult {
    /// Kicks by message that were answered.
    pub answered: f64,
    /// The server left before the end.
    pub cut: bool,
}

/// Connects, kicks, leaves. Rejects if a kick is lost, with what was kicked.
#[napi]
pub fn storm<'e>(env: &'e Env, ledger: &Ledger, options: StormOptions) -> napi::Result<Object<'e>> {
    let (deferred, promise) = env.create_deferred()?;
    let accounts = std::sync::Arc::clone(&ledger.accounts);
    std::thread::Builder::new()
        .name("storm".into())
        .spawn(move || match run(&accounts, &options) {
            Ok(result) => deferred.resolve(move |_| Ok(result)),
            Err(error) => deferred.reject(napi::Error::from_reason(error.to_string())),
        })?;
    Ok(promise)
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn run(accounts: &Accounts, options: &StormOptions) -> Result<StormResult> {
    let mut answered = 0;
    let cut = match kick(accounts, options, &mut answered) {
        Ok(()) => false,
        Err(error) => match error.downcast_ref::<ClientError>() {
            Some(ClientError::Closed | ClientError::Connect { .. }) => true,
            _ => return Err(error),
        },
    };
    let answered = answered as f64;
    Ok(StormResult { answered, cut })
}

fn kick(accounts: &Accounts, options: &StormOptions, answered: &mut u64) -> Result<()> {
    let mut client = Client::connect(&options.path, ClientOptions::default())?;
    client.region_write(CONFIG, PCI_COMMAND, &[7, 0])?;
    let fds = client.region_io_fds(0)?;
    let (_, eventfd) = fds
        .into_iter()
        .find(|(fd, _)| fd.datamatch == u64::from(BY_EVENTFD))
        .ok_or("the server gave no eventfd")?;
    let batch = posted_message().repeat(BURST as usize);
    let mut left = [
        u64::from(options.eventfd),
        u64::from(options.posted),
        u64::from(options.message),
    ];
    let mut random = Random(u64::from(options.seed) << 1 | 1);
    while left.iter().any(|&kicks| kicks > 0) {
        // Each way about as often as it has kicks left, so that all last to the end.
        let all: u64 = left.iter().sum();
        let mut at = random.below(all);
        let way = left.iter().position(|&kicks| {
            let found = at < kicks;
            at = at.saturating_sub(kicks);
            found
        });
        let way = way.unwrap_or_default();
        let burst = (1 + random.below(BURST)).min(left[way]);
        left[way] -= burst;
        match way {
            0 => ring_eventfd(accounts, &eventfd, burst)?,
            1 => ring_posted(accounts, &mut client, &batch, burst)?,
            _ => {
                for _ in 0..burst {
                    ring_message(accounts, &mut client)?;
                    *answered += 1;
                }
            }
        }
        // Not always, so that bursts also meet.
        if random.below(8) == 0 {
            settled(accounts, &mut client, way as u16)?;
        }
    }
    if !options.leaves {
        for queue in [BY_EVENTFD, BY_POSTED, BY_MESSAGE] {
            settled(accounts, &mut client, queue)?;
        }
    }
    Ok(())
}

fn ring_eventfd(accounts: &Accounts, fd: &OwnedFd, kicks: u64) -> Result<()> {
    for _ in 0..kicks {
        accounts.give(BY_EVENTFD, 1);
        match rustix::io::write(fd, &1u64.to_ne_bytes()) {
            Ok(_) => {}
            // The counter is full: it is signalled all the same.
            Err(rustix::io::Errno::AGAIN) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Ok(())
}

fn ring_posted(accounts: &Accounts, client: &mut Client, batch: &[u8], kicks: u64) -> Result<()> {
    let length = posted_message().len() * kicks as usize;
    accounts.give(BY_POSTED, kicks);
    client.send_raw(batch.get(..length).unwrap_or(batch), &[])?;
    Ok(())
}

/// One ring for each message, before its reply.
fn ring_message(accounts: &Accounts, client: &mut Client) -> Result<()> {
    let before = accounts.rings(BY_MESSAGE);
    accounts.give(BY_MESSAGE, 1);
    client.region_write(0, QUEUE_NOTIFY, &BY_MESSAGE.to_le_bytes())?;
    match accounts.rings(BY_MESSAGE) - before {
        1 => Ok(()),
        rings => Err(format!("a message that was answered rang {rings} times").into()),
    }
}

/// The device has seen the last kick of a queue.
fn settled(accounts: &Accounts, client: &mut Client, queue: u16) -> Result<()> {
    if queue == BY_POSTED {
        // Messages keep their order: after a reply, those before it have rung.
        client.region_read(CONFIG, 0, &mut [0; 4])?;
        return match accounts.all_seen(queue) {
            true => Ok(()),
            false => Err("a message without a reply was overtaken".into()),
        };
    }
    let start = Instant::now();
    while !accounts.all_seen(queue) {
        if start.elapsed() > PATIENCE {
            return Err(format!("a kick of queue {queue} is lost").into());
        }
        // A server that has left rings nothing any more, which only the socket tells.
        client.region_read(CONFIG, 0, &mut [0; 4])?;
    }
    Ok(())
}

fn posted_message() -> Vec<u8> {
    let access = RegionAccess {
        offset: QUEUE_NOTIFY,
        region: 0,
        count: 2,
    };
    let mut header = Header::command(1, Command::REGION_WRITE, ACCESS_SIZE + 2);
    header.flags |= NO_REPLY;
    [
        &header.encode()[..],
        &access.encode(),
        &BY_POSTED.to_le_bytes(),
    ]
    .concat()
}

/// Xorshift: the same seed, the same storm.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
