use retrovf_spec::virtio::{feature, status, NO_VECTOR};

use crate::config::Geometry;

/// The virtio state of one function, one for its modern and its legacy view (`modern`, `legacy`).
///
/// Nothing here touches guest memory.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) geometry: Geometry,
    permanent_mac: [u8; 6],
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) driver_features: u64,
    pub(crate) status: u8,
    /// A ring was malformed: no queue is served until the next reset.
    pub(crate) broken: bool,
    pub(crate) queue_select: u16,
    pub(crate) config_vector: u16,
    pub(crate) generation: u8,
    pub(crate) isr: u8,
    pub(crate) queues: Vec<QueueRegisters>,
    pub(crate) net: NetState,
}

/// The registers of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueRegisters {
    pub(crate) size: u16,
    pub(crate) vector: u16,
    pub(crate) enabled: bool,
    /// Set up through the legacy view, which serves queues whatever the status.
    pub(crate) legacy: bool,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// Changes whenever the queue starts over, so that a worker with an older copy notices.
    pub(crate) epoch: u32,
}

impl QueueRegisters {
    fn new(size: u16, epoch: u32) -> Self {
        Self {
            size,
            vector: NO_VECTOR,
            enabled: false,
            legacy: false,
            desc: 0,
            avail: 0,
            used: 0,
            epoch,
        }
    }

    /// Back to the state after reset.
    pub(crate) fn reset(&mut self, size: u16) {
        *self = Self::new(size, self.epoch.wrapping_add(1));
    }
}

/// What a register write asks of the function, once the registers' lock is gone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Status 0 was written.
    pub(crate) reset: bool,
    /// A queue was taken away: wait until the worker has left it.
    pub(crate) quiesce: bool,
    /// Queues may have become ready: look at all of them.
    pub(crate) scan: bool,
    /// The driver notifies this queue.
    pub(crate) kick: Option<u16>,
}

impl Effect {
    pub(crate) fn merge(&mut self, other: Self) {
        self.reset |= other.reset;
        self.quiesce |= other.quiesce;
        self.scan |= other.scan;
        self.kick = other.kick.or(self.kick);
    }
}

/// What a worker needs to know to serve a queue: a copy, so that registers stay free meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueView {
    pub(crate) index: u16,
    pub(crate) role: Role,
    pub(crate) epoch: u32,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) vector: u16,
    pub(crate) features: u64,
}

impl QueueView {
    pub(crate) fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// Bytes of the header before each frame: legacy drivers leave the buffer count out unless
    /// receive buffers are merged.
    pub(crate) fn header_len(&self) -> usize {
        if self.has(feature::VERSION_1) || self.has(feature::NET_MRG_RXBUF) {
            12
        } else {
            10
        }
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Frames to the driver.
    Receive,
    /// Frames from the driver.
    Transmit,
    /// Net control commands.
    Control,
    /// Group administration commands.
    Admin,
    /// Has no use as long as MQ isn't negotiated.
    Unused,
}

const BASE_FEATURES: u64 = 1 << feature::NET_MAC
    | 1 << feature::NET_STATUS
    | 1 << feature::NET_MRG_RXBUF
    | 1 << feature::NET_CTRL_VQ
    | 1 << feature::NET_CTRL_RX
    | 1 << feature::NET_CTRL_MAC_ADDR
    | 1 << feature::RING_INDIRECT_DESC
    | 1 << feature::RING_EVENT_IDX;

/// Features that need the control queue.
const CONTROL_FEATURES: u64 =
    1 << feature::NET_CTRL_RX | 1 << feature::NET_CTRL_MAC_ADDR | 1 << feature::NET_MQ;

impl Registers {
    pub(crate) fn new(geometry: Geometry, mac: [u8; 6]) -> Self {
        let queue = QueueRegisters::new(geometry.queue_size, 0);
        Self {
            geometry,
            permanent_mac: mac,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            broken: false,
            queue_select: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            isr: 0,
            queues: vec![queue; usize::from(geometry.all_queues())],
            net: NetState::new(mac),
        }
    }

    /// Device reset: everything but the fixed sizes goes.
    pub(crate) fn reset(&mut self) {
        let mut queues = std::mem::take(&mut self.queues);
        for queue in &mut queues {
            queue.reset(self.geometry.queue_size);
        }
        *self = Self {
            queues,
            generation: self.generation.wrapping_add(1),
            ..Self::new(self.geometry, self.permanent_mac)
        };
    }

    fn base_features(&self) -> u64 {
        let mq = u64::from(self.geometry.pairs > 1) << feature::NET_MQ;
        BASE_FEATURES | mq
    }

    /// What the modern view offers.
    pub(crate) fn modern_features(&self) -> u64 {
        let owner = u64::from(self.geometry.owner) << feature::SR_IOV;
        let admin = u64::from(self.geometry.admin) << feature::ADMIN_VQ;
        self.base_features() | 1 << feature::VERSION_1 | owner | admin
    }

    /// What the legacy view offers. Bit 30 is never part of it.
    pub(crate) fn legacy_features(&self) -> u32 {
        let legacy = 1 << feature::NOTIFY_ON_EMPTY | 1 << feature::ANY_LAYOUT;
        self.base_features() as u32 | legacy
    }

    /// Whether the device can work with the features the driver accepted.
    pub(crate) fn features_acceptable(&self) -> bool {
        let accepted = self.driver_features;
        let control = self.negotiated(feature::NET_CTRL_VQ) || accepted & CONTROL_FEATURES == 0;
        accepted & !self.modern_features() == 0 && self.negotiated(feature::VERSION_1) && control
    }

    pub(crate) fn negotiated(&self, bit: u32) -> bool {
        self.driver_features & (1 << bit) != 0
    }

    /// The selected queue, unless there is none of that number.
    pub(crate) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub(crate) fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The vector as the device stores it: one that it cannot map reads back as none.
    pub(crate) fn mappable(&self, vector: u16) -> u16 {
        if vector < self.geometry.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Number of the control queue: the third as long as only one pair is in use (virtio 1.4,
    /// "Network Device", "Virtqueues").
    fn control_queue(&self) -> u16 {
        if self.negotiated(feature::NET_MQ) {
            2 * self.geometry.pairs
        } else {
            2
        }
    }

    pub(crate) fn role(&self, queue: u16) -> Role {
        if Some(queue) == self.geometry.admin_queue() {
            return Role::Admin;
        }
        match queue.cmp(&self.control_queue()) {
            std::cmp::Ordering::Less if queue.is_multiple_of(2) => Role::Receive,
            std::cmp::Ordering::Less => Role::Transmit,
            std::cmp::Ordering::Equal => Role::Control,
            std::cmp::Ordering::Greater => Role::Unused,
        }
    }

    /// The queue as a worker serves it now; none if it may not.
    pub(crate) fn view(&self, index: u16) -> Option<QueueView> {
        let queue = self.queues.get(usize::from(index))?;
        // A legacy driver may use its queues before it sets features or status (iPXE does).
        let started = queue.legacy || self.status & status::DRIVER_OK != 0;
        if self.broken || !queue.enabled || !started {
            return None;
        }
        Some(QueueView {
            index,
            role: self.role(index),
            epoch: queue.epoch,
            size: queue.size,
            desc: queue.desc,
            avail: queue.avail,
            used: queue.used,
            vector: queue.vector,
            features: self.driver_features,
        })
    }

    /// The device configuration as bytes.
    pub(crate) fn net_config(&self) -> [u8; 10] {
        const LINK_UP: u16 = 1;
        let mut bytes = [0; 10];
        bytes[0..6].copy_from_slice(&self.net.mac);
        bytes[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.geometry.pairs.to_le_bytes());
        bytes
    }

    pub(crate) fn read_net_config(&self, offset: u64, out: &mut [u8]) {
        let config = self.net_config();
        let present = config.iter().take(self.geometry.config_len());
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in out.iter_mut().zip(present.skip(offset)) {
            *to = *from;
        }
    }
}

/// Receive filter and addresses.
#[derive(Debug)]
pub(crate) struct NetState {
    pub(crate) mac: [u8; 6],
    /// On after reset, since a driver without CTRL_RX could never turn it on.
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) unicast: MacTable,
    pub(crate) multicast: MacTable,
    /// Queue pairs in use.
    pub(crate) pairs: u16,
}

/// Addresses that the driver wants to receive.
#[derive(Debug, Default)]
pub(crate) struct MacTable {
    pub(crate) addresses: Vec<[u8; 6]>,
    /// The driver asked for more than the table holds: everything passes.
    pub(crate) overflow: bool,
}

impl MacTable {
    fn passes(&self, address: &[u8]) -> bool {
        self.overflow || self.addresses.iter().any(|own| own == address)
    }
}

impl NetState {
    fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            unicast: MacTable::default(),
            multicast: MacTable::default(),
            pairs: 1,
        }
    }

    /// Whether a frame for `destination` is handed to the driver.
    pub(crate) fn accepts(&self, destination: &[u8]) -> bool {
        let multicast = destination.first().is_some_and(|byte| byte & 1 != 0);
        if self.promiscuous || destination == [0xff; 6] {
            true
        } else if multicast {
            self.all_multicast || self.multicast.passes(destination)
        } else {
            destination == self.mac || self.unicast.passes(destination)
        }
    }
}

/// A register access of any width, cut into fields: calls `write` with the new value of each field
/// that the access touches; bytes of it that the access leaves alone keep their value from `image`.
pub(crate) fn write_fields<const N: usize>(
    fields: &[(u64, u64)],
    offset: u64,
    data: &[u8],
    mut image: impl FnMut() -> [u8; N],
    mut write: impl FnMut(u64, u64),
) {
    let end = offset.saturating_add(data.len() as u64);
    for &(at, width) in fields {
        if at >= end || at + width <= offset {
            continue;
        }
        let old = image();
        let mut value = [0; 8];
        for (position, byte) in (at..at + width).zip(&mut value) {
            let new = position
                .checked_sub(offset)
                .and_then(|i| data.get(usize::try_from(i).ok()?));
            let kept = usize::try_from(position).ok().and_then(|i| old.get(i));
            *byte = new.or(kept).copied().unwrap_or(0);
        }
        write(at, u64::from_le_bytes(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn registers(pairs: u16) -> Registers {
        let config = Config {
            queue_pairs: pairs,
            ..Config::default()
        };
        Registers::new(config.geometry(1), config.mac_of(1))
    }

    #[test]
    fn the_control_queue_is_the_third_until_multiqueue_is_negotiated() {
        let mut registers = registers(4);
        assert_eq!(registers.role(2), Role::Control);
        assert_eq!(registers.role(8), Role::Unused);
        registers.driver_features = 1 << feature::NET_MQ;
        assert_eq!(registers.role(2), Role::Receive);
        assert_eq!(registers.role(7), Role::Transmit);
        assert_eq!(registers.role(8), Role::Control);
    }

    #[test]
    fn multiqueue_is_offered_only_with_several_pairs_and_bit_30_never() {
        assert_eq!(registers(1).legacy_features() >> feature::NET_MQ & 1, 0);
        assert_eq!(registers(2).legacy_features() >> feature::NET_MQ & 1, 1);
        assert_eq!(registers(2).legacy_features() >> 30 & 1, 0);
    }

    #[test]
    fn filters_pass_what_the_driver_asked_for() {
        let mut net = NetState::new([2, 0, 0, 0, 0, 1]);
        assert!(net.accepts(&[2, 9, 9, 9, 9, 9]));
        net.promiscuous = false;
        assert!(net.accepts(&[2, 0, 0, 0, 0, 1]) && net.accepts(&[0xff; 6]));
        assert!(!net.accepts(&[2, 9, 9, 9, 9, 9]) && !net.accepts(&[1, 0, 0x5e, 0, 0, 1]));
        net.multicast.addresses.push([1, 0, 0x5e, 0, 0, 1]);
        net.unicast.overflow = true;
        assert!(net.accepts(&[1, 0, 0x5e, 0, 0, 1]) && net.accepts(&[2, 9, 9, 9, 9, 9]));
        assert!(!net.accepts(&[1, 0, 0x5e, 0, 0, 2]));
    }
}
