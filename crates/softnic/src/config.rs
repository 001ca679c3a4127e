use std::path::PathBuf;

use retrovf_pci::Bdf;
use retrovf_spec::admin;

use crate::Error;

/// What a SoftNIC is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the PF; VF n is the n-th function after it.
    pub bdf: Bdf,
    /// VFs enabled from the start.
    pub vfs: u16,
    /// VFs that the PF can have, at most 1024.
    pub total_vfs: u16,
    /// Receive and transmit queue pairs of each function, 1 to 64.
    pub queue_pairs: u16,
    /// Entries of each queue, a power of two from 2 to 1024.
    pub queue_size: u16,
    /// MSI-X vectors of each VF, at most 2048; 0 leaves the capability out.
    pub msix_vectors: u16,
    /// MAC address of the PF; VF n has the n-th address after it.
    pub mac: [u8; 6],
    /// What the switch is connected to.
    pub uplink: Uplink,
    /// Bitmap of the opcodes that LIST_QUERY offers; 0: the PF has no admin virtqueue.
    pub admin_opcodes: u64,
    /// What LEGACY_NOTIFY_INFO lists.
    pub notify: NotifyEntries,
}

/// What the embedded switch is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// Nothing: PF and VFs only see each other.
    None,
    /// A host of our own that answers ARP, ping and DHCP in 10.0.2.0/24.
    Gateway,
    /// A UNIX stream socket, with the framing of QEMU's `-netdev stream`.
    Unix(PathBuf),
    /// A tap interface of this name, which is created if it doesn't exist.
    Tap(String),
}

/// Which entries LEGACY_NOTIFY_INFO returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyEntries {
    /// A word in a BAR of the VF.
    Member,
    /// A word for each VF in a BAR of the PF.
    Owner,
    /// The command is not offered.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bdf: Bdf::new(0, 0x5e, 0, 0),
            vfs: 1,
            total_vfs: 64,
            queue_pairs: 1,
            queue_size: 256,
            msix_vectors: 4,
            mac: [0x52, 0x54, 0x00, 0x5e, 0x00, 0x00],
            uplink: Uplink::None,
            admin_opcodes: ALL_OPCODES,
            notify: NotifyEntries::Member,
        }
    }
}

/// LIST_QUERY to LEGACY_NOTIFY_INFO.
pub(crate) const ALL_OPCODES: u64 = 0x7f;
/// The two opcodes that every admin virtqueue has.
pub(crate) const LIST_OPCODES: u64 = 1 << admin::LIST_QUERY | 1 << admin::LIST_USE;

/// Five bus numbers: a VF takes the next routing id each.
const MAX_VFS: u16 = 1024;
const MAX_PAIRS: u16 = 64;
const MAX_QUEUE_SIZE: u16 = 1024;
const MAX_VECTORS: u16 = 2048;

impl Config {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |reason| Err(Error::Config { reason });
        if self.total_vfs > MAX_VFS {
            return refuse("a PF has at most 1024 VFs");
        }
        if self.bdf.plus(self.total_vfs) < self.bdf {
            return refuse("the addresses of the VFs run over the last bus");
        }
        if self.vfs > self.total_vfs {
            return refuse("more VFs are enabled than the PF has");
        }
        if !(1..=MAX_PAIRS).contains(&self.queue_pairs) {
            return refuse("a function has 1 to 64 queue pairs");
        }
        if !self.queue_size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return refuse("the queue size is a power of two from 2 to 1024");
        }
        if self.msix_vectors > MAX_VECTORS {
            return refuse("a function has at most 2048 MSI-X vectors");
        }
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return refuse("the MAC address is not a unicast address");
        }
        if u32::from(self.total_vfs) > 0x00ff_ffff - low_mac(self.mac) {
            return refuse("the MAC addresses of the VFs run over the vendor part");
        }
        let opcodes = self.admin_opcodes;
        if opcodes != 0 && (opcodes & !ALL_OPCODES != 0 || opcodes & LIST_OPCODES != LIST_OPCODES) {
            return refuse("the admin opcodes are a subset of 0x7f that holds 0 and 1");
        }
        if matches!(&self.uplink, Uplink::Tap(name) if name.is_empty() || name.len() > 15) {
            return refuse("a tap interface has a name of 1 to 15 bytes");
        }
        Ok(())
    }

    /// The MAC address of VF `member`, from 1; that of the PF for 0.
    pub(crate) fn mac_of(&self, member: u16) -> [u8; 6] {
        let [a, b, c, ..] = self.mac;
        let [_, d, e, f] = (low_mac(self.mac) + u32::from(member)).to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// The opcodes offered, `notify` considered.
    pub(crate) fn offered_opcodes(&self) -> u64 {
        match self.notify {
            NotifyEntries::None => self.admin_opcodes & !(1 << admin::LEGACY_NOTIFY_INFO),
            NotifyEntries::Member | NotifyEntries::Owner => self.admin_opcodes,
        }
    }

    pub(crate) fn geometry(&self, member: u16) -> Geometry {
        let owner = member == 0;
        Geometry {
            owner,
            admin: owner && self.admin_opcodes != 0,
            pairs: self.queue_pairs,
            queue_size: self.queue_size,
            vectors: if owner {
                2 * self.queue_pairs + 3
            } else {
                self.msix_vectors
            },
        }
    }
}

fn low_mac(mac: [u8; 6]) -> u32 {
    u32::from_be_bytes([0, mac[3], mac[4], mac[5]])
}

/// The fixed sizes of one function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    /// The PF.
    pub(crate) owner: bool,
    /// Has an admin virtqueue.
    pub(crate) admin: bool,
    pub(crate) pairs: u16,
    pub(crate) queue_size: u16,
    pub(crate) vectors: u16,
}

impl Geometry {
    /// Virtqueues that `num_queues` counts: the pairs and the control queue.
    pub(crate) fn num_queues(self) -> u16 {
        2 * self.pairs + 1
    }

    /// The admin queue, which comes after the counted ones.
    pub(crate) fn admin_queue(self) -> Option<u16> {
        self.admin.then(|| self.num_queues())
    }

    pub(crate) fn all_queues(self) -> u16 {
        self.num_queues() + u16::from(self.admin)
    }

    /// Bytes of the device configuration: mac, status and, with several pairs, their number.
    pub(crate) fn config_len(self) -> usize {
        if self.pairs > 1 {
            10
        } else {
            8
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_vfs_count_up_from_that_of_the_pf() {
        let config = Config {
            mac: [2, 0, 0, 0, 0, 0xff],
            ..Config::default()
        };
        assert_eq!(config.mac_of(0), config.mac);
        assert_eq!(config.mac_of(2), [2, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn values_outside_the_limits_are_refused() {
        let ok = Config::default();
        ok.validate().unwrap();
        let many = Config {
            total_vfs: 1024,
            ..ok.clone()
        };
        many.validate().unwrap();
        let bad = [
            Config {
                total_vfs: 1025,
                ..ok.clone()
            },
            Config {
                bdf: Bdf::new(0, 0xff, 0x18, 0),
                ..ok.clone()
            },
            Config {
                vfs: 65,
                ..ok.clone()
            },
            Config {
                queue_pairs: 0,
                ..ok.clone()
            },
            Config {
                queue_pairs: 65,
                ..ok.clone()
            },
            Config {
                queue_size: 1,
                ..ok.clone()
            },
            Config {
                queue_size: 96,
                ..ok.clone()
            },
            Config {
                queue_size: 2048,
                ..ok.clone()
            },
            Config {
                msix_vectors: 2049,
                ..ok.clone()
            },
            Config {
                mac: [1, 0, 0, 0, 0, 1],
                ..ok.clone()
            },
            Config {
                mac: [2, 0, 0, 0xff, 0xff, 0xf0],
                ..ok.clone()
            },
            Config {
                admin_opcodes: 0xff,
                ..ok.clone()
            },
            Config {
                admin_opcodes: 0x7e,
                ..ok.clone()
            },
            Config {
                uplink: Uplink::Tap("a-name-that-is-too-long".into()),
                ..ok
            },
        ];
        for config in bad {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
