//! A host of our own on the switch: the gateway of 10.0.2.0/24, with addresses as QEMU's user
//! network has them, so that guest images need no change.
//!
//! It answers ARP and ping for 10.0.2.2, and leases 10.0.2.15 to 10.0.2.254 by DHCP, one address for
//! each MAC address, for a day. It names itself as router and name server; other UDP ports, DNS
//! included, are answered with "port unreachable", so that a resolver fails at once. Nothing is
//! routed. Packets with wrong checksums, fragments and other protocols are dropped.

use std::net::Ipv4Addr;
use std::time::Instant;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};

use super::dhcp::{DhcpServer, Reply};
use super::BATCH;
use crate::switch::{Frame, Port, Switch};

/// Address of the gateway uplink, which is also DHCP server and router.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// MAC address of the gateway uplink.
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

const ETHERNET_HEADER: usize = 14;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Bytes of the offending packet's payload in an ICMP error.
const QUOTED: usize = 8;

/// Answers frames until the port is stopped.
pub(super) fn run(switch: &Switch, port: &Port) {
    let mut gateway = Gateway::default();
    while !port.kicks().stopping() {
        port.kicks().take();
        let frames = std::iter::from_fn(|| port.pop()).take(BATCH);
        let mut taken = 0;
        let replies: Vec<Frame> = frames
            .inspect(|_| taken += 1)
            .filter_map(|frame| gateway.answer(&frame, Instant::now()))
            .map(Frame::from)
            .collect();
        switch.forward(port, &replies);
        if taken < BATCH {
            port.kicks().sleep(None, None);
        }
    }
}

#[derive(Debug, Default)]
struct Gateway {
    dhcp: DhcpServer,
}

impl Gateway {
    /// The frame that answers `frame`, if one does.
    fn answer(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let ours = EthernetAddress(GATEWAY_MAC);
        let to = frame.dst_addr();
        if to != ours && !to.is_broadcast() {
            return None;
        }
        let from = frame.src_addr();
        match frame.ethertype() {
            EthernetProtocol::Arp => answer_arp(frame.payload()),
            EthernetProtocol::Ipv4 => self.answer_ip(from, frame.payload(), now),
            _ => None,
        }
    }

    fn answer_ip(&mut self, from: EthernetAddress, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        if packet.more_frags() || packet.frag_offset() != 0 {
            return None;
        }
        match ip.next_header {
            IpProtocol::Icmp if ip.dst_addr == GATEWAY_ADDRESS => {
                answer_echo(from, &ip, packet.payload())
            }
            IpProtocol::Udp => self.answer_udp(from, &ip, packet.payload(), now),
            _ => None,
        }
    }

    fn answer_udp(
        &mut self,
        from: EthernetAddress,
        ip: &Ipv4Repr,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Vec<u8>> {
        let packet = UdpPacket::new_checked(bytes).ok()?;
        let (source, destination) = (ip.src_addr.into(), ip.dst_addr.into());
        let checks = ChecksumCapabilities::default();
        let udp = UdpRepr::parse(&packet, &source, &destination, &checks).ok()?;
        if udp.dst_port == DHCP_SERVER {
            let reply = self.dhcp.answer(packet.payload(), now)?;
            return Some(udp_frame(&reply));
        }
        (ip.dst_addr == GATEWAY_ADDRESS).then(|| unreachable_frame(from, ip, bytes))
    }
}

fn answer_arp(bytes: &[u8]) -> Option<Vec<u8>> {
    let packet = ArpPacket::new_checked(bytes).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: GATEWAY_ADDRESS,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: GATEWAY_ADDRESS,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let len = reply.buffer_len();
    let mut frame = ethernet(source_hardware_addr, EthernetProtocol::Arp, len);
    reply.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    Some(frame.into_inner())
}

fn answer_echo(from: EthernetAddress, ip: &Ipv4Repr, bytes: &[u8]) -> Option<Vec<u8>> {
    let checks = ChecksumCapabilities::default();
    let packet = Icmpv4Packet::new_checked(bytes).ok()?;
    let Icmpv4Repr::EchoRequest {
        ident,
        seq_no,
        data,
    } = Icmpv4Repr::parse(&packet, &checks).ok()?
    else {
        return None;
    };
    let reply = Icmpv4Repr::EchoReply {
        ident,
        seq_no,
        data,
    };
    Some(icmp_frame(from, ip.src_addr, &reply))
}

fn unreachable_frame(from: EthernetAddress, ip: &Ipv4Repr, payload: &[u8]) -> Vec<u8> {
    let reply = Icmpv4Repr::DstUnreachable {
        reason: Icmpv4DstUnreachable::PortUnreachable,
        header: *ip,
        data: payload.get(..QUOTED).unwrap_or(payload),
    };
    icmp_frame(from, ip.src_addr, &reply)
}

fn icmp_frame(to: EthernetAddress, address: Ipv4Addr, icmp: &Icmpv4Repr<'_>) -> Vec<u8> {
    ip_frame(
        to,
        address,
        IpProtocol::Icmp,
        icmp.buffer_len(),
        |payload| {
            let mut packet = Icmpv4Packet::new_unchecked(payload);
            icmp.emit(&mut packet, &ChecksumCapabilities::default());
        },
    )
}

fn udp_frame(reply: &Reply) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: DHCP_SERVER,
        dst_port: DHCP_CLIENT,
    };
    let to = EthernetAddress(reply.mac);
    let len = UDP_HEADER + reply.message.len();
    ip_frame(to, reply.address, IpProtocol::Udp, len, |payload| {
        let (source, destination) = (GATEWAY_ADDRESS.into(), reply.address.into());
        udp.emit(
            &mut UdpPacket::new_unchecked(payload),
            &source,
            &destination,
            reply.message.len(),
            |buffer| buffer.copy_from_slice(&reply.message),
            &ChecksumCapabilities::default(),
        );
    })
}

fn ip_frame(
    to: EthernetAddress,
    address: Ipv4Addr,
    next_header: IpProtocol,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: GATEWAY_ADDRESS,
        dst_addr: address,
        next_header,
        payload_len,
        hop_limit: HOP_LIMIT,
    };
    let mut frame = ethernet(to, EthernetProtocol::Ipv4, ip.buffer_len() + payload_len);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    fill(packet.payload_mut());
    frame.into_inner()
}

fn ethernet(to: EthernetAddress, kind: EthernetProtocol, len: usize) -> EthernetFrame<Vec<u8>> {
    let mut frame = EthernetFrame::new_unchecked(vec![0; ETHERNET_HEADER + len]);
    EthernetRepr {
        src_addr: EthernetAddress(GATEWAY_MAC),
        dst_addr: to,
        ethertype: kind,
    }
    .emit(&mut frame);
    frame
}
