//! Random and mutated messages: whatever comes, the server goes on serving, nothing panics, and no
//! descriptor or memory stays behind. One test to a process, since it counts the process's own.

#[path = "conformance/fixture.rs"]
#[expect(dead_code, reason = "the conformance tests use the rest")]
mod fixture;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fixture::{eventfd, memory_file, message, open_fds, Rig, Setup};
use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{Client, ClientError, ClientOptions};
use rustix::net::{RecvFlags, SendFlags};

const MESSAGES: usize = 120_000;

/// SplitMix64: enough for variety, and one number brings a failure back.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A number as an attacker would pick it.
    fn number(&mut self) -> u64 {
        let near = self.below(5) as u64;
        match self.below(8) {
            0 => near,
            1 => u64::MAX - near,
            2 => u64::from(u32::MAX) - near,
            3 => (1 << 63) + near,
            4 => MAX_DATA as u64 + near - 2,
            5 => 1 << self.below(64),
            6 => 4096 * self.below(64) as u64,
            _ => self.next(),
        }
    }
}

/// A payload that begins like a sensible one.
fn payload(random: &mut Random, command: Command) -> Vec<u8> {
    let small = |random: &mut Random| match random.below(4) {
        0 => random.number() as u32,
        _ => random.below(12) as u32,
    };
    let mut bytes: Vec<u8> = match command {
        Command::DMA_MAP => {
            let mut bytes: Vec<u8> = words([32, random.below(4) as u32]).collect();
            for _ in 0..3 {
                bytes.extend(random.number().to_ne_bytes());
            }
            bytes
        }
        Command::DMA_UNMAP => {
            let mut bytes: Vec<u8> = words([24, random.below(3) as u32]).collect();
            bytes.extend(random.number().to_ne_bytes());
            bytes.extend(random.number().to_ne_bytes());
            bytes
        }
        Command::SET_IRQS => {
            let kind = 1 << random.below(4) | 1 << (3 + random.below(4));
            let fields = [20, kind, small(random), small(random), small(random)];
            words(fields).chain(random.bytes(4)).collect()
        }
        Command::REGION_READ | Command::REGION_WRITE => {
            let region = random.below(10) as u32;
            let offset = if random.one_in(2) {
                random.below(40) as u64
            } else {
                random.number()
            };
            let access = RegionAccess {
                offset,
                region,
                count: small(random),
            };
            let data = random.bytes(access.count.min(64) as usize);
            [&access.encode()[..], &data].concat()
        }
        Command::WRITE_MULTI => {
            let n = random.below(5);
            let mut bytes = (n as u64).to_ne_bytes().to_vec();
            for _ in 0..n {
                let access = RegionAccess {
                    offset: random.below(40) as u64,
                    region: random.below(9) as u32,
                    count: random.below(10) as u32,
                };
                bytes.extend(access.encode());
                bytes.extend(random.bytes(8));
            }
            bytes
        }
        _ => words([small(random), 0, small(random), small(random)])
            .chain(random.bytes(16))
            .collect(),
    };
    if random.one_in(8) {
        bytes.truncate(random.below(bytes.len() + 1));
    }
    if random.one_in(8) {
        let more = random.below(100);
        bytes.extend(random.bytes(more));
    }
    bytes
}

/// A message, rarely one whose framing lies.
fn any_message(random: &mut Random) -> Vec<u8> {
    let command = Command(match random.below(20) {
        0 => random.next() as u16,
        n => n as u16,
    });
    let flags = match random.below(10) {
        0 => random.next() as u32,
        1..=3 => NO_REPLY,
        4 => TYPE_REPLY,
        _ => 0,
    };
    let body = payload(random, command);
    let mut bytes = message(random.next() as u16, command, flags, &body);
    if random.one_in(400) {
        bytes[4..8].copy_from_slice(&(random.number() as u32).to_ne_bytes());
    }
    if random.one_in(10) {
        let at = random.below(bytes.len());
        // Anything but the size, so that the next message is looked at too.
        if !(4..8).contains(&at) {
            bytes[at] = random.next() as u8;
        }
    }
    bytes
}

/// Sends without ever waiting for good, reading what comes back. False when the connection is over.
fn exchange(client: &Client, bytes: &[u8], fds: &[OwnedFd], sink: &mut [u8]) -> bool {
    let mut rest = bytes;
    let mut first = true;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !rest.is_empty() {
        assert!(Instant::now() < deadline, "the server has stopped reading");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let sent = if first && !fds.is_empty() {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed)));
            let iov = [std::io::IoSlice::new(rest)];
            rustix::net::sendmsg(client, &iov, &mut control, flags)
        } else {
            rustix::net::send(client, rest, flags)
        };
        match sent {
            Ok(n) => {
                rest = &rest[n..];
                first = false;
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(_) => return false,
        }
        loop {
            match rustix::net::recv(client, &mut *sink, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
    }
    true
}

fn descriptors(random: &mut Random) -> Vec<OwnedFd> {
    if !random.one_in(12) {
        return Vec::new();
    }
    let count = [1, 1, 1, 2, 5, 8][random.below(6)] + if random.one_in(100) { 5 } else { 0 };
    (0..count)
        .map(|_| match random.below(4) {
            0 => rustix::pipe::pipe().unwrap().1,
            1 => memory_file(4096 * random.below(64) as u64),
            2 => std::fs::File::open("/dev/null").unwrap().into(),
            _ => eventfd(),
        })
        .collect()
}

/// A client, as soon as the one before is cleaned up.
fn connect(rig: &Rig) -> Client {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Client::connect(&rig.path, ClientOptions::default()) {
            Ok(client) => return client,
            Err(error @ ClientError::Refused { .. }) if Instant::now() > deadline => {
                panic!("the server serves nobody any more: {error}")
            }
            Err(ClientError::Refused { .. }) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("the server is gone: {error}"),
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn storm(rig: &Rig, random: &mut Random, messages: usize) {
    let mut sink = vec![0; 256 << 10];
    let mut sent = 0;
    while sent < messages {
        let handshake = !random.one_in(20);
        let client = if handshake {
            connect(rig)
        } else {
            Client::connect_raw(&rig.path, ClientOptions::default()).unwrap()
        };
        for _ in 0..500 {
            let bytes = if random.one_in(2000) {
                let len = random.below(200);
                random.bytes(len)
            } else {
                any_message(random)
            };
            let fds = descriptors(random);
            sent += 1;
            if !exchange(&client, &bytes, &fds, &mut sink) {
                break;
            }
        }
    }
}

#[test]
fn random_messages_do_no_harm() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("RETROVF_SEED").map_or(now.as_nanos() as u64, |seed| {
        seed.parse().expect("RETROVF_SEED is a number")
    });
    println!("RETROVF_SEED={seed}");
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        report(info);
    }));
    let mut random = Random(seed);
    let rig = Rig::new(Setup::default());
    // Everything that is made once and kept: threads, the doorbell engine, buffers.
    storm(&rig, &mut random, 5_000);
    connect(&rig).region_io_fds(0).unwrap();
    let settle = || {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut fds = open_fds();
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            if std::mem::replace(&mut fds, open_fds()) == fds {
                break;
            }
        }
        // Connections in their handshake are kept for 2 seconds.
        std::thread::sleep(Duration::from_millis(2500));
        (open_fds(), resident_kib())
    };
    let (fds, memory) = settle();
    storm(&rig, &mut random, MESSAGES);
    let mut client = connect(&rig);
    assert_eq!(client.device_info().unwrap().regions, 9);
    drop(client);
    let (fds_after, memory_after) = settle();
    assert_eq!(fds_after, fds, "descriptors stayed open");
    assert!(
        memory_after < memory + (24 << 10),
        "from {memory} to {memory_after} KiB"
    );
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    rig.server.close().unwrap();
}
