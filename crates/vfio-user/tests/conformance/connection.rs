//! VERSION, and who is served.

use std::time::{Duration, Instant};

use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{Client, ClientError, ClientOptions};

use crate::fixture::{errno, eventually, message, Rig, Setup};

/// QEMU 10.2's version data.
const QEMU: &[u8] =
    b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\
    \"max_dma_maps\":65535,\"pgsizes\":4096,\"migration\":{\"pgsize\":4096,\
    \"max_bitmap_size\":268435456},\"write_multiple\":true}}\0";

#[test]
fn qemus_handshake_is_answered_within_the_size_of_its_own_message() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.raw();
    let request = message(0x4321, Command::VERSION, 0, QEMU);
    client.send_raw(&request, &[]).unwrap();
    let reply = client.receive_raw().unwrap();
    assert_eq!((reply.header.id, reply.header.flags), (0x4321, TYPE_REPLY));
    assert!(reply.header.size as usize <= request.len());
    // Major and minor 0: QEMU refuses a minor above its own.
    assert_eq!(reply.payload[..4], [0; 4]);
    let json = reply.payload[4..].strip_suffix(&[0]).unwrap();
    let json = String::from_utf8(json.to_vec()).unwrap();
    assert!(!json.contains("write_multiple"), "{json}");
    assert!(!json.contains("twin_socket"), "{json}");
}

#[test]
fn version_data_is_optional_and_newer_minors_are_answered_with_0() {
    for payload in [
        &[0, 0, 0, 0][..],
        b"\0\0\x02\0{}\0",
        b"\0\0\0\0{\"capabilities\":{}}\0",
    ] {
        let rig = Rig::new(Setup::default());
        let mut client = rig.raw();
        client
            .send_raw(&message(1, Command::VERSION, 0, payload), &[])
            .unwrap();
        let reply = client.receive_raw().unwrap();
        assert_eq!(reply.header.flags, TYPE_REPLY);
        assert_eq!(reply.payload[..4], [0; 4]);
        assert_eq!(client.device_info().unwrap().irqs, 5);
    }
}

#[test]
fn a_bad_first_message_is_refused_and_the_connection_closed() {
    let rig = Rig::new(Setup::default());
    let long = [&[0; 4][..], &[b' '; 5000], &[0]].concat();
    let cases: [(&str, Vec<u8>, bool); 9] = [
        (
            "another major",
            message(1, Command::VERSION, 0, b"\x01\0\0\0{}\0"),
            true,
        ),
        (
            "no NUL",
            message(1, Command::VERSION, 0, b"\0\0\0\0{}"),
            true,
        ),
        (
            "no JSON",
            message(1, Command::VERSION, 0, b"\0\0\0\0{\0"),
            true,
        ),
        ("too short", message(1, Command::VERSION, 0, b"\0\0"), true),
        (
            "another command",
            message(1, Command::GET_INFO, 0, &[0; 16]),
            true,
        ),
        (
            "a reply",
            message(1, Command::VERSION, TYPE_REPLY, QEMU),
            true,
        ),
        (
            "wants no reply",
            message(1, Command::VERSION, NO_REPLY, QEMU),
            false,
        ),
        ("too long", message(1, Command::VERSION, 0, &long), false),
        ("size below a header", vec![0; 16], false),
    ];
    let count = cases.len() as u64;
    for (what, bytes, answered) in cases {
        let mut client = rig.raw();
        client.send_raw(&bytes, &[]).unwrap();
        if answered {
            let reply = client.receive_raw().unwrap().header;
            assert_eq!(reply.error, libc::EINVAL as u32, "{what}");
        }
        let end = client.receive_raw();
        assert!(matches!(end, Err(ClientError::Closed)), "{what}: {end:?}");
    }
    assert_eq!(rig.device.counters().protocol_errors, count);
    assert_eq!(rig.device.counters().sessions, 0);
    rig.guest();
}

#[test]
fn a_handshake_may_come_in_pieces_and_with_the_first_command_behind_it() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.raw();
    let bytes = [
        message(1, Command::VERSION, 0, QEMU),
        message(2, Command::GET_INFO, 0, &[0; 16]),
    ]
    .concat();
    let (start, rest) = bytes.split_at(20);
    for piece in start.chunks(3).chain([rest]) {
        client.send_raw(piece, &[]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(client.receive_raw().unwrap().header.id, 1);
    let info = client.receive_raw().unwrap();
    assert_eq!((info.header.id, info.payload.len()), (2, 16));
}

#[test]
fn a_second_client_is_refused_and_the_first_does_not_notice() {
    let rig = Rig::new(Setup::default());
    let mut first = rig.guest();
    let second = Client::connect(&rig.path, ClientOptions::default());
    assert_eq!(errno(second), libc::EBUSY);
    assert!(rig.has_event("client-refused"));
    first.region_write(0, 16, &[1, 0]).unwrap();
    assert_eq!(rig.kicks(), [1]);
}

#[test]
fn clients_that_connect_and_say_nothing_hold_nobody_up() {
    let rig = Rig::new(Setup::default());
    let mut silent: Vec<Client> = (0..40).map(|_| rig.raw()).collect();
    silent[39].send_raw(&[1], &[]).unwrap();
    let start = Instant::now();
    rig.guest().region_write(0, 16, &[0, 0]).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    // They are not kept: the oldest had to go at once, the others after their time.
    for client in &mut silent {
        assert!(matches!(client.receive_raw(), Err(ClientError::Closed)));
    }
}

#[test]
fn a_client_may_come_again_at_once_after_the_first_left() {
    let rig = Rig::new(Setup::default());
    for round in 0..200 {
        let mut client = rig.client();
        assert_eq!(client.device_info().unwrap().regions, 9, "round {round}");
    }
    eventually("the last to be gone", || {
        let events = rig.events.lock().unwrap();
        let gone = events
            .iter()
            .filter(|event| event.kind() == "client-disconnected");
        gone.count() == 200
    });
    assert!(!rig.has_event("client-refused"));
    assert_eq!(rig.device.counters().sessions, 200);
}

#[test]
fn a_header_that_lies_about_its_size_ends_the_connection_and_not_the_server() {
    let rig = Rig::new(Setup::default());
    for size in [0u32, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
        let mut client = rig.client();
        let mut header = Header::command(1, Command::GET_INFO, 0);
        header.size = size;
        client.send_raw(&header.encode(), &[]).unwrap();
        assert!(
            matches!(client.receive_raw(), Err(ClientError::Closed)),
            "{size}"
        );
    }
    rig.await_event("protocol-error");
    rig.guest();
}

#[test]
fn a_message_in_single_bytes_is_a_message() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    for byte in message(9, Command::GET_INFO, 0, &[0; 16]) {
        client.send_raw(&[byte], &[]).unwrap();
    }
    assert_eq!(client.receive_raw().unwrap().header.id, 9);
}

#[test]
fn descriptors_in_the_middle_of_a_message_or_too_many_end_the_connection() {
    use std::os::fd::AsFd;
    let rig = Rig::new(Setup::default());
    let fd = crate::fixture::eventfd();
    let bytes = message(1, Command::SET_IRQS, 0, &[0; 20]);

    let mut client = rig.client();
    client.send_raw(&bytes[..20], &[]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    client.send_raw(&bytes[20..], &[fd.as_fd()]).unwrap();
    assert!(matches!(client.receive_raw(), Err(ClientError::Closed)));

    let mut client = rig.client();
    client.send_raw(&bytes, &[fd.as_fd(); 9]).unwrap();
    assert!(matches!(client.receive_raw(), Err(ClientError::Closed)));
    rig.guest();
}

#[test]
fn the_largest_transfer_passes_and_one_byte_more_does_not() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    let access = |count: usize| RegionAccess {
        offset: 0,
        region: 4,
        count: count as u32,
    };
    let write = |count: usize| {
        let payload = [&access(count).encode()[..], &vec![1; count]].concat();
        message(1, Command::REGION_WRITE, 0, &payload)
    };
    // Too large for the region, but the message itself is fine.
    client.send_raw(&write(MAX_DATA), &[]).unwrap();
    let reply = client.receive_raw().unwrap().header;
    assert_eq!(reply.error, libc::EINVAL as u32);
    client.device_info().unwrap();
    let _ = client.send_raw(&write(MAX_DATA + 1), &[]);
    assert!(client.receive_raw().is_err());
}
