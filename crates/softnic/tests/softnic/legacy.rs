//! The life of a VF under a legacy driver, through the owner's commands.

use std::net::Ipv4Addr;

use retrovf_pci::{Function, QueueIndex};
use retrovf_softnic::{Config, NotifyEntries, Uplink, GATEWAY_ADDRESS, GATEWAY_MAC};
use retrovf_spec::legacy;
use retrovf_spec::virtio::feature;
use smoltcp::wire::DhcpMessageType;

use crate::driver::{eventually, fired, nic, settle, Dut, Owner};
use crate::frames::{
    arp_reply, arp_request, dhcp, dhcp_answer, frame, ping, pong, End, Net, BROADCAST,
};

fn gateway(notify: NotifyEntries) -> Config {
    Config {
        uplink: Uplink::Gateway,
        notify,
        ..Config::default()
    }
}

/// Address by DHCP, ARP for the router, and pings.
fn dhcp_and_ping(net: &mut Net<'_>, mac: [u8; 6]) {
    net.send(&dhcp(mac, DhcpMessageType::Discover, None));
    let offer = dhcp_answer(&net.receive()).unwrap();
    let leased = Ipv4Addr::new(10, 0, 2, 15);
    let rest = (leased, GATEWAY_ADDRESS, GATEWAY_ADDRESS, 86400);
    let expected = |kind| (kind, rest.0, rest.1, rest.2, rest.3);
    assert_eq!(offer, expected(DhcpMessageType::Offer));
    net.send(&dhcp(mac, DhcpMessageType::Request, Some(leased)));
    let ack = dhcp_answer(&net.receive()).unwrap();
    assert_eq!(ack, expected(DhcpMessageType::Ack));
    net.send(&arp_request(mac, leased, GATEWAY_ADDRESS));
    let router = arp_reply(&net.receive()).unwrap();
    assert_eq!(router, GATEWAY_MAC);
    let from = End { mac, ip: leased };
    let to = End {
        mac: router,
        ip: GATEWAY_ADDRESS,
    };
    for seq in 0..300 {
        let data = vec![seq as u8; usize::from(seq) * 4];
        net.send(&ping(from, to, seq, &data));
        assert_eq!(pong(&net.receive()), Some((seq, data)));
    }
}

fn whole_life(notify: NotifyEntries) {
    let nic = nic(gateway(notify));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    vf.write(legacy::STATUS, &[0]);
    vf.write(legacy::STATUS, &[1]);
    vf.write(legacy::STATUS, &[3]);
    let offered = vf.read(legacy::DEVICE_FEATURES, 4);
    assert_eq!(offered >> 30 & 1, 0);
    assert_eq!(offered >> feature::ANY_LAYOUT & 1, 1);
    vf.write(
        legacy::GUEST_FEATURES,
        &(1u32 << feature::NET_MAC).to_le_bytes(),
    );
    let mac: [u8; 6] = vf.config(0, 6).try_into().unwrap();
    let rings = (vf.queue(&dut, 0), vf.queue(&dut, 1));
    vf.write(legacy::STATUS, &[7]);
    let bell = vf.bell(&dut);
    let mut net = Net::new(&dut, bell, rings, 10, (32, 1526));
    dhcp_and_ping(&mut net, mac);
    let stats = nic.stats()[1];
    assert_eq!((stats.tx_frames, stats.rx_frames), (303, 303));
    assert!(stats.kicks >= 606, "{stats:?}");
    // The device looks for more frames for a time before it tells of the last.
    settle();
    // Without MSI-X the ISR tells of used buffers, once.
    assert_eq!(vf.read(legacy::ISR, 1), 1);
    assert_eq!(vf.read(legacy::ISR, 1), 0);
    vf.write(legacy::STATUS, &[0]);
    assert_eq!(vf.read(legacy::STATUS, 1), 0);
    for queue in [0u16, 1] {
        vf.write(legacy::QUEUE_SELECT, &queue.to_le_bytes());
        assert_eq!(vf.read(legacy::QUEUE_PFN, 4), 0);
        assert_eq!(vf.read(legacy::QUEUE_SIZE, 2), 256);
    }
}

#[test]
fn a_legacy_driver_gets_a_lease_and_pings_with_a_notify_word_on_the_member() {
    whole_life(NotifyEntries::Member);
}

#[test]
fn a_legacy_driver_gets_a_lease_and_pings_with_a_notify_word_on_the_owner() {
    whole_life(NotifyEntries::Owner);
}

#[test]
fn without_notify_words_the_queue_notify_register_does_it() {
    let nic = nic(gateway(NotifyEntries::None));
    let owner = Owner::start(&nic);
    assert_eq!(owner.list(1, &[0x3f], 0).status, 0);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    let mut tx = vf.queue(&dut, 1);
    let at = dut.alloc(4096);
    dut.put(at + 10, &frame(BROADCAST, [2, 0, 0, 0, 0, 9], 60));
    tx.add(&dut, &[crate::driver::readable(at, 70)]);
    assert_eq!(nic.stats()[1].kicks, 0);
    vf.write(legacy::QUEUE_NOTIFY, &1u16.to_le_bytes());
    assert_eq!(nic.stats()[1].kicks, 1);
    tx.wait(&dut);
    let (region, _) = dut.structure(2);
    assert!(dut.function.notify_target(region, 0x4000).is_err());
}

#[test]
fn a_driver_that_fills_its_rings_before_features_and_status_is_served() {
    // iPXE: rings and notifications first, then features, then status 6 without ACKNOWLEDGE.
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    let mac: [u8; 6] = vf.config(0, 6).try_into().unwrap();
    let rings = (vf.queue(&dut, 0), vf.queue(&dut, 1));
    let bell = vf.bell(&dut);
    let mut net = Net::new(&dut, bell, rings, 10, (16, 2048));
    net.send(&arp_request(
        mac,
        Ipv4Addr::new(10, 0, 2, 99),
        GATEWAY_ADDRESS,
    ));
    assert_eq!(arp_reply(&net.receive()), Some(GATEWAY_MAC));
    vf.write(
        legacy::GUEST_FEATURES,
        &(1u32 << feature::NET_MAC).to_le_bytes(),
    );
    vf.write(legacy::STATUS, &[6]);
    dhcp_and_ping(&mut net, mac);
}

#[test]
fn vectors_can_be_assigned_and_are_signalled() {
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let fds = dut.msix(4);
    let vf = owner.legacy(1);
    let tx = vf.queue(&dut, 1);
    vf.write(legacy::QUEUE_VECTOR, &2u16.to_le_bytes());
    assert_eq!(vf.read(legacy::QUEUE_VECTOR, 2), 2);
    vf.write(legacy::CONFIG_VECTOR, &4u16.to_le_bytes());
    assert_eq!(vf.read(legacy::CONFIG_VECTOR, 2), 0xffff);
    let rx = vf.queue(&dut, 0);
    let mut net = Net::new(&dut, vf.bell(&dut), (rx, tx), 10, (4, 2048));
    net.send(&frame(BROADCAST, [2, 0, 0, 0, 0, 9], 60));
    eventually("the interrupt", || (fired(&fds[2]) > 0).then_some(()));
    assert_eq!(vf.read(legacy::ISR, 1), 0);
    assert_eq!(fired(&fds[0]), 0);
}

#[test]
fn a_queue_address_of_zero_takes_away_that_queue_alone() {
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    let mac: [u8; 6] = vf.config(0, 6).try_into().unwrap();
    let mut net = Net::new(
        &dut,
        vf.bell(&dut),
        (vf.queue(&dut, 0), vf.queue(&dut, 1)),
        10,
        (8, 2048),
    );
    net.send(&arp_request(
        mac,
        Ipv4Addr::new(10, 0, 2, 99),
        GATEWAY_ADDRESS,
    ));
    assert!(arp_reply(&net.receive()).is_some());
    vf.write(legacy::QUEUE_SELECT, &1u16.to_le_bytes());
    vf.write(legacy::QUEUE_PFN, &[0; 4]);
    net.queue(&frame(BROADCAST, mac, 60));
    net.bell.ring(QueueIndex(1));
    settle();
    assert_eq!(net.tx.used(&dut), None);
    // The other queue lives on, and this one can be set up again.
    net.tx = vf.queue(&dut, 1);
    net.send(&arp_request(
        mac,
        Ipv4Addr::new(10, 0, 2, 99),
        GATEWAY_ADDRESS,
    ));
    assert!(arp_reply(&net.receive()).is_some());
}

#[test]
fn the_mac_address_can_be_written_byte_by_byte_and_a_reset_restores_it() {
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let vf = owner.legacy(1);
    let own = vf.config(0, 6);
    for (at, byte) in [2, 4, 6, 8, 10, 12].into_iter().enumerate() {
        vf.write_config(at as u8, &[byte]);
    }
    assert_eq!(vf.config(0, 6), [2, 4, 6, 8, 10, 12]);
    vf.write_config(6, &[9]);
    assert_eq!(vf.config(6, 2), [1, 0]);
    vf.write(legacy::STATUS, &[0]);
    assert_eq!(vf.config(0, 6), own);
}

#[test]
fn both_views_show_one_state() {
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    vf.write(legacy::STATUS, &[3]);
    assert_eq!(dut.status(), 3);
    dut.set_status(0);
    assert_eq!(vf.read(legacy::STATUS, 1), 0);
    let mut mac = [0; 6];
    let (region, offset) = dut.structure(4);
    dut.function.region_read(region, offset, &mut mac).unwrap();
    assert_eq!(vf.config(0, 6), mac);
}

#[test]
fn a_function_reset_forgets_what_legacy_commands_set_up() {
    let nic = nic(gateway(NotifyEntries::Member));
    let owner = Owner::ready(&nic);
    let dut = Dut::open(&nic, nic.members()[0]);
    let vf = owner.legacy(1);
    vf.queue(&dut, 0);
    vf.write(legacy::STATUS, &[7]);
    dut.function.reset().unwrap();
    assert_eq!(vf.read(legacy::STATUS, 1), 0);
    vf.write(legacy::QUEUE_SELECT, &[0, 0]);
    assert_eq!(vf.read(legacy::QUEUE_PFN, 4), 0);
    // The owner and its list are untouched, and bus mastering is off.
    assert_eq!(dut.config32(4) & 4, 0);
}

#[test]
fn several_pairs_make_the_configuration_longer() {
    let nic = nic(Config {
        queue_pairs: 3,
        ..Config::default()
    });
    let owner = Owner::ready(&nic);
    assert_eq!(owner.legacy(1).config(8, 2), [3, 0]);
}

/// A trait object must be enough for everything above.
const _: fn(&Dut) -> &dyn Function = |dut| &*dut.function;
