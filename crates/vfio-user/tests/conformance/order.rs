//! Bounds: a client that sends without end behind an access, or does not read its replies.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::SendFlags;

use retrovf_vfio_user::wire::*;

use crate::fixture::{eventually, message, Rig, Setup};

/// Sends without waiting until the socket takes nothing for a while; returns the bytes taken.
fn flood(client: &impl AsFd, bytes: &[u8], at_most: usize) -> usize {
    let mut taken = 0;
    let mut idle = 0;
    while taken < at_most && idle < 40 {
        let rest = &bytes[taken % bytes.len()..];
        match rustix::net::send(client, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => {
                taken += n;
                idle = 0;
            }
            Err(_) => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    taken
}

#[test]
fn behind_an_unanswered_access_the_server_stops_reading_at_a_bound() {
    let rig = Rig::new(Setup {
        manual: true,
        access_timeout: Duration::from_secs(30),
        ..Setup::default()
    });
    let mut client = rig.guest();
    let access = RegionAccess {
        offset: 0,
        region: 0,
        count: 1,
    };
    client
        .send_raw(&message(1, Command::REGION_READ, 0, &access.encode()), &[])
        .unwrap();
    let access = rig.access();
    let kick = RegionAccess {
        offset: 16,
        region: 0,
        count: 2,
    };
    let kick = message(
        2,
        Command::REGION_WRITE,
        NO_REPLY,
        &[&kick.encode()[..], &[0, 0]].concat(),
    );
    let taken = flood(&client, &kick.repeat(1000), 64 << 20);
    assert!(taken < 4 << 20, "{taken} bytes were taken");
    assert!(rig.kicks().is_empty());
    assert!(rig.device.respond(access.id, Some(&[0])));
    eventually("all kicks", || rig.kicks().len() == taken / kick.len());
}

#[test]
fn a_client_that_does_not_read_is_not_served_further_and_gets_everything_when_it_does() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let access = RegionAccess {
        offset: 0,
        region: 4,
        count: 0x4000,
    };
    let read = message(3, Command::REGION_READ, 0, &access.encode());
    // Each of these 32 bytes asks for 16 KiB.
    let taken = flood(&client, &read.repeat(100), 32 << 20);
    assert!(taken < 16 << 20, "{taken} bytes were taken");
    for _ in 0..taken / read.len() {
        let reply = client.receive_raw().unwrap();
        assert_eq!((reply.header.id, reply.payload.len()), (3, 16 + 0x4000));
    }
    assert_eq!(client.device_info().unwrap().regions, 9);
}

#[test]
fn a_server_with_a_client_that_does_not_read_can_be_closed() {
    let rig = Rig::new(Setup::default());
    let client = rig.guest();
    let access = RegionAccess {
        offset: 0,
        region: 4,
        count: 0x4000,
    };
    let read = message(3, Command::REGION_READ, 0, &access.encode());
    flood(&client, &read.repeat(100), 1 << 20);
    rig.server.close().unwrap();
    assert!(rig.has_event("client-disconnected"));
}

#[test]
fn an_answer_that_finds_the_socket_full_is_flushed_when_there_is_room() {
    let rig = Rig::new(Setup {
        manual: true,
        access_timeout: Duration::from_secs(30),
        ..Setup::default()
    });
    let mut client = rig.guest();
    // Fill the socket towards the client to the brim by replies, then one access.
    let big = RegionAccess {
        offset: 0,
        region: 4,
        count: 0x1000,
    };
    let control = RegionAccess {
        offset: 0,
        region: 0,
        count: 4,
    };
    let fill = 40;
    for _ in 0..fill {
        client
            .send_raw(&message(1, Command::REGION_READ, 0, &big.encode()), &[])
            .unwrap();
    }
    client
        .send_raw(&message(2, Command::REGION_READ, 0, &control.encode()), &[])
        .unwrap();
    let access = rig.access();
    assert!(rig.device.respond(access.id, Some(&[1, 2, 3, 4])));
    for _ in 0..fill {
        assert_eq!(client.receive_raw().unwrap().header.id, 1);
    }
    assert_eq!(client.receive_raw().unwrap().payload[16..], [1, 2, 3, 4]);
}

#[test]
fn a_session_that_spins_serves_sleeps_and_ends_like_another() {
    let spin = Duration::from_millis(20);
    let rig = Rig::new(Setup {
        spin,
        ..Setup::default()
    });
    let mut client = rig.guest();
    for queue in 0..100u16 {
        client.region_write(0, 16, &queue.to_le_bytes()).unwrap();
    }
    // Long enough for the session to have given up looking.
    std::thread::sleep(3 * spin);
    client.region_write(0, 16, &[100, 0]).unwrap();
    assert_eq!(rig.kicks(), (0..=100).collect::<Vec<_>>());
    drop(client);
    rig.await_event("client-disconnected");
    let _spinning = rig.guest();
    rig.server.close().unwrap();
}
