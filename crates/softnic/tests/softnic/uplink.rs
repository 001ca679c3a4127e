//! What the switch is connected to.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use retrovf_softnic::{Config, Uplink, GATEWAY_ADDRESS, GATEWAY_MAC};
use smoltcp::wire::IpProtocol;

use crate::driver::{eventually, nic, Dut, FEATURES, PATIENCE};
use crate::frames::{
    arp_reply, arp_request, frame, ip_frame, ip_payload, ping, pong, udp_frame, End, Net, BROADCAST,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: End = End {
    mac: MAC,
    ip: Ipv4Addr::new(10, 0, 2, 77),
};
const GATEWAY: End = End {
    mac: GATEWAY_MAC,
    ip: GATEWAY_ADDRESS,
};

fn with(uplink: Uplink) -> Config {
    Config {
        uplink,
        ..Config::default()
    }
}

fn modern(dut: &Dut) -> Net<'_> {
    assert!(dut.negotiate(FEATURES));
    let rings = (dut.modern_queue(0, 64), dut.modern_queue(1, 64));
    dut.set_status(15);
    Net::new(dut, dut.bell(), rings, 12, (16, 2048))
}

#[test]
fn the_gateway_answers_only_what_is_whole_and_meant_for_it() {
    let nic = nic(with(Uplink::Gateway));
    let dut = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&dut);
    let mut broken = ping(HOST, GATEWAY, 1, b"data");
    *broken.last_mut().unwrap() ^= 1;
    net.send(&broken);
    let mut broken = ping(HOST, GATEWAY, 2, b"data");
    broken[24] ^= 1;
    net.send(&broken);
    let elsewhere = End {
        ip: Ipv4Addr::new(10, 0, 2, 9),
        ..GATEWAY
    };
    net.send(&ping(HOST, elsewhere, 3, b"data"));
    net.send(&arp_request(MAC, HOST.ip, elsewhere.ip));
    net.send(&ip_frame(HOST, GATEWAY, IpProtocol::Tcp, &[0; 20]));
    let mut fragment = ping(HOST, GATEWAY, 4, b"data");
    fragment.truncate(30);
    net.send(&fragment);
    net.send(&ping(HOST, GATEWAY, 5, b"data"));
    assert_eq!(pong(&net.receive()), Some((5, b"data".to_vec())));
    net.send(&arp_request(MAC, HOST.ip, GATEWAY.ip));
    assert_eq!(arp_reply(&net.receive()), Some(GATEWAY_MAC));
}

#[test]
fn the_gateway_says_that_it_serves_no_names() {
    let nic = nic(with(Uplink::Gateway));
    let dut = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&dut);
    net.send(&udp_frame(HOST, GATEWAY, (5353, 53), b"who is there"));
    let reply = ip_payload(&net.receive(), IpProtocol::Icmp).unwrap();
    // Destination unreachable, port unreachable, with the ports we used in the quoted packet.
    assert_eq!(reply[..2], [3, 3]);
    assert_eq!(reply[28..32], [0x14, 0xe9, 0, 53]);
}

/// Our end of a UNIX uplink.
struct Peer(UnixStream);

impl Peer {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn send(&mut self, frame: &[u8]) {
        let length = (frame.len() as u32).to_be_bytes();
        self.0.write_all(&length).unwrap();
        self.0.write_all(frame).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }
}

/// A path for a socket that goes when the test does.
struct Path(std::path::PathBuf);

impl Path {
    fn new(name: &str) -> Self {
        let file = format!("softnic-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(file))
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_unix_uplink_carries_frames_both_ways_and_connects_again() {
    let path = Path::new("frames");
    let listener = UnixListener::bind(&path.0).unwrap();
    let nic = nic(with(Uplink::Unix(path.0.clone())));
    let dut = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&dut);
    for round in 0..3u8 {
        let mut peer = Peer::accept(&listener);
        for len in [14, 60, 1514] {
            let hello = frame(MAC, [2, 0, 0, 0, 9, round], len);
            peer.send(&hello);
            assert_eq!(net.receive(), hello);
            let reply = frame(BROADCAST, MAC, len);
            net.send(&reply);
            assert_eq!(peer.receive(), reply);
        }
    }
}

#[test]
fn a_unix_uplink_waits_for_a_peer_that_comes_later() {
    let path = Path::new("later");
    let nic = nic(with(Uplink::Unix(path.0.clone())));
    let dut = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&dut);
    net.send(&frame(BROADCAST, MAC, 60));
    std::thread::sleep(Duration::from_millis(120));
    let listener = UnixListener::bind(&path.0).unwrap();
    let mut peer = Peer::accept(&listener);
    // The peer's first frame proves that the uplink is up; nothing from before it arrives.
    let hello = frame(MAC, [2, 0, 0, 0, 9, 9], 60);
    peer.send(&hello);
    assert_eq!(net.receive(), hello);
    net.send(&frame(BROADCAST, MAC, 99));
    assert_eq!(peer.receive().len(), 99);
}

#[test]
fn a_peer_that_announces_an_impossible_frame_is_left() {
    let path = Path::new("giant");
    let listener = UnixListener::bind(&path.0).unwrap();
    let nic = nic(with(Uplink::Unix(path.0.clone())));
    let mut peer = Peer::accept(&listener);
    peer.0.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(peer.0.read(&mut [0; 1]).unwrap(), 0);
    Peer::accept(&listener);
    drop(nic);
}

#[test]
fn a_peer_that_does_not_read_stops_neither_the_vf_nor_close() {
    let path = Path::new("deaf");
    let listener = UnixListener::bind(&path.0).unwrap();
    let nic = nic(with(Uplink::Unix(path.0.clone())));
    let mut peer = Peer::accept(&listener);
    let dut = Dut::open(&nic, nic.members()[0]);
    let mut net = modern(&dut);
    for _ in 0..4000 {
        net.send(&frame(BROADCAST, MAC, 1514));
    }
    // It still hears what the peer says.
    let hello = frame(MAC, [2, 0, 0, 0, 9, 9], 60);
    peer.send(&hello);
    assert_eq!(net.receive(), hello);
    nic.close();
}

fn ip(arguments: &[&str]) -> bool {
    let status = std::process::Command::new("ip").args(arguments).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_tap_uplink_creates_its_interface_and_the_host_answers_on_it() {
    let name = format!("rvf{}", std::process::id() % 100_000);
    let nic = match retrovf_softnic::SoftNic::new(with(Uplink::Tap(name.clone()))) {
        Ok(nic) => nic,
        Err(error) => {
            println!("skipped, needs /dev/net/tun and CAP_NET_ADMIN: {error}");
            assert_eq!(error.code(), "ERR_IO");
            return;
        }
    };
    let interface = std::path::Path::new("/sys/class/net").join(&name);
    assert!(interface.exists());
    let up = ip(&["link", "set", &name, "up"]);
    if up && ip(&["addr", "add", "198.18.77.1/30", "dev", &name]) {
        let dut = Dut::open(&nic, nic.members()[0]);
        let mut net = modern(&dut);
        let (own, host) = (Ipv4Addr::new(198, 18, 77, 2), Ipv4Addr::new(198, 18, 77, 1));
        net.send(&arp_request(MAC, own, host));
        // The host sends frames of its own as well.
        let mac = eventually("an answer", || arp_reply(&net.try_receive()?));
        let address = std::fs::read_to_string(interface.join("address")).unwrap();
        let shown: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(address.trim(), shown.join(":"));
    } else {
        println!("the host's side was not tested: ip cannot set the interface up");
    }
    nic.close();
    assert!(!interface.exists());
}
