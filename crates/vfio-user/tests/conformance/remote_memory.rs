//! Memory that came without a descriptor: DMA_READ and DMA_WRITE to the client.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use retrovf_pci::DmaAccess;
use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{Client, ClientMemory, ClientOptions, RawMessage};

use crate::fixture::{message, Rig, Setup};

const RW: DmaAccess = DmaAccess::READ_WRITE;
const BASE: u64 = 0x4000_0000;

struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn range(&self, address: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.0.lock().unwrap().len()).then_some(start..end)
    }
}

impl ClientMemory for Memory {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let Some(range) = self.range(address, out.len()) else {
            return false;
        };
        out.copy_from_slice(&self.0.lock().unwrap()[range]);
        true
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some(range) = self.range(address, data.len()) else {
            return false;
        };
        self.0.lock().unwrap()[range].copy_from_slice(data);
        true
    }
}

/// Ends the client's side also when the device's panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs the device's side while the client serves its memory.
fn with_memory(size: usize, device: impl FnOnce(&Rig) + Send) {
    let rig = Rig::new(Setup {
        // The session looks around only after such a time; nothing here may wait for that.
        access_timeout: Duration::from_secs(30),
        ..Setup::default()
    });
    let memory = Arc::new(Memory(Mutex::new((0..size).map(|i| i as u8).collect())));
    let options = ClientOptions {
        memory: Some(memory.clone()),
        ..ClientOptions::default()
    };
    let mut client = Client::connect(&rig.path, options).unwrap();
    // One byte more than the client has, for it to refuse.
    client.dma_map(BASE, size as u64 + 1, RW, None).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                client.serve(Duration::from_millis(20)).unwrap();
            }
        });
        let _done = Done(&done);
        device(&rig);
    });
}

#[test]
fn the_device_reads_and_writes_through_the_client() {
    with_memory(0x2000, |rig| {
        let dma = &rig.recorder.dma;
        let mut out = [0; 5];
        dma.read(BASE + 0x102, &mut out).unwrap();
        assert_eq!(out, [2, 3, 4, 5, 6]);
        dma.write(BASE + 0x103, b"hello").unwrap();
        dma.read(BASE + 0x102, &mut out).unwrap();
        assert_eq!(&out, b"\x02hell");
        assert_eq!(
            dma.load_u16(BASE + 0x104).unwrap(),
            u16::from_le_bytes(*b"el")
        );
    });
}

#[test]
fn long_transfers_go_in_pieces_that_the_client_takes() {
    let size = 3 * MAX_DATA + 123;
    with_memory(size, |rig| {
        let data: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
        rig.recorder.dma.write(BASE, &data).unwrap();
        let mut out = vec![0; size];
        rig.recorder.dma.read(BASE, &mut out).unwrap();
        assert!(out == data);
    });
}

#[test]
fn a_refusal_of_the_client_is_a_fault_of_the_device() {
    with_memory(0x1000, |rig| {
        let fault = rig
            .recorder
            .dma
            .read(BASE + 0xffc, &mut [0; 5])
            .unwrap_err();
        assert_eq!(fault.code(), "ERR_DMA_FAULT");
        assert!(rig.recorder.dma.write(BASE + 0xfff, &[0; 2]).is_err());
        assert!(rig.recorder.dma.read(BASE + 0xffc, &mut [0; 4]).is_ok());
    });
}

#[test]
fn several_threads_of_the_device_ask_at_once() {
    with_memory(0x1000, |rig| {
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                scope.spawn(move || {
                    for i in 0..200 {
                        let at = (thread * 401 + i * 13) % 0xff0;
                        let mut out = [0; 8];
                        rig.recorder.dma.read(BASE + at, &mut out).unwrap();
                        let want: Vec<u8> = (at..at + 8).map(|i| i as u8).collect();
                        assert_eq!(out[..], want);
                    }
                });
            }
        });
    });
}

#[test]
fn replies_are_routed_while_a_register_access_is_under_way() {
    let rig = Rig::new(Setup {
        manual: true,
        ..Setup::default()
    });
    let memory = Arc::new(Memory(Mutex::new(vec![7; 0x1000])));
    let options = ClientOptions {
        memory: Some(memory),
        ..ClientOptions::default()
    };
    let mut client = Client::connect(&rig.path, options).unwrap();
    client.dma_map(BASE, 0x1000, RW, None).unwrap();
    client.region_write(7, 4, &[7, 0]).unwrap();
    std::thread::scope(|scope| {
        // The guest waits for its register, and its VMM serves memory meanwhile.
        let guest = scope.spawn(|| {
            let mut out = [0; 4];
            client.region_read(0, 0, &mut out).map(|()| out)
        });
        let access = rig.access();
        let mut out = [0; 2];
        rig.recorder.dma.read(BASE, &mut out).unwrap();
        assert_eq!(out, [7, 7]);
        rig.recorder.dma.write(BASE, &[1, 2]).unwrap();
        assert!(rig.device.respond(access.id, Some(&[4; 4])));
        assert_eq!(guest.join().unwrap().unwrap(), [4; 4]);
    });
}

#[test]
fn a_client_that_does_not_answer_or_leaves_is_waited_for_no_longer_than_2_seconds() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.dma_map(BASE, 0x1000, RW, None).unwrap();
    let start = Instant::now();
    assert!(rig.recorder.dma.read(BASE, &mut [0; 4]).is_err());
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(1) && took < Duration::from_secs(4),
        "{took:?}"
    );

    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.recorder.dma.read(BASE, &mut [0; 4]));
        // The request is on its way.
        while client.receive_raw().unwrap().header.id != 2 {}
        drop(client);
        assert!(waiting.join().unwrap().is_err());
    });
    // Not by the deadline, which is 2 seconds.
    assert!(start.elapsed() < Duration::from_millis(1800));
}

#[test]
fn a_request_that_was_given_up_half_sent_still_goes_out_whole() {
    let rig = Rig::new(Setup {
        access_timeout: Duration::from_millis(500),
        ..Setup::default()
    });
    let mut client = rig.client();
    client.dma_map(BASE, MAX_DATA as u64, RW, None).unwrap();
    // More than the socket takes from a client that does not read.
    assert!(rig.recorder.dma.write(BASE, &vec![7; MAX_DATA]).is_err());
    let request = client.receive_raw().unwrap();
    assert_eq!(request.header.command, Command::DMA_WRITE);
    assert_eq!(request.payload.len(), 16 + MAX_DATA);
    client.device_info().unwrap();
}

#[test]
fn a_halted_device_stops_waiting_at_once() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.dma_map(BASE, 0x1000, RW, None).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.recorder.dma.read(BASE, &mut [0; 4]));
        client.receive_raw().unwrap();
        rig.recorder.dma.halt();
        assert!(waiting.join().unwrap().is_err());
    });
    // Not by the deadline, which is 2 seconds.
    assert!(start.elapsed() < Duration::from_millis(1800));
    rig.recorder.dma.resume();
    // The answer to what was given up goes nowhere, and nothing breaks.
    let late = message(1, Command::DMA_READ, TYPE_REPLY, &[0; 20]);
    client.send_raw(&late, &[]).unwrap();
    client.device_info().unwrap();
}

/// A client with QEMU's structure: {address u64, count u32, data}, sizes as if padded to 16.
fn qemu_answers(client: &mut Client, memory: &mut [u8]) {
    let RawMessage {
        header, payload, ..
    } = client.receive_raw().unwrap();
    let at = (u64_at(&payload, 0).unwrap() - BASE) as usize;
    let count = u32_at(&payload, 8).unwrap() as usize;
    // QEMU's own check of the request's size.
    assert!(header.size as usize >= 32);
    let reply = match header.command {
        Command::DMA_READ => {
            let mut reply = payload[..12].to_vec();
            reply.extend(&memory[at..at + count]);
            reply.resize(16 + count, 0);
            reply
        }
        _ => {
            assert!(count <= header.size as usize - 32);
            memory[at..at + count].copy_from_slice(&payload[12..12 + count]);
            Vec::new()
        }
    };
    let bytes = message(header.id, header.command, TYPE_REPLY, &reply);
    client.send_raw(&bytes, &[]).unwrap();
}

fn qemu_layout(version: &[u8], reads_first: bool) {
    let rig = Rig::new(Setup::default());
    let mut client = rig.raw();
    client
        .send_raw(&message(1, Command::VERSION, 0, version), &[])
        .unwrap();
    client.receive_raw().unwrap();
    client.dma_map(BASE, 0x1000, RW, None).unwrap();
    let mut memory: Vec<u8> = (0..=255).cycle().take(0x1000).collect();
    std::thread::scope(|scope| {
        let dma = &rig.recorder.dma;
        let device = scope.spawn(move || {
            let mut out = [0; 6];
            if reads_first {
                dma.read(BASE + 0x41, &mut out).unwrap();
                assert_eq!(out, [0x41, 0x42, 0x43, 0x44, 0x45, 0x46]);
            }
            dma.write(BASE + 0x80, b"abcdef").unwrap();
            dma.read(BASE + 0x80, &mut out).unwrap();
            assert_eq!(&out, b"abcdef");
        });
        for _ in 0..if reads_first { 3 } else { 2 } {
            qemu_answers(&mut client, &mut memory);
        }
        device.join().unwrap();
    });
    assert_eq!(&memory[0x7e..0x88], b"\x7e\x7fabcdef\x86\x87");
}

#[test]
fn qemus_layout_is_used_with_a_client_that_shows_qemus_capabilities() {
    qemu_layout(
        b"\0\0\0\0{\"capabilities\":{\"write_multiple\":true}}\0",
        false,
    );
}

#[test]
fn qemus_layout_is_recognised_by_its_first_answer() {
    qemu_layout(b"\0\0\0\0{}\0", true);
}

#[test]
fn a_qemu_with_the_layout_of_the_specification_is_recognised_too() {
    let rig = Rig::new(Setup::default());
    let memory = Arc::new(Memory(Mutex::new((0..=255).collect())));
    let options = ClientOptions {
        memory: Some(memory),
        ..ClientOptions::default()
    };
    let mut client = Client::connect_raw(&rig.path, options).unwrap();
    let version = b"\0\0\0\0{\"capabilities\":{\"write_multiple\":true}}\0";
    client
        .send_raw(&message(1, Command::VERSION, 0, version), &[])
        .unwrap();
    client.receive_raw().unwrap();
    client.dma_map(BASE, 0x100, RW, None).unwrap();
    std::thread::scope(|scope| {
        let dma = &rig.recorder.dma;
        let device = scope.spawn(move || {
            let mut out = [0; 4];
            dma.read(BASE + 0x20, &mut out).unwrap();
            assert_eq!(out, [0x20, 0x21, 0x22, 0x23]);
            dma.write(BASE + 0x30, b"spec").unwrap();
            dma.read(BASE + 0x30, &mut out).unwrap();
            assert_eq!(&out, b"spec");
        });
        while !device.is_finished() {
            client.serve(Duration::from_millis(20)).unwrap();
        }
        device.join().unwrap();
    });
}

#[test]
fn answers_that_do_not_fit_the_question_are_faults() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    client.dma_map(BASE, 0x1000, RW, None).unwrap();
    for payload in [
        vec![],
        vec![0; 16],
        vec![0xff; 20],
        vec![0; 21],
        vec![0; 5000],
    ] {
        std::thread::scope(|scope| {
            let device = scope.spawn(|| rig.recorder.dma.read(BASE, &mut [0; 4]));
            let request = client.receive_raw().unwrap().header;
            let reply = message(request.id, request.command, TYPE_REPLY, &payload);
            client.send_raw(&reply, &[]).unwrap();
            assert!(device.join().unwrap().is_err(), "{} bytes", payload.len());
        });
    }
    client.device_info().unwrap();
}
