//! Frames and control commands: what the queues of a net device carry.

use std::sync::atomic::Ordering::Relaxed;

use retrovf_pci::Interrupt;
use retrovf_spec::virtio::{feature, ISR_QUEUE};

use crate::device::Device;
use crate::queue::{Chain, QueueError, Ring};
use crate::registers::{MacTable, QueueView, Registers, Role};
use crate::switch::{Frame, MAX_FRAME, MIN_FRAME};
use crate::sync::lock;

type Result<T> = std::result::Result<T, QueueError>;

/// Chains served while the rings are locked once.
const BATCH: usize = 64;
/// Bytes of frames served while the rings are locked once.
const BATCH_BYTES: usize = 256 << 10;
/// The longest header.
const MAX_HEADER: usize = 12;
/// Where the longer header has the number of merged buffers.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// Buffers that a worker keeps.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    chain: Chain,
    data: Vec<u8>,
    /// Frames sent by the driver, to be forwarded once no lock is held.
    pub(crate) frames: Vec<Frame>,
}

/// How a batch ended.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// There is more to do now.
    pub(crate) again: bool,
    /// Chains were given back.
    pub(crate) worked: bool,
    /// The driver was not asked to notify, nor told of all that was done: serve the queue again.
    pub(crate) lingers: bool,
    /// The device was halted under the batch: wait before doing it again.
    pub(crate) halted: bool,
    /// To be signalled once no lock is held.
    pub(crate) interrupt: Option<Interrupt>,
}

/// What a batch did.
#[derive(Debug, Default)]
struct Batch {
    /// Chains given back.
    used: usize,
    /// Frames of the inbox that are done with.
    taken: usize,
    /// Those of them that the driver got.
    delivered: usize,
    next: Next,
}

/// How a queue goes on after a batch.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// There may be more to do at once.
    #[default]
    Again,
    /// Nothing until the driver notifies.
    Listen,
    /// Nothing until frames arrive.
    Idle,
}

/// Whether a queue of frames from the driver asks for notifications when it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As ever: before the thread sleeps.
    Listen,
    /// Not yet: somebody looks at the queue again soon. Interrupts are moderated meanwhile.
    Linger,
}

/// Chains given back to a driver that lingering does not tell of.
const UNTOLD: u16 = 16;

/// Serves a queue once.
pub(crate) fn serve(device: &Device, queue: u16, manner: Manner, scratch: &mut Scratch) -> Served {
    let mut served = Served::default();
    let mut rings = lock(&device.rings);
    let Some(view) = device.view(queue) else {
        drop_undeliverable(device, queue);
        return served;
    };
    let Some(ring) = rings.get_mut(usize::from(queue)) else {
        return served;
    };
    ring.attach(&view);
    let before = *ring;
    let batch = run(device, ring, &view, scratch).and_then(|batch| {
        if batch.used > 0 {
            ring.publish(&device.dma)?;
        }
        Ok(batch)
    });
    let batch = match batch {
        Ok(batch) => batch,
        Err(error) => {
            ring.undo(before);
            scratch.frames.clear();
            served.halted = device.failed(&view, &error);
            served.again = served.halted;
            return served;
        }
    };
    commit(device, &view, &batch, scratch);
    served.worked = batch.used > 0;
    served.lingers =
        manner == Manner::Linger && view.role == Role::Transmit && batch.next == Next::Listen;
    if served.lingers && ring.untold() < UNTOLD {
        return served;
    }
    match settle(device, ring, &view, &batch, served.lingers) {
        Ok((again, interrupt)) => (served.again, served.interrupt) = (again, interrupt),
        // What was published stays published; the next batch finds the same error, if it is one.
        Err(error) => {
            served.halted = device.failed(&view, &error);
            served.again = served.halted;
        }
    }
    served
}

fn run(device: &Device, ring: &mut Ring, view: &QueueView, s: &mut Scratch) -> Result<Batch> {
    match view.role {
        Role::Receive => receive(device, ring, view, s),
        Role::Transmit => transmit(device, ring, view, s),
        Role::Control => control(device, ring, s),
        Role::Admin | Role::Unused => Ok(Batch {
            next: Next::Idle,
            ..Batch::default()
        }),
    }
}

fn commit(device: &Device, view: &QueueView, batch: &Batch, scratch: &Scratch) {
    match view.role {
        Role::Receive => {
            device.port.consume(view.index / 2, batch.taken);
            let delivered = batch.delivered as u64;
            device.counters.rx_frames.fetch_add(delivered, Relaxed);
        }
        Role::Transmit => {
            let sent = scratch.frames.len();
            let dropped = batch.used.saturating_sub(sent) as u64;
            device.counters.tx_frames.fetch_add(sent as u64, Relaxed);
            device.counters.tx_dropped.fetch_add(dropped, Relaxed);
        }
        Role::Control | Role::Admin | Role::Unused => {}
    }
}

/// After a batch: asks for notifications if they matter, and interrupts the driver if it wants that.
fn settle(
    device: &Device,
    ring: &mut Ring,
    view: &QueueView,
    batch: &Batch,
    lingers: bool,
) -> Result<(bool, Option<Interrupt>)> {
    let again = match batch.next {
        Next::Again => true,
        Next::Listen if lingers => false,
        Next::Listen => ring.enable_notify(&device.dma)?,
        Next::Idle => false,
    };
    let interrupt = ring.wants_interrupt(&device.dma)?.then(|| {
        let mut registers = lock(&device.registers);
        device.interrupt(&mut registers, view.vector, ISR_QUEUE)
    });
    Ok((again, interrupt.flatten()))
}

/// A receive queue that isn't there keeps no frames: they would be stale when it comes up.
fn drop_undeliverable(device: &Device, queue: u16) {
    if queue.is_multiple_of(2) && queue / 2 < device.geometry.pairs {
        device.port.drop_lane(queue / 2);
    }
}

fn transmit(device: &Device, ring: &mut Ring, view: &QueueView, s: &mut Scratch) -> Result<Batch> {
    let header = view.header_len();
    let limit = header + MAX_FRAME;
    let mut batch = Batch::default();
    let mut bytes = 0;
    ring.suppress_notify(&device.dma)?;
    while batch.used < BATCH && bytes < BATCH_BYTES {
        if !ring.pop(&device.dma, &mut s.chain)? {
            batch.next = Next::Listen;
            break;
        }
        // A frame of impossible length is dropped and its buffer given back.
        if s.chain.readable_len() <= limit as u64 {
            s.chain.read(&device.dma, &mut s.data, limit)?;
            let frame = s.data.get(header..).filter(|f| f.len() >= MIN_FRAME);
            if let Some(frame) = frame {
                bytes += frame.len();
                s.frames.push(frame.into());
            }
        }
        ring.push_used(&device.dma, s.chain.head, 0)?;
        batch.used += 1;
    }
    Ok(batch)
}

fn receive(device: &Device, ring: &mut Ring, view: &QueueView, s: &mut Scratch) -> Result<Batch> {
    let mut batch = Batch::default();
    let frames = device.port.peek(view.index / 2, BATCH);
    if frames.is_empty() {
        // Buffers arriving are no news as long as there is nothing to put into them.
        ring.suppress_notify(&device.dma)?;
        batch.next = Next::Idle;
        return Ok(batch);
    }
    let accepted: Vec<bool> = {
        let registers = lock(&device.registers);
        let passes = |frame: &Frame| frame.get(0..6).is_some_and(|to| registers.net.accepts(to));
        frames.iter().map(passes).collect()
    };
    let mut bytes = 0;
    for (frame, accepted) in frames.iter().zip(accepted) {
        if bytes >= BATCH_BYTES {
            return Ok(batch);
        }
        if accepted {
            match deliver(device, ring, view, frame, s)? {
                Delivery::Done(buffers) => {
                    batch.used += buffers;
                    batch.delivered += 1;
                    bytes += frame.len();
                }
                Delivery::TooLong => {
                    device.port.dropped.fetch_add(1, Relaxed);
                }
                Delivery::NoBuffer => {
                    batch.next = Next::Listen;
                    return Ok(batch);
                }
            }
        }
        batch.taken += 1;
    }
    if frames.len() < BATCH {
        batch.next = Next::Idle;
    }
    Ok(batch)
}

enum Delivery {
    /// In so many buffers.
    Done(usize),
    /// No buffers that the driver could offer would hold it.
    TooLong,
    /// Not enough buffers yet.
    NoBuffer,
}

/// Puts one frame into as many buffers as it takes.
fn deliver(
    device: &Device,
    ring: &mut Ring,
    view: &QueueView,
    frame: &[u8],
    s: &mut Scratch,
) -> Result<Delivery> {
    let header = view.header_len();
    let merge = view.has(feature::NET_MRG_RXBUF);
    let total = header + frame.len();
    let before = *ring;
    let mut chains: Vec<Chain> = Vec::new();
    let mut room = 0;
    while room < total as u64 {
        let exhausted = chains.len() >= usize::from(ring.size());
        if exhausted || (!merge && !chains.is_empty()) {
            ring.undo(before);
            return Ok(Delivery::TooLong);
        }
        if !ring.pop(&device.dma, &mut s.chain)? {
            ring.undo(before);
            return Ok(Delivery::NoBuffer);
        }
        let len = s.chain.writable_len();
        if len == 0 || !s.chain.readable.is_empty() {
            return Err(QueueError::Malformed("a receive buffer cannot be written"));
        }
        room += len;
        chains.push(std::mem::take(&mut s.chain));
    }
    s.data.clear();
    s.data.resize(header, 0);
    if header == MAX_HEADER {
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        if let Some(field) = s.data.get_mut(NUM_BUFFERS) {
            field.copy_from_slice(&count.to_le_bytes());
        }
    }
    s.data.extend_from_slice(frame);
    let mut rest = s.data.as_slice();
    for chain in &chains {
        let written = chain.write(&device.dma, rest)?;
        ring.push_used(&device.dma, chain.head, written)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(Delivery::Done(chains.len()))
}

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_MQ: u8 = 4;
const RX_PROMISC: u8 = 0;
const RX_ALLMULTI: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const MQ_PAIRS_SET: u8 = 0;
const CONTROL_OK: u8 = 0;
const CONTROL_ERR: u8 = 1;

/// The longest control command: two tables, longer than those we keep.
const MAX_COMMAND: usize = 16 << 10;
/// Addresses kept of each table; one that is longer lets everything through.
const MAX_FILTER: usize = 64;

fn control(device: &Device, ring: &mut Ring, s: &mut Scratch) -> Result<Batch> {
    let mut batch = Batch::default();
    ring.suppress_notify(&device.dma)?;
    while batch.used < BATCH {
        if !ring.pop(&device.dma, &mut s.chain)? {
            batch.next = Next::Listen;
            break;
        }
        let short_enough = s.chain.readable_len() <= MAX_COMMAND as u64;
        s.chain.read(&device.dma, &mut s.data, MAX_COMMAND)?;
        let mut registers = lock(&device.registers);
        let done = short_enough && command(&mut registers, &s.data).is_some();
        device.port.set_lanes(registers.net.pairs);
        drop(registers);
        let ack = if done { CONTROL_OK } else { CONTROL_ERR };
        let written = s.chain.write(&device.dma, &[ack])?;
        ring.push_used(&device.dma, s.chain.head, written)?;
        batch.used += 1;
    }
    Ok(batch)
}

/// Carries a control command out; none if it is unknown or malformed.
fn command(registers: &mut Registers, bytes: &[u8]) -> Option<()> {
    let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
    let net = &mut registers.net;
    match (class, command) {
        (CLASS_RX, RX_PROMISC) => net.promiscuous = *data.first()? != 0,
        (CLASS_RX, RX_ALLMULTI) => net.all_multicast = *data.first()? != 0,
        (CLASS_MAC, MAC_ADDR_SET) => {
            net.mac = *data.first_chunk::<6>()?;
            registers.generation = registers.generation.wrapping_add(1);
        }
        (CLASS_MAC, MAC_TABLE_SET) => {
            let (unicast, rest) = table(data)?;
            let (multicast, _) = table(rest)?;
            (net.unicast, net.multicast) = (unicast, multicast);
        }
        (CLASS_MQ, MQ_PAIRS_SET) => {
            let pairs = u16::from_le_bytes(*data.first_chunk::<2>()?);
            if !(1..=registers.geometry.pairs).contains(&pairs) {
                return None;
            }
            net.pairs = pairs;
        }
        _ => return None,
    }
    Some(())
}

/// A counted table of addresses, and what follows it.
fn table(bytes: &[u8]) -> Option<(MacTable, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (addresses, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let overflow = count > MAX_FILTER;
    let kept = addresses.chunks_exact(6).take(MAX_FILTER);
    let addresses = kept.filter_map(|a| a.try_into().ok()).collect();
    Some((
        MacTable {
            addresses,
            overflow,
        },
        rest,
    ))
}
