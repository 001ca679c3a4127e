//! The guest's network: smoltcp on the driver.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use retrovf_histogram::{Histogram, Snapshot};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::time;
use smoltcp::wire::{
    DhcpRepr, EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, Ipv4Cidr,
};

use crate::driver::Driver;
use crate::{Error, Result};

/// What a DHCP server gave the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of the network's part.
    pub prefix: u8,
    /// Default gateway, if there is one.
    pub router: Option<Ipv4Addr>,
    /// The server.
    pub server: Ipv4Addr,
    /// How long the address may be used, in seconds; 120 if the server does not say.
    pub lease_seconds: u32,
}

/// What became of pings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies received in time.
    pub received: u32,
    /// From request to reply, in nanoseconds.
    pub rtt: Snapshot,
}

const MTU: usize = 1514;
const PAYLOAD: [u8; 56] = [0x5a; 56];
const IDENT: u16 = 0x5246;
const DEFAULT_LEASE: u32 = 120;

/// The network stack; not there to be fast, but to be a guest's.
pub(crate) struct Stack {
    interface: Interface,
    epoch: Instant,
}

impl Stack {
    pub(crate) fn new(driver: &mut Driver, mac: [u8; 6]) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        // Only the DHCP transaction id depends on it; guests differ in their addresses.
        config.random_seed = mac
            .iter()
            .fold(1, |seed, byte| seed << 8 | u64::from(*byte));
        Self {
            interface: Interface::new(config, driver, time::Instant::ZERO),
            epoch: Instant::now(),
        }
    }

    /// Asks for an address and takes it.
    pub(crate) fn dhcp(&mut self, driver: &mut Driver, timeout: Duration) -> Result<Lease> {
        let mut packet = [0; MTU];
        let mut socket = dhcpv4::Socket::new();
        socket.set_receive_packet_buffer(&mut packet);
        // The default waits ten seconds for a first answer that got lost.
        let mut retries = socket.get_retry_config();
        retries.discover_timeout = time::Duration::from_secs(1);
        retries.initial_request_timeout = time::Duration::from_secs(1);
        socket.set_retry_config(retries);
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        self.interface
            .update_ip_addrs(|addresses| addresses.clear());
        let until = deadline(timeout);
        let lease = self.run(driver, &mut sockets, until, |sockets| {
            match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(lease_of(&config)),
                _ => None,
            }
        })?;
        let lease = lease.ok_or(Error::TimedOut {
            what: "DHCP lease",
            milliseconds: timeout.as_millis(),
        })?;
        self.configure(&lease)?;
        Ok(lease)
    }

    fn configure(&mut self, lease: &Lease) -> Result<()> {
        let refuse = |reason| Error::Device { reason };
        let mut kept = Ok(());
        self.interface.update_ip_addrs(|addresses| {
            let cidr = IpCidr::Ipv4(Ipv4Cidr::new(lease.address, lease.prefix));
            kept = addresses.push(cidr);
        });
        kept.map_err(|_| refuse("the network stack has no room for an address"))?;
        let routes = self.interface.routes_mut();
        match lease.router {
            Some(router) => routes
                .add_default_ipv4_route(router)
                .map(drop)
                .map_err(|_| refuse("the network stack has no room for a route")),
            None => {
                routes.remove_default_ipv4_route();
                Ok(())
            }
        }
    }

    /// Sends echo requests one after another, each as soon as the last one was answered or has
    /// timed out.
    pub(crate) fn ping(
        &mut self,
        driver: &mut Driver,
        target: Ipv4Addr,
        count: u32,
        timeout: Duration,
    ) -> Result<PingReport> {
        if self.interface.ipv4_addr().is_none() {
            return Err(Error::State {
                reason: "it has no address yet, ask for one by DHCP",
            });
        }
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        let bound = socket.bind(icmp::Endpoint::Ident(IDENT));
        debug_assert!(bound.is_ok(), "a fresh socket takes an identifier");
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(socket);
        let rtt = Histogram::new();
        let mut received = 0;
        for n in 0..count {
            let sequence = n as u16;
            let sent = Instant::now();
            request(&mut sockets, handle, target, sequence)?;
            let until = deadline(timeout);
            let answered = self.run(driver, &mut sockets, until, |sockets| {
                answered(sockets, handle, target, sequence).then(Instant::now)
            })?;
            if let Some(answered) = answered {
                received += 1;
                rtt.record_duration(answered - sent);
            }
        }
        Ok(PingReport {
            sent: count,
            received,
            rtt: rtt.snapshot(),
        })
    }

    /// Lets the stack work until `step` has a result or the time is over.
    fn run<'s, T>(
        &mut self,
        driver: &mut Driver,
        sockets: &mut SocketSet<'s>,
        until: Instant,
        mut step: impl FnMut(&mut SocketSet<'s>) -> Option<T>,
    ) -> Result<Option<T>> {
        loop {
            let now = self.now();
            self.interface.poll(now, driver, sockets);
            if let Some(error) = driver.failed.take() {
                return Err(error);
            }
            if let Some(result) = step(sockets) {
                return Ok(Some(result));
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            let delay = self.interface.poll_delay(self.now(), sockets);
            let delay = delay.map_or(until - now, Duration::from);
            if !delay.is_zero() {
                driver.wait(until.min(now + delay))?;
            }
        }
    }

    fn now(&self) -> time::Instant {
        let elapsed = self.epoch.elapsed().as_micros();
        time::Instant::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }
}

fn lease_of(config: &dhcpv4::Config<'_>) -> Lease {
    let packet = config.packet.as_ref();
    let seconds = packet.and_then(|packet| DhcpRepr::parse(packet).ok()?.lease_duration);
    Lease {
        address: config.address.address(),
        prefix: config.address.prefix_len(),
        router: config.router,
        server: config.server.identifier,
        lease_seconds: seconds.unwrap_or(DEFAULT_LEASE),
    }
}

fn request(
    sockets: &mut SocketSet<'_>,
    handle: SocketHandle,
    target: Ipv4Addr,
    sequence: u16,
) -> Result<()> {
    let echo = Icmpv4Repr::EchoRequest {
        ident: IDENT,
        seq_no: sequence,
        data: &PAYLOAD,
    };
    let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
    match socket.send(echo.buffer_len(), IpAddress::Ipv4(target)) {
        Ok(buffer) => {
            let mut packet = Icmpv4Packet::new_unchecked(buffer);
            echo.emit(&mut packet, &ChecksumCapabilities::default());
            Ok(())
        }
        // Requests before this one could not be sent: nobody answers for the target.
        Err(icmp::SendError::BufferFull) => Ok(()),
        Err(icmp::SendError::Unaddressable) => Err(Error::State {
            reason: "the target is no address that can be pinged",
        }),
    }
}

fn answered(
    sockets: &mut SocketSet<'_>,
    handle: SocketHandle,
    target: Ipv4Addr,
    sequence: u16,
) -> bool {
    let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
    while let Ok((payload, from)) = socket.recv() {
        let reply =
            Icmpv4Packet::new_checked(payload).and_then(|packet| {
                match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())? {
                    Icmpv4Repr::EchoReply { seq_no, data, .. } => Ok((seq_no, data == PAYLOAD)),
                    _ => Err(smoltcp::wire::Error),
                }
            });
        if reply == Ok((sequence, true)) && from == IpAddress::Ipv4(target) {
            return true;
        }
    }
    false
}

/// A timeout too long for the clock is as good as a year.
fn deadline(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

pub(crate) struct RxToken(Vec<u8>);
pub(crate) struct TxToken<'a>(&'a mut Driver);

impl phy::Device for Driver {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        match Driver::receive(self) {
            Ok(frame) => Some((RxToken(frame?), TxToken(self))),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    fn transmit(&mut self, _: time::Instant) -> Option<TxToken<'_>> {
        self.failed.is_none().then_some(TxToken(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        if let Err(error) = self.0.send(&frame) {
            self.0.failed.get_or_insert(error);
        }
        result
    }
}
