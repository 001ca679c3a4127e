//! The embedded switch: learns source addresses, floods what it doesn't know.
//!
//! Delivering puts a reference to the frame into the receiving port's inbox and wakes its thread.
//! No two ports are ever locked at once, and a full inbox drops: a port that doesn't take its frames
//! costs the others nothing.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

use crate::kicks::{Kicks, INBOX};
use crate::sync::{lock, read, write};

/// An Ethernet frame, shared by all ports it is flooded to.
pub(crate) type Frame = Arc<[u8]>;

/// Bytes of an Ethernet header: shorter frames are dropped.
pub(crate) const MIN_FRAME: usize = 14;
/// The longest frame: what a guest could send with segmentation offload, which is not offered.
pub(crate) const MAX_FRAME: usize = 65550;

const MAX_FRAMES: usize = 1024;
const MAX_BYTES: usize = 4 << 20;
const MAX_ADDRESSES: usize = 4096;
/// An address that was silent for this long is forgotten, as bridges have it.
const AGE: Duration = Duration::from_secs(300);

/// Where the switch meets a function or the uplink.
#[derive(Debug)]
pub(crate) struct Port {
    id: u32,
    inbox: Mutex<Inbox>,
    /// Lanes in use.
    lanes: AtomicU16,
    kicks: Arc<Kicks>,
    outlet: OnceLock<Arc<dyn Outlet>>,
    pub(crate) dropped: AtomicU64,
}

/// Lets whoever brings frames take them on, where that never waits: one thread less to wake.
pub(crate) trait Outlet: fmt::Debug + Send + Sync {
    /// Takes all frames out of the inbox; false if some have to be left to the port's thread.
    fn take(&self, port: &Port) -> bool;
}

/// Frames that wait for the port's thread, one lane for each receive queue.
#[derive(Debug)]
struct Inbox {
    lanes: Vec<VecDeque<Frame>>,
    frames: usize,
    bytes: usize,
}

impl Inbox {
    fn forget(&mut self, frame: &Frame) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(frame.len());
    }
}

impl Port {
    pub(crate) fn new(id: u32, lanes: u16, kicks: Arc<Kicks>) -> Self {
        let mut queues = Vec::new();
        queues.resize_with(usize::from(lanes).max(1), VecDeque::new);
        Self {
            id,
            inbox: Mutex::new(Inbox {
                lanes: queues,
                frames: 0,
                bytes: 0,
            }),
            lanes: AtomicU16::new(1),
            kicks,
            outlet: OnceLock::new(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Before the port is attached to a switch.
    pub(crate) fn set_outlet(&self, outlet: Arc<dyn Outlet>) {
        let _ = self.outlet.set(outlet);
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn kicks(&self) -> &Kicks {
        &self.kicks
    }

    /// Spreads frames over the first `lanes` lanes.
    pub(crate) fn set_lanes(&self, lanes: u16) {
        self.lanes.store(lanes.max(1), Relaxed);
    }

    /// [`Port::settle`] is to follow.
    fn deliver(&self, frame: &Frame) {
        let lanes = self.lanes.load(Relaxed);
        let lane = if lanes > 1 {
            flow(frame) % u32::from(lanes)
        } else {
            0
        };
        {
            let mut inbox = lock(&self.inbox);
            let full = inbox.frames >= MAX_FRAMES || inbox.bytes + frame.len() > MAX_BYTES;
            match inbox.lanes.get_mut(lane as usize) {
                Some(queue) if !full => queue.push_back(Arc::clone(frame)),
                _ => {
                    self.dropped.fetch_add(1, Relaxed);
                    return;
                }
            }
            inbox.frames += 1;
            inbox.bytes += frame.len();
        }
        if self.outlet.get().is_none() {
            self.kicks.raise(INBOX);
        }
    }

    /// After frames were delivered, perhaps to this port.
    fn settle(&self) {
        let Some(outlet) = self.outlet.get() else {
            return;
        };
        if lock(&self.inbox).frames > 0 && !outlet.take(self) {
            self.kicks.raise(INBOX);
        }
    }

    /// The first frames of a lane, which stay in it.
    pub(crate) fn peek(&self, lane: u16, count: usize) -> Vec<Frame> {
        let inbox = lock(&self.inbox);
        let queue = inbox.lanes.get(usize::from(lane));
        queue.map_or_else(Vec::new, |queue| {
            queue.iter().take(count).cloned().collect()
        })
    }

    /// Removes the first `count` frames of a lane.
    pub(crate) fn consume(&self, lane: u16, count: usize) {
        let mut inbox = lock(&self.inbox);
        for _ in 0..count {
            let queue = inbox.lanes.get_mut(usize::from(lane));
            let Some(frame) = queue.and_then(VecDeque::pop_front) else {
                return;
            };
            inbox.forget(&frame);
        }
    }

    /// Takes the first frame of the first lane.
    pub(crate) fn pop(&self) -> Option<Frame> {
        let mut inbox = lock(&self.inbox);
        let frame = inbox.lanes.first_mut()?.pop_front()?;
        inbox.forget(&frame);
        Some(frame)
    }

    /// Lanes that hold frames.
    pub(crate) fn busy_lanes(&self) -> Vec<u16> {
        let inbox = lock(&self.inbox);
        let lanes = inbox.lanes.iter().zip(0..);
        lanes
            .filter(|(queue, _)| !queue.is_empty())
            .map(|(_, lane)| lane)
            .collect()
    }

    /// Drops what waits in one lane, counted.
    pub(crate) fn drop_lane(&self, lane: u16) {
        let mut inbox = lock(&self.inbox);
        let queue = inbox.lanes.get_mut(usize::from(lane));
        let frames = queue.map(std::mem::take).unwrap_or_default();
        for frame in &frames {
            inbox.forget(frame);
        }
        self.dropped.fetch_add(frames.len() as u64, Relaxed);
    }

    /// Forgets all frames and goes back to one lane.
    pub(crate) fn clear(&self) {
        self.set_lanes(1);
        let mut inbox = lock(&self.inbox);
        inbox.lanes.iter_mut().for_each(VecDeque::clear);
        (inbox.frames, inbox.bytes) = (0, 0);
    }
}

/// Spreads flows: a hash over the addresses, the protocol and, where they follow, the ports.
fn flow(frame: &[u8]) -> u32 {
    let fields = [0..14, 23..24, 26..38];
    let bytes = fields.into_iter().filter_map(|range| frame.get(range));
    bytes.flatten().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    }) >> 8
}

/// The switch.
#[derive(Debug, Default)]
pub(crate) struct Switch {
    ports: RwLock<Vec<Arc<Port>>>,
    table: Mutex<HashMap<[u8; 6], Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: u32,
    heard: Instant,
}

impl Switch {
    pub(crate) fn attach(&self, port: Arc<Port>) {
        write(&self.ports).push(port);
    }

    /// Takes a port off and forgets the addresses behind it.
    pub(crate) fn detach(&self, id: u32) {
        write(&self.ports).retain(|port| port.id != id);
        lock(&self.table).retain(|_, entry| entry.port != id);
    }

    /// Sends frames from a port to where they belong.
    pub(crate) fn forward(&self, from: &Port, frames: &[Frame]) {
        let ports = read(&self.ports);
        let now = Instant::now();
        for frame in frames {
            let Some((destination, source)) = addresses(frame) else {
                continue;
            };
            let known = self.learn(from.id, destination, source, now);
            if known == Some(from.id) {
                continue;
            }
            let target = ports.iter().find(|port| Some(port.id) == known);
            match target {
                Some(port) => port.deliver(frame),
                None => ports
                    .iter()
                    .filter(|port| port.id != from.id)
                    .for_each(|port| port.deliver(frame)),
            }
        }
        ports.iter().for_each(|port| port.settle());
    }

    /// Notes where `source` is and says where `destination` is.
    fn learn(&self, from: u32, destination: [u8; 6], source: [u8; 6], now: Instant) -> Option<u32> {
        let fresh = |entry: &Entry| now.saturating_duration_since(entry.heard) < AGE;
        let mut table = lock(&self.table);
        if source[0] & 1 == 0 && source != [0; 6] {
            if table.len() >= MAX_ADDRESSES && !table.contains_key(&source) {
                table.retain(|_, entry| fresh(entry));
            }
            if table.len() < MAX_ADDRESSES || table.contains_key(&source) {
                let entry = Entry {
                    port: from,
                    heard: now,
                };
                table.insert(source, entry);
            }
        }
        table
            .get(&destination)
            .filter(|entry| fresh(entry))
            .map(|entry| entry.port)
    }
}

fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
        return None;
    }
    let destination = frame.get(0..6)?.try_into().ok()?;
    let source = frame.get(6..12)?.try_into().ok()?;
    Some((destination, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    const ALL: [u8; 6] = [0xff; 6];

    fn frame(to: [u8; 6], from: [u8; 6]) -> Frame {
        let mut bytes = [to, from].concat();
        bytes.extend([8, 0, 1, 2, 3]);
        bytes.into()
    }

    fn ports(switch: &Switch) -> Vec<Arc<Port>> {
        (0..3)
            .map(|id| {
                let port = Arc::new(Port::new(id, 1, Arc::new(Kicks::new().unwrap())));
                switch.attach(Arc::clone(&port));
                port
            })
            .collect()
    }

    fn received(ports: &[Arc<Port>]) -> Vec<usize> {
        ports
            .iter()
            .map(|port| std::iter::from_fn(|| port.pop()).count())
            .collect()
    }

    #[test]
    fn unknown_and_group_addresses_flood_and_known_ones_do_not() {
        let switch = Switch::default();
        let ports = ports(&switch);
        switch.forward(&ports[0], &[frame(B, A)]);
        assert_eq!(received(&ports), [0, 1, 1]);
        switch.forward(&ports[1], &[frame(A, B), frame(ALL, B)]);
        assert_eq!(received(&ports), [2, 0, 1]);
        switch.forward(&ports[0], &[frame(B, A), frame(A, B)]);
        assert_eq!(received(&ports), [0, 1, 0]);
    }

    #[test]
    fn group_and_zero_source_addresses_are_not_learned() {
        let switch = Switch::default();
        let ports = ports(&switch);
        let group = [3, 0, 0, 0, 0, 1];
        switch.forward(&ports[0], &[frame(ALL, group), frame(ALL, [0; 6])]);
        received(&ports);
        switch.forward(&ports[1], &[frame(group, B), frame([0; 6], B)]);
        assert_eq!(received(&ports), [2, 0, 2]);
    }

    #[test]
    fn addresses_behind_a_detached_port_are_forgotten() {
        let switch = Switch::default();
        let ports = ports(&switch);
        switch.forward(&ports[2], &[frame(ALL, A)]);
        received(&ports);
        switch.detach(2);
        switch.forward(&ports[0], &[frame(A, B)]);
        assert_eq!(received(&ports), [0, 1, 0]);
    }

    #[test]
    fn a_full_inbox_drops_and_counts_and_the_other_ports_go_on() {
        let switch = Switch::default();
        let ports = ports(&switch);
        let frames = vec![frame(ALL, A); MAX_FRAMES];
        switch.forward(&ports[0], &frames);
        assert_eq!(received(&ports[2..]), [MAX_FRAMES]);
        switch.forward(&ports[0], &[frame(ALL, A)]);
        assert_eq!(received(&ports), [0, MAX_FRAMES, 1]);
        assert_eq!(ports[1].dropped.load(Relaxed), 1);
    }

    #[test]
    fn big_frames_are_bounded_by_bytes() {
        let switch = Switch::default();
        let ports = ports(&switch);
        let mut bytes = frame(ALL, A).to_vec();
        bytes.resize(MAX_FRAME, 0);
        let big: Frame = bytes.into();
        switch.forward(&ports[0], &vec![big; MAX_FRAMES]);
        assert_eq!(
            received(&ports),
            [0, MAX_BYTES / MAX_FRAME, MAX_BYTES / MAX_FRAME]
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let switch = Switch::default();
        let ports = ports(&switch);
        for n in 0..MAX_ADDRESSES as u32 + 10 {
            let [_, b, c, d] = n.to_be_bytes();
            switch.forward(&ports[0], &[frame(ALL, [2, 1, 1, b, c, d])]);
        }
        assert_eq!(lock(&switch.table).len(), MAX_ADDRESSES);
    }

    #[test]
    fn runts_and_giants_go_nowhere() {
        let switch = Switch::default();
        let ports = ports(&switch);
        switch.forward(
            &ports[0],
            &[vec![0xff; 13].into(), vec![0xff; MAX_FRAME + 1].into()],
        );
        assert_eq!(received(&ports), [0, 0, 0]);
    }
}
