use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use super::gateway::GATEWAY_ADDRESS;

const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 255);
/// Last bytes of the addresses that are leased.
const POOL: std::ops::RangeInclusive<u8> = 15..=254;
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long an offer is kept for the client that got it.
const OFFER: Duration = Duration::from_secs(60);
/// BOOTP messages have at least so many bytes; some clients drop shorter ones.
const MIN_MESSAGE: usize = 300;

const OPTION_DNS: u8 = 6;
const OPTION_BROADCAST: u8 = 28;
const OPTION_RENEWAL: u8 = 58;
const OPTION_REBINDING: u8 = 59;

/// Leases for a /24, one for each MAC address.
#[derive(Debug, Default)]
pub(super) struct DhcpServer {
    leases: Vec<Lease>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    mac: [u8; 6],
    host: u8,
    until: Instant,
}

/// A message and where it goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
    pub(super) message: Vec<u8>,
}

impl DhcpServer {
    /// Answers a client's message (RFC 2131, section 4.3).
    pub(super) fn answer(&mut self, bytes: &[u8], now: Instant) -> Option<Reply> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let mac = request.client_hardware_address;
        // No relays here, and no leases for what is no client's address.
        if !mac.is_unicast() || !request.relay_agent_ip.is_unspecified() {
            return None;
        }
        let for_us = request
            .server_identifier
            .is_none_or(|id| id == GATEWAY_ADDRESS);
        let mac = mac.0;
        match request.message_type {
            DhcpMessageType::Discover => {
                let wanted = request.requested_ip.and_then(host);
                let host = self.choose(mac, wanted, now)?;
                self.keep(mac, host, now + OFFER);
                reply(&request, DhcpMessageType::Offer, Some(address(host)))
            }
            DhcpMessageType::Request if !for_us => {
                self.leases.retain(|lease| lease.mac != mac);
                None
            }
            DhcpMessageType::Request => self.request(&request, now),
            DhcpMessageType::Release if for_us => {
                self.leases.retain(|lease| lease.mac != mac);
                None
            }
            // Somebody uses the address: keep it from everybody for a while.
            DhcpMessageType::Decline if for_us => {
                let declined = request.requested_ip.and_then(host)?;
                let held = |lease: &&mut Lease| lease.mac == mac && lease.host == declined;
                let lease = self.leases.iter_mut().find(held)?;
                (lease.mac, lease.until) = ([0; 6], now + LEASE);
                None
            }
            DhcpMessageType::Inform => reply(&request, DhcpMessageType::Ack, None),
            _ => None,
        }
    }

    /// Confirms what was offered or leased before; a client that remembers an address which is
    /// free gets it as well.
    fn request(&mut self, request: &DhcpRepr<'_>, now: Instant) -> Option<Reply> {
        let mac = request.client_hardware_address.0;
        let renewed = Some(request.client_ip).filter(|ip| !ip.is_unspecified());
        let wanted = request.requested_ip.or(renewed)?;
        let host = host(wanted).filter(|&host| self.is_free(mac, host, now));
        let Some(host) = host else {
            return reply(request, DhcpMessageType::Nak, None);
        };
        self.keep(mac, host, now + LEASE);
        reply(request, DhcpMessageType::Ack, Some(address(host)))
    }

    /// The client's own address, else the one it asks for, else the first free one.
    fn choose(&self, mac: [u8; 6], wanted: Option<u8>, now: Instant) -> Option<u8> {
        let own = self.leases.iter().find(|lease| lease.mac == mac);
        own.map(|lease| lease.host)
            .into_iter()
            .chain(wanted)
            .chain(POOL)
            .find(|&host| self.is_free(mac, host, now))
    }

    fn is_free(&self, mac: [u8; 6], host: u8, now: Instant) -> bool {
        let taken = |lease: &Lease| lease.host == host && lease.mac != mac && lease.until > now;
        !self.leases.iter().any(taken)
    }

    /// At most one lease for an address and for a client: the list never outgrows the pool.
    fn keep(&mut self, mac: [u8; 6], host: u8, until: Instant) {
        self.leases
            .retain(|lease| lease.mac != mac && lease.host != host);
        self.leases.push(Lease { mac, host, until });
    }
}

fn address(host: u8) -> Ipv4Addr {
    let [a, b, c, _] = GATEWAY_ADDRESS.octets();
    Ipv4Addr::new(a, b, c, host)
}

/// The last byte of an address that is ours to lease.
fn host(ip: Ipv4Addr) -> Option<u8> {
    let [.., last] = ip.octets();
    (ip == address(last) && POOL.contains(&last)).then_some(last)
}

fn reply(request: &DhcpRepr<'_>, kind: DhcpMessageType, leased: Option<Ipv4Addr>) -> Option<Reply> {
    let seconds = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
    let refused = kind == DhcpMessageType::Nak;
    let renewal = (seconds / 2).to_be_bytes();
    let rebinding = (seconds / 8 * 7).to_be_bytes();
    let (dns, broadcast) = (GATEWAY_ADDRESS.octets(), BROADCAST.octets());
    let network = [
        option(OPTION_DNS, &dns),
        option(OPTION_BROADCAST, &broadcast),
    ];
    let times = [
        option(OPTION_RENEWAL, &renewal),
        option(OPTION_REBINDING, &rebinding),
    ];
    let extra: Vec<DhcpOption<'_>> = match leased {
        _ if refused => Vec::new(),
        Some(_) => network.into_iter().chain(times).collect(),
        None => network.to_vec(),
    };
    let answer = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if refused {
            Ipv4Addr::UNSPECIFIED
        } else {
            request.client_ip
        },
        your_ip: leased.unwrap_or(Ipv4Addr::UNSPECIFIED),
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: (!refused).then_some(GATEWAY_ADDRESS),
        subnet_mask: (!refused).then_some(NETMASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY_ADDRESS),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: leased.map(|_| seconds),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &extra,
    };
    let mut message = vec![0; answer.buffer_len().max(MIN_MESSAGE)];
    let mut packet = DhcpPacket::new_unchecked(message.as_mut_slice());
    answer.emit(&mut packet).ok()?;
    let (mac, address) = destination(request, kind, leased);
    Some(Reply {
        mac: mac.0,
        address,
        message,
    })
}

fn option(kind: u8, data: &[u8]) -> DhcpOption<'_> {
    DhcpOption { kind, data }
}

/// RFC 2131, section 4.1: to the address the client has, else broadcast if it asks for that or is
/// refused, else to the address it gets.
fn destination(
    request: &DhcpRepr<'_>,
    kind: DhcpMessageType,
    leased: Option<Ipv4Addr>,
) -> (EthernetAddress, Ipv4Addr) {
    let everybody = (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST);
    let mac = request.client_hardware_address;
    match leased {
        _ if kind == DhcpMessageType::Nak => everybody,
        _ if !request.client_ip.is_unspecified() => (mac, request.client_ip),
        Some(leased) if !request.broadcast => (mac, leased),
        _ => everybody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn request(kind: DhcpMessageType, mac: [u8; 6]) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type: kind,
            transaction_id: 0x1234_5678,
            secs: 0,
            client_hardware_address: EthernetAddress(mac),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    /// Sends a message; returns the kind of answer, the address in it, and where it went.
    fn send(
        server: &mut DhcpServer,
        request: &DhcpRepr<'_>,
        now: Instant,
    ) -> Option<(DhcpMessageType, Ipv4Addr, Ipv4Addr)> {
        let mut bytes = vec![0; request.buffer_len()];
        let mut packet = DhcpPacket::new_unchecked(bytes.as_mut_slice());
        request.emit(&mut packet).unwrap();
        let reply = server.answer(&bytes, now)?;
        assert!(reply.message.len() >= MIN_MESSAGE);
        let packet = DhcpPacket::new_checked(reply.message.as_slice()).unwrap();
        let answer = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(answer.transaction_id, request.transaction_id);
        assert_eq!(answer.server_identifier, Some(GATEWAY_ADDRESS));
        Some((answer.message_type, answer.your_ip, reply.address))
    }

    #[test]
    fn a_client_gets_the_address_it_was_offered_and_keeps_it() {
        let (mut server, now) = (DhcpServer::default(), Instant::now());
        let first = Ipv4Addr::new(10, 0, 2, 15);
        let offer = send(&mut server, &request(DhcpMessageType::Discover, MAC), now);
        assert_eq!(offer, Some((DhcpMessageType::Offer, first, first)));
        let confirm = DhcpRepr {
            requested_ip: Some(first),
            server_identifier: Some(GATEWAY_ADDRESS),
            ..request(DhcpMessageType::Request, MAC)
        };
        let ack = Some((DhcpMessageType::Ack, first, first));
        assert_eq!(send(&mut server, &confirm, now), ack);
        let renew = DhcpRepr {
            client_ip: first,
            ..request(DhcpMessageType::Request, MAC)
        };
        assert_eq!(send(&mut server, &renew, now), ack);
    }

    #[test]
    fn an_address_that_another_has_or_that_is_foreign_is_refused_by_broadcast() {
        let (mut server, now) = (DhcpServer::default(), Instant::now());
        send(&mut server, &request(DhcpMessageType::Discover, MAC), now);
        let nak = Some((
            DhcpMessageType::Nak,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
        ));
        for wanted in [[10, 0, 2, 15], [10, 0, 2, 2], [192, 168, 0, 15]] {
            let thief = DhcpRepr {
                requested_ip: Some(Ipv4Addr::from(wanted)),
                ..request(DhcpMessageType::Request, [2, 0, 0, 0, 0, 2])
            };
            assert_eq!(send(&mut server, &thief, now), nak, "{wanted:?}");
        }
    }

    #[test]
    fn released_expired_and_refused_offers_are_free_again() {
        let (mut server, now) = (DhcpServer::default(), Instant::now());
        let first = Ipv4Addr::new(10, 0, 2, 15);
        let discover = |server: &mut DhcpServer, n: u8, now| {
            let message = request(DhcpMessageType::Discover, [2, 0, 0, 0, 0, n]);
            send(server, &message, now).map(|answer| answer.1)
        };
        assert_eq!(discover(&mut server, 1, now), Some(first));
        let other = DhcpRepr {
            server_identifier: Some(Ipv4Addr::new(10, 0, 2, 99)),
            ..request(DhcpMessageType::Request, MAC)
        };
        assert_eq!(send(&mut server, &other, now), None);
        assert_eq!(discover(&mut server, 2, now), Some(first));
        let release = request(DhcpMessageType::Release, [2, 0, 0, 0, 0, 2]);
        assert_eq!(send(&mut server, &release, now), None);
        assert_eq!(discover(&mut server, 3, now), Some(first));
        assert_eq!(discover(&mut server, 4, now + 2 * OFFER), Some(first));
    }

    #[test]
    fn a_declined_address_is_not_offered_again_and_the_pool_is_bounded() {
        let (mut server, now) = (DhcpServer::default(), Instant::now());
        send(&mut server, &request(DhcpMessageType::Discover, MAC), now);
        let decline = DhcpRepr {
            requested_ip: Some(Ipv4Addr::new(10, 0, 2, 15)),
            ..request(DhcpMessageType::Decline, MAC)
        };
        assert_eq!(send(&mut server, &decline, now), None);
        let answers = (0..=255u8).filter_map(|n| {
            let message = request(DhcpMessageType::Discover, [2, 0, 0, 0, 1, n]);
            send(&mut server, &message, now).map(|answer| answer.1)
        });
        let mut leased: Vec<_> = answers.collect();
        assert_eq!(leased.len(), usize::from(254 - 15u8));
        assert!(!leased.contains(&Ipv4Addr::new(10, 0, 2, 15)));
        leased.dedup();
        assert_eq!(leased.len(), usize::from(254 - 15u8));
        assert_eq!(server.leases.len(), usize::from(254 - 14u8));
    }

    #[test]
    fn the_broadcast_flag_is_honoured() {
        let (mut server, now) = (DhcpServer::default(), Instant::now());
        let discover = DhcpRepr {
            broadcast: true,
            ..request(DhcpMessageType::Discover, MAC)
        };
        let answer = send(&mut server, &discover, now).unwrap();
        assert_eq!(answer.2, Ipv4Addr::BROADCAST);
    }
}
