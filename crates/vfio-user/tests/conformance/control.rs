//! Control accesses that take their time: what waits behind them, and for how long.

use std::time::{Duration, Instant};

use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{ControlKind, ServerEvent};

use crate::fixture::{eventually, message, Rig, Setup};

fn manual() -> Rig {
    Rig::new(Setup {
        manual: true,
        ..Setup::default()
    })
}

fn read(id: u16, offset: u64, count: u32) -> Vec<u8> {
    let access = RegionAccess {
        offset,
        region: 0,
        count,
    };
    message(id, Command::REGION_READ, 0, &access.encode())
}

fn write(id: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess {
        offset,
        region: 0,
        count: data.len() as u32,
    };
    let payload = [&access.encode()[..], data].concat();
    message(id, Command::REGION_WRITE, 0, &payload)
}

#[test]
fn an_access_says_what_the_guest_wants_and_gets_its_answer() {
    let rig = manual();
    let mut client = rig.guest();
    client.send_raw(&read(40, 0, 4), &[]).unwrap();
    let access = rig.access();
    assert_eq!((access.offset, access.msix_enabled), (0, false));
    assert_eq!(access.kind, ControlKind::Read { length: 4 });
    assert!(rig.device.respond(access.id, Some(&[1, 2, 3, 4])));
    let reply = client.receive_raw().unwrap();
    assert_eq!((reply.header.id, reply.header.flags), (40, TYPE_REPLY));
    assert_eq!(reply.payload[16..], [1, 2, 3, 4]);
    assert_eq!(RegionAccess::parse(&reply.payload).unwrap().count, 4);

    client.region_write(7, 0x9a, &[0, 0x80]).unwrap();
    client.send_raw(&write(41, 18, &[5]), &[]).unwrap();
    let access = rig.access();
    assert_eq!((access.offset, access.msix_enabled), (18, true));
    assert_eq!(access.kind, ControlKind::Write(vec![5]));
    assert!(rig.device.respond(access.id, None));
    let reply = client.receive_raw().unwrap();
    assert_eq!((reply.header.id, reply.payload.len()), (41, 16));
}

#[test]
fn an_answer_of_the_wrong_length_reads_as_all_ones() {
    let rig = manual();
    let mut client = rig.guest();
    for answer in [None, Some(vec![1]), Some(vec![0; 300])] {
        client.send_raw(&read(1, 0, 4), &[]).unwrap();
        assert!(rig.device.respond(rig.access().id, answer.as_deref()));
        assert_eq!(client.receive_raw().unwrap().payload[16..], [0xff; 4]);
    }
}

#[test]
fn an_access_is_answered_once() {
    let rig = manual();
    let mut client = rig.guest();
    client.send_raw(&read(1, 0, 1), &[]).unwrap();
    let id = rig.access().id;
    assert!(!rig.device.respond(id + 1, Some(&[0])));
    assert!(rig.device.respond(id, Some(&[9])));
    assert!(!rig.device.respond(id, Some(&[8])));
    assert_eq!(client.receive_raw().unwrap().payload[16..], [9]);
    assert_eq!(rig.device.counters().late_answers, 2);
    client.device_info().unwrap();
}

#[test]
fn kicks_and_commands_behind_an_access_keep_their_order() {
    let rig = manual();
    let mut client = rig.guest();
    let info = message(5, Command::GET_INFO, 0, &[0; 16]);
    let burst = [
        write(1, 18, &[4]),
        write(2, 16, &[0, 0]),
        write(3, 18, &[7]),
        write(4, 16, &[1, 0]),
        info,
    ];
    client.send_raw(&burst.concat(), &[]).unwrap();
    let first = rig.access();
    std::thread::sleep(Duration::from_millis(50));
    assert!(rig.kicks().is_empty());
    assert!(rig.device.respond(first.id, None));
    let second = rig.access();
    assert_eq!(second.kind, ControlKind::Write(vec![7]));
    assert_eq!(rig.kicks(), [0]);
    assert!(rig.device.respond(second.id, None));
    let ids: Vec<u16> = (0..5)
        .map(|_| client.receive_raw().unwrap().header.id)
        .collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(rig.kicks(), [0, 1]);
}

#[test]
fn a_message_that_comes_during_an_access_is_carried_out_right_after_it() {
    let rig = manual();
    let mut client = rig.guest();
    client.send_raw(&read(1, 0, 1), &[]).unwrap();
    let access = rig.access();
    std::thread::sleep(Duration::from_millis(30));
    client.send_raw(&write(2, 16, &[3, 0]), &[]).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let answered = Instant::now();
    assert!(rig.device.respond(access.id, Some(&[0])));
    client.receive_raw().unwrap();
    assert_eq!(client.receive_raw().unwrap().header.id, 2);
    // Long before the deadline of the access would have woken the session.
    assert!(answered.elapsed() < Duration::from_millis(500));
    assert_eq!(rig.kicks(), [3]);
}

#[test]
fn accesses_without_an_answer_are_answered_in_time_each_from_its_arrival() {
    let rig = Rig::new(Setup {
        manual: true,
        access_timeout: Duration::from_millis(300),
        ..Setup::default()
    });
    let mut client = rig.guest();
    let start = Instant::now();
    let burst: Vec<u8> = [read(1, 0, 4), write(2, 18, &[0]), read(3, 18, 1)].concat();
    client.send_raw(&burst, &[]).unwrap();
    let ids: Vec<u64> = (0..3).map(|_| rig.access().id).collect();
    for (id, payload) in [(1, &[0xff; 4][..]), (2, &[]), (3, &[0xff])] {
        let reply = client.receive_raw().unwrap();
        assert_eq!((reply.header.id, reply.header.flags), (id, TYPE_REPLY));
        assert_eq!(&reply.payload[16..], payload);
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    // Not 900 ms: QEMU's timeout of 5 s would come up with few accesses otherwise.
    assert!(took < Duration::from_millis(800), "{took:?}");
    for id in ids {
        assert!(!rig.device.respond(id, Some(&[0])));
    }
    let counters = rig.device.counters();
    assert_eq!((counters.timed_out_accesses, counters.late_answers), (3, 3));
    eventually("the events", || {
        let events = rig.events.lock().unwrap();
        let timeouts = events
            .iter()
            .filter(|event| event.kind() == "access-timeout");
        timeouts.count() == 3
    });
    assert!(rig
        .events
        .lock()
        .unwrap()
        .contains(&ServerEvent::AccessTimeout {
            offset: 18,
            length: 1,
            write: true
        }));
    client.device_info().unwrap();
}

#[test]
fn a_posted_access_holds_up_what_comes_behind_it_and_is_not_answered() {
    let rig = manual();
    let mut client = rig.guest();
    client.region_write_posted(0, 18, &[1]).unwrap();
    let access = rig.access();
    client
        .send_raw(&message(6, Command::GET_INFO, 0, &[0; 16]), &[])
        .unwrap();
    assert!(rig.device.respond(access.id, None));
    assert_eq!(client.receive_raw().unwrap().header.id, 6);
}

#[test]
fn write_multi_waits_for_each_of_its_control_accesses() {
    let rig = manual();
    let mut client = rig.guest();
    let mut payload = 3u64.to_ne_bytes().to_vec();
    for (offset, data) in [(18, [1, 0]), (16, [5, 0]), (4, [2, 0])] {
        let access = RegionAccess {
            offset,
            region: 0,
            count: if offset == 18 { 1 } else { 2 },
        };
        payload.extend(access.encode());
        payload.extend(data.iter().chain(&[0; 6]));
    }
    client
        .send_raw(&message(1, Command::WRITE_MULTI, 0, &payload), &[])
        .unwrap();
    client.send_raw(&write(2, 16, &[6, 0]), &[]).unwrap();
    let first = rig.access();
    assert!(rig.kicks().is_empty());
    rig.device.respond(first.id, None);
    let second = rig.access();
    assert_eq!((second.offset, rig.kicks()), (4, vec![5]));
    rig.device.respond(second.id, None);
    assert_eq!(client.receive_raw().unwrap().header.id, 1);
    assert_eq!(client.receive_raw().unwrap().header.id, 2);
    assert_eq!(rig.kicks(), [5, 6]);
}
