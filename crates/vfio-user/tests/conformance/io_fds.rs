//! GET_REGION_IO_FDS.

use std::sync::atomic::Ordering;

use retrovf_vfio_user::wire::*;
use retrovf_vfio_user::{Client, ClientOptions, IoFd};

use crate::fixture::{eventually, message, Rig, Setup};

#[test]
fn a_signalled_queue_eventfd_rings_the_device() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let fds = client.region_io_fds(0).unwrap();
    let entries: Vec<IoFd> = fds.iter().map(|(entry, _)| *entry).collect();
    let entry = |datamatch| IoFd {
        offset: 16,
        size: 2,
        kind: IO_FD_IOEVENTFD,
        flags: IO_FD_DATAMATCH | IO_FD_PIO,
        datamatch,
    };
    assert_eq!(entries, [entry(0), entry(1), entry(2)]);
    rustix::io::write(&fds[2].1, &1u64.to_ne_bytes()).unwrap();
    eventually("the kick", || rig.kicks() == [2]);
    rustix::io::write(&fds[0].1, &1u64.to_ne_bytes()).unwrap();
    eventually("the kick", || rig.kicks() == [2, 0]);
    eventually("the count", || {
        rig.device.counters().notifies_forwarded == 2
    });
    assert_eq!(rig.device.counters().notifies, 0);
}

#[test]
fn the_kernel_forwards_what_it_has_room_for_and_the_engine_the_rest() {
    let rig = Rig::new(Setup::default());
    rig.recorder.room.store(2, Ordering::SeqCst);
    let mut client = rig.guest();
    let fds = client.region_io_fds(0).unwrap();
    assert_eq!(fds.len(), 3);
    let armed = || rig.recorder.armed.lock().unwrap().clone();
    assert_eq!(armed(), [0, 1]);
    let modes = || {
        let counters = rig.device.counters();
        (counters.kernel_doorbells, counters.engine_doorbells)
    };
    assert_eq!(modes(), (2, 1));
    // Nobody reads an eventfd that the kernel forwards.
    for (_, fd) in &fds {
        rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
    }
    eventually("the kick", || rig.kicks() == [2]);
    drop(client);
    eventually("the end of the session", || modes() == (0, 0));
    assert_eq!(armed(), [0u16; 0]);
    assert_eq!(rig.kicks(), [2]);
}

#[test]
fn asking_twice_gives_the_same_eventfds() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let first = client.region_io_fds(0).unwrap();
    let second = client.region_io_fds(0).unwrap();
    assert_eq!(second.len(), 3);
    rustix::io::write(&first[1].1, &1u64.to_ne_bytes()).unwrap();
    rustix::io::write(&second[1].1, &1u64.to_ne_bytes()).unwrap();
    eventually("a kick", || rig.kicks().contains(&1));
}

#[test]
fn other_regions_and_devices_without_notify_target_have_none() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    for region in 1..9 {
        assert!(client.region_io_fds(region).unwrap().is_empty());
    }
    let rig = Rig::new(Setup {
        notify: false,
        ..Setup::default()
    });
    assert!(rig.client().region_io_fds(0).unwrap().is_empty());
}

#[test]
fn an_argsz_without_room_gets_the_size_to_ask_with_and_no_descriptors() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.client();
    for (argsz, entries) in [(0, 0), (16, 0), (135, 0), (136, 3)] {
        let payload: Vec<u8> = words([argsz, 0, 0, 0]).collect();
        client
            .send_raw(&message(2, Command::REGION_IO_FDS, 0, &payload), &[])
            .unwrap();
        let reply = client.receive_raw().unwrap();
        assert_eq!(u32_at(&reply.payload, 0), Some(16 + 3 * 40));
        assert_eq!(u32_at(&reply.payload, 12), Some(3));
        assert_eq!(reply.payload.len(), 16 + entries * 40);
        assert_eq!(reply.fds.len(), entries);
    }
}

#[test]
fn a_client_that_takes_fewer_descriptors_gets_the_first_queues() {
    let rig = Rig::new(Setup::default());
    let mut client = Client::connect_raw(&rig.path, ClientOptions::default()).unwrap();
    let version = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":2}}\0";
    client
        .send_raw(&message(1, Command::VERSION, 0, version), &[])
        .unwrap();
    client.receive_raw().unwrap();
    assert_eq!(client.region_io_fds(0).unwrap().len(), 2);
}

#[test]
fn the_eventfds_end_with_the_session() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let fds = client.region_io_fds(0).unwrap();
    drop(client);
    rig.await_event("client-disconnected");
    rustix::io::write(&fds[0].1, &1u64.to_ne_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(rig.kicks().is_empty());
}
