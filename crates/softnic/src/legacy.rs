//! The legacy view of the registers, behind the owner's admin commands: the common part of a legacy
//! I/O BAR, with the vector registers at 20 and 22 always in place, and the device configuration.

use retrovf_spec::legacy;
use retrovf_spec::virtio::{feature, status};

use crate::registers::{write_fields, Effect, Registers};

/// Fields of the net configuration: mac, status, number of queue pairs.
const CONFIG_FIELDS: [(u64, u64); 3] = [(0, 6), (6, 2), (8, 2)];

impl Registers {
    /// Whether an access lies inside one field of the common part. Narrower accesses pass, since a
    /// driver may read a register byte by byte.
    pub(crate) fn legacy_common_field(&self, offset: u64, len: usize) -> bool {
        let vectors = self.geometry.vectors > 0;
        let present = |&&(at, _): &&(u64, u64)| vectors || at < legacy::CONFIG_VECTOR;
        inside_one(legacy::FIELDS.iter().filter(present), offset, len)
    }

    /// Whether an access lies inside one field of the device configuration.
    pub(crate) fn legacy_config_field(&self, offset: u64, len: usize) -> bool {
        let end = self.geometry.config_len() as u64;
        let present = |&&(at, _): &&(u64, u64)| at < end;
        inside_one(CONFIG_FIELDS.iter().filter(present), offset, len)
    }

    /// Reads from the common part; an access that covers the ISR clears it.
    pub(crate) fn legacy_read(&mut self, offset: u64, out: &mut [u8]) {
        let image = self.legacy_image();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in out.iter_mut().zip(image.iter().skip(start)) {
            *to = *from;
        }
        let end = offset.saturating_add(out.len() as u64);
        if (offset..end).contains(&legacy::ISR) {
            self.isr = 0;
        }
    }

    /// Writes to the common part.
    pub(crate) fn legacy_write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut effect = Effect::default();
        let registers = std::cell::RefCell::new(self);
        write_fields(
            &legacy::FIELDS,
            offset,
            data,
            || registers.borrow().legacy_image(),
            |field, value| effect.merge(registers.borrow_mut().legacy_write_field(field, value)),
        );
        effect
    }

    /// Writes to the device configuration. Only the MAC address can be written, byte by byte as
    /// drivers do, and only where it has no control command.
    pub(crate) fn legacy_config_write(&mut self, offset: u64, data: &[u8]) {
        if self.negotiated(feature::NET_CTRL_MAC_ADDR) {
            return;
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in self.net.mac.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
        self.generation = self.generation.wrapping_add(1);
    }

    fn legacy_image(&self) -> [u8; legacy::CONFIG_BASE_MSIX as usize] {
        let mut image = [0; legacy::CONFIG_BASE_MSIX as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            for (to, from) in image.iter_mut().skip(at as usize).zip(bytes) {
                *to = *from;
            }
        };
        put(
            legacy::DEVICE_FEATURES,
            &self.legacy_features().to_le_bytes(),
        );
        let accepted = self.driver_features as u32;
        put(legacy::GUEST_FEATURES, &accepted.to_le_bytes());
        put(legacy::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(legacy::STATUS, &[self.status, self.isr]);
        put(legacy::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(legacy::QUEUE_VECTOR, &[0xff; 2]);
        // The admin queue is no queue of the legacy interface; members don't have one anyway.
        if let Some(queue) = self.selected() {
            let pfn = if queue.enabled {
                queue.desc >> legacy::PFN_SHIFT
            } else {
                0
            };
            put(legacy::QUEUE_PFN, &(pfn as u32).to_le_bytes());
            put(legacy::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(legacy::QUEUE_VECTOR, &queue.vector.to_le_bytes());
        }
        image
    }

    fn legacy_write_field(&mut self, field: u64, value: u64) -> Effect {
        let short = value as u16;
        match field {
            // What isn't offered cannot be accepted; there is no step to say so.
            legacy::GUEST_FEATURES => {
                self.driver_features = value & u64::from(self.legacy_features());
            }
            legacy::QUEUE_PFN => return self.write_pfn(value),
            legacy::QUEUE_SELECT => self.queue_select = short,
            legacy::QUEUE_NOTIFY => {
                return Effect {
                    kick: Some(short),
                    ..Effect::default()
                }
            }
            legacy::STATUS if value == 0 => {
                return Effect {
                    reset: true,
                    ..Effect::default()
                }
            }
            legacy::STATUS => self.status = value as u8 | self.status & status::NEEDS_RESET,
            legacy::CONFIG_VECTOR => self.config_vector = self.mappable(short),
            legacy::QUEUE_VECTOR => {
                let vector = self.mappable(short);
                if let Some(queue) = self.selected_mut() {
                    queue.vector = vector;
                }
            }
            _ => {}
        }
        Effect::default()
    }

    /// A queue address of 0 tears that queue down, as the specification has it; QEMU resets the
    /// whole device. Drivers write 0 only when they take the whole device down. Any other address
    /// starts the queue; the device looks at it when it is notified.
    fn write_pfn(&mut self, pfn: u64) -> Effect {
        let size = self.geometry.queue_size;
        let Some(queue) = self.selected_mut() else {
            return Effect::default();
        };
        let vector = queue.vector;
        let quiesce = queue.enabled;
        queue.reset(size);
        queue.vector = vector;
        if pfn != 0 {
            let layout = legacy::ring_layout(size);
            queue.desc = pfn << legacy::PFN_SHIFT;
            queue.avail = queue.desc + layout.avail;
            queue.used = queue.desc + layout.used;
            queue.enabled = true;
            queue.legacy = true;
        }
        Effect {
            quiesce,
            ..Effect::default()
        }
    }
}

fn inside_one<'a>(fields: impl Iterator<Item = &'a (u64, u64)>, offset: u64, len: usize) -> bool {
    let end = offset.saturating_add(len as u64);
    let mut fields = fields;
    len > 0 && fields.any(|&(at, width)| at <= offset && end <= at + width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn registers() -> Registers {
        let config = Config::default();
        Registers::new(config.geometry(1), config.mac_of(1))
    }

    fn read(registers: &mut Registers, offset: u64, len: usize) -> u32 {
        let mut out = [0; 4];
        registers.legacy_read(offset, &mut out[..len]);
        u32::from_le_bytes(out)
    }

    #[test]
    fn an_access_may_be_narrower_than_its_field_but_not_cross_it() {
        let registers = registers();
        for (offset, len) in [(0, 4), (1, 1), (2, 2), (8, 4), (18, 1), (19, 1), (22, 2)] {
            assert!(registers.legacy_common_field(offset, len), "{offset}+{len}");
        }
        for (offset, len) in [(0, 8), (2, 4), (18, 2), (12, 4), (24, 1), (0, 0), (255, 2)] {
            assert!(
                !registers.legacy_common_field(offset, len),
                "{offset}+{len}"
            );
        }
        assert!(registers.legacy_config_field(0, 6) && registers.legacy_config_field(6, 2));
        for (offset, len) in [(0, 7), (5, 2), (8, 2), (9, 1)] {
            assert!(
                !registers.legacy_config_field(offset, len),
                "{offset}+{len}"
            );
        }
    }

    #[test]
    fn vector_registers_do_not_exist_without_msix() {
        let config = Config {
            msix_vectors: 0,
            ..Config::default()
        };
        let registers = Registers::new(config.geometry(1), config.mac_of(1));
        assert!(!registers.legacy_common_field(20, 2));
        assert!(registers.legacy_common_field(19, 1));
    }

    #[test]
    fn a_vector_that_cannot_be_mapped_reads_back_as_none() {
        let mut registers = registers();
        registers.legacy_write(legacy::CONFIG_VECTOR, &[3, 0]);
        registers.legacy_write(legacy::QUEUE_VECTOR, &[4, 0]);
        assert_eq!(read(&mut registers, legacy::CONFIG_VECTOR, 2), 3);
        assert_eq!(read(&mut registers, legacy::QUEUE_VECTOR, 2), 0xffff);
    }

    #[test]
    fn the_isr_is_cleared_by_reading_it_and_by_nothing_else() {
        let mut registers = registers();
        registers.isr = 1;
        assert_eq!(read(&mut registers, legacy::STATUS, 1), 0);
        assert_eq!(read(&mut registers, legacy::ISR, 1), 1);
        assert_eq!(read(&mut registers, legacy::ISR, 1), 0);
    }

    #[test]
    fn a_queue_address_enables_the_queue_whatever_the_status_and_zero_takes_it_away() {
        let mut registers = registers();
        registers.legacy_write(legacy::QUEUE_SELECT, &[1, 0]);
        let effect = registers.legacy_write(legacy::QUEUE_PFN, &5u32.to_le_bytes());
        assert_eq!(effect, Effect::default());
        let view = registers.view(1).unwrap();
        assert_eq!((view.desc, view.avail, view.used), (0x5000, 0x6000, 0x7000));
        assert_eq!(view.header_len(), 10);
        assert_eq!(read(&mut registers, legacy::QUEUE_PFN, 4), 5);
        assert!(registers.legacy_write(legacy::QUEUE_PFN, &[0; 4]).quiesce);
        assert!(registers.view(1).is_none());
        assert_eq!(read(&mut registers, legacy::QUEUE_PFN, 4), 0);
        assert_eq!(read(&mut registers, legacy::QUEUE_SIZE, 2), 256);
    }

    #[test]
    fn features_that_are_not_offered_are_not_accepted() {
        let mut registers = registers();
        registers.legacy_write(legacy::GUEST_FEATURES, &[0xff; 4]);
        let offered = registers.legacy_features();
        assert_eq!(read(&mut registers, legacy::GUEST_FEATURES, 4), offered);
    }

    #[test]
    fn the_mac_can_be_written_until_it_has_a_control_command() {
        let mut registers = registers();
        let own = registers.net.mac;
        registers.legacy_config_write(5, &[0x77, 0x88]);
        assert_eq!(registers.net.mac[5], 0x77);
        registers.reset();
        assert_eq!(registers.net.mac, own);
        registers.driver_features = 1 << feature::NET_CTRL_MAC_ADDR;
        registers.legacy_config_write(5, &[0x77]);
        assert_eq!(registers.net.mac, own);
    }
}
