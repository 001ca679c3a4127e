//! The guest on SoftNIC, through the vfio-user server.

mod host;

use std::time::{Duration, Instant};

use host::{row, Host, Notify};
use retrovf_guest::{Access, AccessRegion, Guest, GuestOptions, Lease, Started};
use retrovf_softnic::{Config, GATEWAY_ADDRESS};
use retrovf_spec::{legacy, pci};

const PATIENCE: Duration = Duration::from_secs(5);

fn boot(host: &Host, member: usize, options: GuestOptions) -> (Guest, Started) {
    let mut guest = Guest::connect(host.path(member), options).unwrap();
    guest.enumerate().unwrap();
    let started = guest.start().unwrap();
    (guest, started)
}

fn goes_online(guest: &mut Guest) {
    let Lease {
        address,
        prefix,
        router,
        server,
        lease_seconds,
    } = guest.dhcp(PATIENCE).unwrap();
    assert_eq!(address.octets()[..3], [10, 0, 2]);
    assert_eq!((prefix, router), (24, Some(GATEWAY_ADDRESS)));
    assert_eq!(server, GATEWAY_ADDRESS);
    assert!(lease_seconds >= 60);
    let report = guest.ping(GATEWAY_ADDRESS, 50, PATIENCE).unwrap();
    assert_eq!((report.sent, report.received), (50, 50));
    assert_eq!(report.rtt.count, 50);
}

#[test]
fn a_guest_finds_a_transitional_network_device() {
    let host = Host::with_gateway(Notify::Address);
    let mut guest = Guest::connect(host.path(1), GuestOptions::default()).unwrap();
    let identity = guest.enumerate().unwrap();
    assert_eq!((identity.vendor, identity.device), (0x1af4, 0x1000));
    assert_eq!((identity.revision, identity.subsystem), (0, 1));
    assert_eq!(identity.class_code, 0x02_0000);
    assert_eq!((identity.bar0, identity.bar0_size), (0xc001, 32));
    assert_eq!((identity.interrupt_pin, identity.msix_vectors), (0, 4));
    let trace = guest.take_trace();
    let sizing = Access {
        region: AccessRegion::Config,
        write: true,
        offset: pci::BAR0 as u64,
        width: 4,
        value: 0xffff_ffff,
        ns: 0,
    };
    assert!(trace
        .iter()
        .any(|access| Access { ns: 0, ..*access } == sizing));
    assert!(guest.take_trace().is_empty());
}

fn refuses(name: &str, row: retrovf_pci::OverlayRow, code: &str) {
    let host = Host::with_overlay(Config::default(), Notify::Address, &[row]);
    let mut guest = Guest::connect(host.path(1), GuestOptions::default()).unwrap();
    assert_eq!(guest.enumerate().unwrap_err().code(), code, "{name}");
    assert_eq!(
        guest.start().unwrap_err().code(),
        "ERR_GUEST_STATE",
        "{name}"
    );
}

#[test]
fn a_guest_refuses_functions_that_no_pci_core_takes() {
    let refused = "ERR_GUEST_REFUSED";
    refuses("absent", row(0, 4, u32::MAX, u32::MAX, 0), refused);
    refuses("bridge", row(pci::HEADER_TYPE, 1, 1, 0x7f, 0), refused);
    let bar0 = |value, writable| row(pci::BAR0, 4, value, u32::MAX, writable);
    refuses("memory BAR", bar0(0, !31), refused);
    refuses("BAR of no size", bar0(1, 0), refused);
    refuses("BAR with holes", bar0(1, 0xffff_ff50), refused);
    refuses("BAR of 32 KiB", bar0(1, 0xffff_8000), refused);
    let pointer = row(pci::CAPABILITY_LIST, 1, 0xf8, 0xff, 0);
    let host = Host::with_overlay(
        Config::default(),
        Notify::Address,
        &[pointer, row(0xf8, 2, 0xf809, 0xffff, 0)],
    );
    let mut guest = Guest::connect(host.path(1), GuestOptions::default()).unwrap();
    let error = guest.enumerate().unwrap_err();
    assert_eq!(error.code(), "ERR_GUEST_DEVICE");
    assert!(error.to_string().contains("loop"), "{error}");
}

#[test]
fn the_driver_starts_the_device_as_linux_does() {
    let host = Host::with_gateway(Notify::Address);
    let mut guest = Guest::connect(host.path(1), GuestOptions::default()).unwrap();
    guest.enumerate().unwrap();
    guest.take_trace();
    let started = guest.start().unwrap();
    assert_eq!(started.mac, [0x52, 0x54, 0, 0x5e, 0, 1]);
    assert!(started.msix && started.link_up);
    assert_eq!(started.queue_sizes, [256, 256]);
    assert_eq!(started.accepted & !started.offered, 0);
    let writes: Vec<(u64, u32)> = guest
        .take_trace()
        .iter()
        .filter(|access| access.write && access.region == AccessRegion::Bar0)
        .map(|access| (access.offset, access.value))
        .collect();
    let expected = [
        (legacy::STATUS, 0),
        (legacy::STATUS, 1),
        (legacy::STATUS, 3),
        (legacy::GUEST_FEATURES, started.accepted),
        (legacy::CONFIG_VECTOR, 0),
        (legacy::QUEUE_SELECT, 0),
        (legacy::QUEUE_PFN, 0x100),
        (legacy::QUEUE_VECTOR, 1),
        (legacy::QUEUE_SELECT, 1),
        (legacy::QUEUE_PFN, 0x110),
        (legacy::QUEUE_VECTOR, 2),
        (legacy::STATUS, 7),
        (legacy::QUEUE_NOTIFY, 0),
    ];
    assert_eq!(writes, expected);
}

#[test]
fn a_guest_goes_online() {
    let host = Host::with_gateway(Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    goes_online(&mut guest);
}

#[test]
fn a_guest_whose_memory_is_reached_by_messages_goes_online() {
    let host = Host::with_gateway(Notify::Address);
    let options = GuestOptions {
        shared_memory: false,
        ..GuestOptions::default()
    };
    let (mut guest, _) = boot(&host, 1, options);
    goes_online(&mut guest);
}

#[test]
fn a_guest_that_polls_goes_online() {
    let host = Host::with_gateway(Notify::Address);
    let options = GuestOptions {
        msix: false,
        ..GuestOptions::default()
    };
    let (mut guest, started) = boot(&host, 1, options);
    assert!(!started.msix);
    goes_online(&mut guest);
}

#[test]
fn a_guest_of_a_device_without_msix_goes_online() {
    let config = Config {
        msix_vectors: 0,
        uplink: retrovf_softnic::Uplink::Gateway,
        ..Config::default()
    };
    let host = Host::new(config, Notify::Address);
    let (mut guest, started) = boot(&host, 1, GuestOptions::default());
    assert!(!started.msix);
    goes_online(&mut guest);
}

#[test]
fn a_guest_whose_queues_share_a_vector_goes_online() {
    let config = Config {
        msix_vectors: 2,
        uplink: retrovf_softnic::Uplink::Gateway,
        ..Config::default()
    };
    let host = Host::new(config, Notify::Address);
    let (mut guest, started) = boot(&host, 1, GuestOptions::default());
    assert!(started.msix);
    goes_online(&mut guest);
}

#[test]
fn a_guest_whose_notifications_are_commands_goes_online() {
    let host = Host::with_gateway(Notify::Command);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    goes_online(&mut guest);
}

#[test]
fn a_guest_starts_again_after_a_stop_and_another_after_it_left() {
    let host = Host::with_gateway(Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    goes_online(&mut guest);
    guest.stop().unwrap();
    assert_eq!(guest.dhcp(PATIENCE).unwrap_err().code(), "ERR_GUEST_STATE");
    guest.stop().unwrap();
    guest.start().unwrap();
    goes_online(&mut guest);
    // It leaves without a stop; MSI-X is still on when the next one comes.
    drop(guest);
    let (mut next, _) = boot(&host, 1, GuestOptions::default());
    goes_online(&mut next);
}

#[test]
fn guests_exchange_frames_on_the_embedded_switch() {
    let config = Config {
        vfs: 2,
        ..Config::default()
    };
    let host = Host::new(config, Notify::Address);
    let (mut alice, at_alice) = boot(&host, 1, GuestOptions::default());
    let (mut bob, at_bob) = boot(&host, 2, GuestOptions::default());
    let frame = |to: [u8; 6], from: [u8; 6], n: u32| {
        let mut frame = [&to[..], &from, &[0x88, 0xb5], &n.to_le_bytes()].concat();
        frame.resize(60 + n as usize % 1455, n as u8);
        frame
    };
    for n in 0..1000 {
        let there = frame(at_bob.mac, at_alice.mac, n);
        alice.send_frame(&there).unwrap();
        assert_eq!(bob.recv_frame(PATIENCE).unwrap(), Some(there), "frame {n}");
        let back = frame(at_alice.mac, at_bob.mac, n);
        bob.send_frame(&back).unwrap();
        assert_eq!(alice.recv_frame(PATIENCE).unwrap(), Some(back), "frame {n}");
    }
    let started = Instant::now();
    assert_eq!(bob.recv_frame(Duration::from_millis(50)).unwrap(), None);
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[test]
fn measurements_count_every_access_and_stay_out_of_the_trace() {
    let host = Host::with_gateway(Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    guest.take_trace();
    let control = guest.measure_control(200).unwrap();
    assert_eq!(control.count, 200);
    assert!(0 < control.p50 && control.p50 <= control.p99 && control.p99 <= control.max);
    let before = host.kicks(1);
    let notify = guest.measure_notify(300).unwrap();
    assert_eq!(notify.count, 300);
    assert_eq!(host.kicks(1) - before, 300);
    assert!(guest.take_trace().is_empty());
    guest.set_tracing(false);
    guest.stop().unwrap();
    assert!(guest.take_trace().is_empty());
}

#[test]
fn a_ping_that_nobody_answers_times_out() {
    let host = Host::with_gateway(Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    guest.dhcp(PATIENCE).unwrap();
    let nobody = "10.0.2.200".parse().unwrap();
    let report = guest.ping(nobody, 6, Duration::from_millis(20)).unwrap();
    assert_eq!((report.sent, report.received), (6, 0));
    let report = guest.ping(GATEWAY_ADDRESS, 3, PATIENCE).unwrap();
    assert_eq!(report.received, 3);
}

#[test]
fn a_guest_whose_kicks_are_eventfds_sends_no_message_for_them() {
    let host = Host::with_gateway(Notify::Address);
    let options = GuestOptions {
        ioeventfds: true,
        ..GuestOptions::default()
    };
    let (mut guest, _) = boot(&host, 1, options);
    guest.take_trace();
    guest.dhcp(PATIENCE).unwrap();
    let before = host.kicks(1);
    assert!(before > 0);
    for _ in 0..4 {
        // Longer than the SoftNIC looks for what follows by itself.
        std::thread::sleep(Duration::from_millis(20));
        let report = guest.ping(GATEWAY_ADDRESS, 1, PATIENCE).unwrap();
        assert_eq!(report.received, 1);
    }
    assert!(host.kicks(1) - before >= 4);
    assert_eq!(guest.take_trace(), []);
}

#[test]
fn without_a_server_behind_the_switch_there_is_no_lease() {
    let host = Host::new(Config::default(), Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    let error = guest.dhcp(Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.code(), "ERR_GUEST_TIMEOUT");
}

#[test]
fn calls_in_the_wrong_order_and_impossible_frames_are_refused() {
    let host = Host::with_gateway(Notify::Address);
    let mut guest = Guest::connect(host.path(1), GuestOptions::default()).unwrap();
    let state = "ERR_GUEST_STATE";
    assert_eq!(guest.start().unwrap_err().code(), state);
    guest.enumerate().unwrap();
    assert_eq!(guest.measure_control(1).unwrap_err().code(), state);
    assert_eq!(guest.send_frame(&[0; 60]).unwrap_err().code(), state);
    guest.start().unwrap();
    assert_eq!(guest.start().unwrap_err().code(), state);
    assert_eq!(guest.enumerate().unwrap_err().code(), state);
    let ping = guest.ping(GATEWAY_ADDRESS, 1, PATIENCE);
    assert_eq!(ping.unwrap_err().code(), state);
    for size in [0, 13, 1515] {
        let error = guest.send_frame(&vec![0; size]).unwrap_err();
        assert_eq!(error.code(), "ERR_GUEST_FRAME");
    }
}

#[test]
fn a_guest_whose_server_ends_gets_an_error_at_once() {
    let host = Host::with_gateway(Notify::Address);
    let (mut guest, _) = boot(&host, 1, GuestOptions::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            host.servers[0].close().unwrap();
        });
        let error = guest.recv_frame(Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.code(), "ERR_VFIO_USER_CLOSED");
    });
    assert!(started.elapsed() < PATIENCE);
    assert!(guest.stop().is_err());
}
