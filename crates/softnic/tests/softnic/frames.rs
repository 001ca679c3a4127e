//! A port of a VF in the tests' hands, and the frames that go through it.

use std::net::Ipv4Addr;

use retrovf_pci::{NotifyTarget, QueueIndex};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::driver::{eventually, readable, writable, Dut, Queue};

/// Receive and transmit queue of a function, buffers included.
pub(crate) struct Net<'a> {
    pub(crate) dut: &'a Dut,
    pub(crate) bell: NotifyTarget,
    pub(crate) rx: Queue,
    pub(crate) tx: Queue,
    pub(crate) header: usize,
    buffers: u64,
    buffer_len: usize,
    send: u64,
}

impl<'a> Net<'a> {
    /// Fills the receive queue with `count` buffers and notifies.
    pub(crate) fn new(
        dut: &'a Dut,
        bell: NotifyTarget,
        (rx, tx): (Queue, Queue),
        header: usize,
        (count, buffer_len): (u16, usize),
    ) -> Self {
        let buffers = dut.alloc(u64::from(count) * 4096);
        let send = dut.alloc(128 << 10);
        let mut net = Self {
            dut,
            bell,
            rx,
            tx,
            header,
            buffers,
            buffer_len,
            send,
        };
        for i in 0..count {
            let at = net.buffer(i);
            net.rx.add(dut, &[writable(at, buffer_len)]);
        }
        net.notify_rx();
        net
    }

    pub(crate) fn notify_rx(&self) {
        self.bell.ring(QueueIndex(self.rx.index));
    }

    /// Receive buffers are one descriptor each, so the head says which.
    fn buffer(&self, head: u16) -> u64 {
        self.buffers + u64::from(head) * 4096
    }

    /// Makes a frame available in two descriptors, without a notification.
    pub(crate) fn queue(&mut self, frame: &[u8]) {
        self.dut.put(self.send, &vec![0; self.header]);
        self.dut.put(self.send + self.header as u64, frame);
        let body = self.send + self.header as u64;
        let runs = [
            readable(self.send, self.header),
            readable(body, frame.len()),
        ];
        self.tx.add(self.dut, &runs);
    }

    /// Sends a frame and waits until its buffer is given back.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.queue(frame);
        self.bell.ring(QueueIndex(self.tx.index));
        assert_eq!(self.tx.wait(self.dut).1, 0);
    }

    /// The next frame, if one has arrived; its buffers are given back.
    pub(crate) fn try_receive(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.rx.used(self.dut)?;
        let mut bytes = self.dut.get(self.buffer(head), len);
        let mut heads = vec![head];
        if self.header == 12 {
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let (head, len) = self.rx.used(self.dut).expect("merged buffers come at once");
                bytes.extend(self.dut.get(self.buffer(head), len));
                heads.push(head);
            }
        }
        for head in heads {
            let at = self.buffer(head);
            self.rx
                .descriptor(self.dut, head, writable(at, self.buffer_len), 0, 0);
            self.rx.offer(self.dut, head);
        }
        self.notify_rx();
        Some(bytes.split_off(self.header))
    }

    pub(crate) fn receive(&mut self) -> Vec<u8> {
        eventually("a frame", || self.try_receive())
    }
}

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame with recognisable content.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = [&to[..], &from, &[0x88, 0xb5]].concat();
    bytes.extend((bytes.len()..len).map(|i| (i * 7) as u8));
    bytes
}

fn ethernet(from: [u8; 6], to: [u8; 6], kind: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = EthernetFrame::new_unchecked(vec![0; 14 + payload.len()]);
    EthernetRepr {
        src_addr: EthernetAddress(from),
        dst_addr: EthernetAddress(to),
        ethertype: kind,
    }
    .emit(&mut frame);
    frame.payload_mut().copy_from_slice(payload);
    frame.into_inner()
}

pub(crate) fn arp_request(mac: [u8; 6], source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut packet = ArpPacket::new_unchecked(vec![0; arp.buffer_len()]);
    arp.emit(&mut packet);
    ethernet(mac, BROADCAST, EthernetProtocol::Arp, &packet.into_inner())
}

/// The MAC address in an ARP reply.
pub(crate) fn arp_reply(frame: &[u8]) -> Option<[u8; 6]> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            ..
        } => Some(source_hardware_addr.0),
        _ => None,
    }
}

/// One end of an IP conversation.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) mac: [u8; 6],
    pub(crate) ip: Ipv4Addr,
}

pub(crate) fn ip_frame(from: End, to: End, next: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: from.ip,
        dst_addr: to.ip,
        next_header: next,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut packet = Ipv4Packet::new_unchecked(vec![0; ip.buffer_len() + payload.len()]);
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    let bytes = packet.into_inner();
    ethernet(from.mac, to.mac, EthernetProtocol::Ipv4, &bytes)
}

pub(crate) fn ping(from: End, to: End, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let echo = Icmpv4Repr::EchoRequest {
        ident: 77,
        seq_no,
        data,
    };
    let mut bytes = vec![0; echo.buffer_len()];
    let mut packet = Icmpv4Packet::new_unchecked(bytes.as_mut_slice());
    echo.emit(&mut packet, &ChecksumCapabilities::default());
    ip_frame(from, to, IpProtocol::Icmp, &bytes)
}

/// Sequence number and data of an echo reply with right checksums.
pub(crate) fn pong(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    let payload = ip_payload(frame, IpProtocol::Icmp)?;
    let packet = Icmpv4Packet::new_checked(payload.as_slice()).ok()?;
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoReply {
            ident: 77,
            seq_no,
            data,
        } => Some((seq_no, data.to_vec())),
        _ => None,
    }
}

pub(crate) fn ip_payload(frame: &[u8], next: IpProtocol) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
    (ip.next_header == next).then(|| packet.payload().to_vec())
}

pub(crate) fn udp_frame(from: End, to: End, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: ports.0,
        dst_port: ports.1,
    };
    let mut bytes = vec![0; 8 + payload.len()];
    let mut packet = UdpPacket::new_unchecked(bytes.as_mut_slice());
    udp.emit(
        &mut packet,
        &from.ip.into(),
        &to.ip.into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    ip_frame(from, to, IpProtocol::Udp, &bytes)
}

pub(crate) fn dhcp(mac: [u8; 6], kind: DhcpMessageType, requested: Option<Ipv4Addr>) -> Vec<u8> {
    let message = DhcpRepr {
        message_type: kind,
        transaction_id: 0xfeed_beef,
        secs: 0,
        client_hardware_address: EthernetAddress(mac),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: requested,
        client_identifier: Some(EthernetAddress(mac)),
        server_identifier: requested.map(|_| retrovf_softnic::GATEWAY_ADDRESS),
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: Some(1500),
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; message.buffer_len()];
    let mut packet = DhcpPacket::new_unchecked(bytes.as_mut_slice());
    message.emit(&mut packet).unwrap();
    let from = End {
        mac,
        ip: Ipv4Addr::UNSPECIFIED,
    };
    let to = End {
        mac: BROADCAST,
        ip: Ipv4Addr::BROADCAST,
    };
    udp_frame(from, to, (68, 67), &bytes)
}

/// What a DHCP answer says: kind, address, router, name server, seconds.
pub(crate) fn dhcp_answer(
    frame: &[u8],
) -> Option<(DhcpMessageType, Ipv4Addr, Ipv4Addr, Ipv4Addr, u32)> {
    let payload = ip_payload(frame, IpProtocol::Udp)?;
    let udp = UdpPacket::new_checked(payload.as_slice()).ok()?;
    let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
    let answer = DhcpRepr::parse(&packet).ok()?;
    let dns = answer.dns_servers.as_ref()?.first().copied()?;
    Some((
        answer.message_type,
        answer.your_ip,
        answer.router?,
        dns,
        answer.lease_duration?,
    ))
}
