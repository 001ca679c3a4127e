//! The modern view of the registers: the common configuration structure.

use retrovf_spec::virtio::{common, feature, status};

use crate::registers::{write_fields, Effect, Registers};

/// Writable and read-only fields, the 64-bit ones as two halves.
const FIELDS: [(u64, u64); 17] = [
    (common::DEVICE_FEATURE_SELECT, 4),
    (common::DRIVER_FEATURE_SELECT, 4),
    (common::DRIVER_FEATURE, 4),
    (common::CONFIG_MSIX_VECTOR, 2),
    (common::DEVICE_STATUS, 1),
    (common::QUEUE_SELECT, 2),
    (common::QUEUE_SIZE, 2),
    (common::QUEUE_MSIX_VECTOR, 2),
    (common::QUEUE_DESC, 4),
    (common::QUEUE_DESC + 4, 4),
    (common::QUEUE_DRIVER, 4),
    (common::QUEUE_DRIVER + 4, 4),
    (common::QUEUE_DEVICE, 4),
    (common::QUEUE_DEVICE + 4, 4),
    // Behind the addresses, for one write that sets up a whole queue.
    (common::QUEUE_ENABLE, 2),
    (common::QUEUE_NOTIFY_OFF, 2),
    (common::QUEUE_RESET, 2),
];

impl Registers {
    /// Reads from the common configuration structure; bytes past its end are left alone.
    pub(crate) fn modern_read(&self, offset: u64, out: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in out.iter_mut().zip(self.common_image().iter().skip(offset)) {
            *to = *from;
        }
    }

    /// Writes to the common configuration structure.
    pub(crate) fn modern_write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut effect = Effect::default();
        let registers = std::cell::RefCell::new(self);
        write_fields(
            &FIELDS,
            offset,
            data,
            || registers.borrow().common_image(),
            |field, value| effect.merge(registers.borrow_mut().modern_write_field(field, value)),
        );
        effect
    }

    fn common_image(&self) -> [u8; common::SIZE as usize] {
        let mut image = [0; common::SIZE as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            for (to, from) in image.iter_mut().skip(at as usize).zip(bytes) {
                *to = *from;
            }
        };
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let device = half(self.modern_features(), self.device_feature_select);
        let driver = half(self.driver_features, self.driver_feature_select);
        let select = self.device_feature_select;
        put(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
        put(common::DEVICE_FEATURE, &device.to_le_bytes());
        let select = self.driver_feature_select;
        put(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
        put(common::DRIVER_FEATURE, &driver.to_le_bytes());
        put(
            common::CONFIG_MSIX_VECTOR,
            &self.config_vector.to_le_bytes(),
        );
        let num_queues = self.geometry.num_queues();
        put(common::NUM_QUEUES, &num_queues.to_le_bytes());
        put(common::DEVICE_STATUS, &[self.status]);
        put(common::CONFIG_GENERATION, &[self.generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.selected() {
            put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(common::QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(common::QUEUE_ENABLE, &[u8::from(queue.enabled), 0]);
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.avail.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.used.to_le_bytes());
        }
        // Valid only once the feature is accepted.
        if let Some(admin) = self.geometry.admin_queue() {
            if self.negotiated(feature::ADMIN_VQ) {
                put(common::ADMIN_QUEUE_INDEX, &admin.to_le_bytes());
                put(common::ADMIN_QUEUE_NUM, &1u16.to_le_bytes());
            }
        }
        image
    }

    fn modern_write_field(&mut self, field: u64, value: u64) -> Effect {
        let word = value as u32;
        let short = value as u16;
        match field {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = word,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = word,
            common::DRIVER_FEATURE => self.accept_features(word),
            common::CONFIG_MSIX_VECTOR => self.config_vector = self.mappable(short),
            common::DEVICE_STATUS => return self.write_status(value as u8),
            common::QUEUE_SELECT => self.queue_select = short,
            _ => return self.write_queue_field(field, word),
        }
        Effect::default()
    }

    fn accept_features(&mut self, word: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let kept = self.driver_features & !(0xffff_ffff << shift);
        self.driver_features = kept | u64::from(word) << shift;
    }

    fn write_status(&mut self, mut value: u8) -> Effect {
        if value == 0 {
            return Effect {
                reset: true,
                ..Effect::default()
            };
        }
        let new = value & !self.status;
        if new & status::FEATURES_OK != 0 && !self.features_acceptable() {
            value &= !status::FEATURES_OK;
        }
        self.status = value | self.status & status::NEEDS_RESET;
        Effect {
            scan: new & status::DRIVER_OK != 0,
            ..Effect::default()
        }
    }

    fn write_queue_field(&mut self, field: u64, word: u32) -> Effect {
        let short = word as u16;
        let vector = self.mappable(short);
        let max = self.geometry.queue_size;
        let mut effect = Effect::default();
        let Some(queue) = self.selected_mut() else {
            return effect;
        };
        let low = |old: u64| old & !0xffff_ffff | u64::from(word);
        let high = |old: u64| old & 0xffff_ffff | u64::from(word) << 32;
        match field {
            common::QUEUE_MSIX_VECTOR => queue.vector = vector,
            // The rest is the device's while the queue is enabled; there is no queue reset.
            _ if queue.enabled => {}
            common::QUEUE_SIZE if short.is_power_of_two() && short <= max => queue.size = short,
            common::QUEUE_DESC => queue.desc = low(queue.desc),
            common::QUEUE_DRIVER => queue.avail = low(queue.avail),
            common::QUEUE_DEVICE => queue.used = low(queue.used),
            4.. if field == common::QUEUE_DESC + 4 => queue.desc = high(queue.desc),
            4.. if field == common::QUEUE_DRIVER + 4 => queue.avail = high(queue.avail),
            4.. if field == common::QUEUE_DEVICE + 4 => queue.used = high(queue.used),
            common::QUEUE_ENABLE if short == 1 => {
                queue.enabled = true;
                queue.epoch = queue.epoch.wrapping_add(1);
                effect.scan = true;
            }
            _ => {}
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn registers(member: u16) -> Registers {
        let config = Config::default();
        Registers::new(config.geometry(member), config.mac_of(member))
    }

    fn read(registers: &Registers, offset: u64) -> u32 {
        let mut out = [0; 4];
        registers.modern_read(offset, &mut out);
        u32::from_le_bytes(out)
    }

    fn accept(registers: &mut Registers, features: u64) -> bool {
        for half in 0..2u32 {
            registers.modern_write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            let word = (features >> (32 * half)) as u32;
            registers.modern_write(common::DRIVER_FEATURE, &word.to_le_bytes());
        }
        registers.modern_write(common::DEVICE_STATUS, &[11]);
        registers.status & status::FEATURES_OK != 0
    }

    #[test]
    fn features_ok_sticks_only_for_what_the_device_can_do() {
        let version_1 = 1 << feature::VERSION_1;
        assert!(accept(&mut registers(1), version_1));
        assert!(!accept(&mut registers(1), 1 << feature::NET_MAC));
        assert!(!accept(
            &mut registers(1),
            version_1 | 1 << feature::ADMIN_VQ
        ));
        assert!(!accept(
            &mut registers(1),
            version_1 | 1 << feature::NET_CTRL_RX
        ));
        assert!(accept(
            &mut registers(0),
            version_1 | 1 << feature::ADMIN_VQ
        ));
    }

    #[test]
    fn admin_queue_fields_are_zero_until_the_feature_is_accepted() {
        let mut owner = registers(0);
        assert_eq!(read(&owner, common::ADMIN_QUEUE_INDEX), 0);
        assert!(accept(
            &mut owner,
            1 << feature::VERSION_1 | 1 << feature::ADMIN_VQ
        ));
        assert_eq!(read(&owner, common::ADMIN_QUEUE_INDEX), 1 << 16 | 3);
        assert_eq!(read(&owner, common::NUM_QUEUES) & 0xffff, 3);
    }

    #[test]
    fn accesses_of_any_width_reach_the_fields_they_touch() {
        let mut registers = registers(1);
        // Select, size and vector in one access, then addresses as 64-bit writes.
        registers.modern_write(common::QUEUE_SELECT, &[1, 0, 64, 0, 2, 0]);
        registers.modern_write(common::QUEUE_DESC, &0x1_2345_6000u64.to_le_bytes());
        registers.modern_write(common::QUEUE_DRIVER + 4, &[7]);
        let queue = registers.queues[1];
        assert_eq!((queue.size, queue.vector), (64, 2));
        assert_eq!((queue.desc, queue.avail), (0x1_2345_6000, 7 << 32));
        let mut whole = [0; 64];
        registers.modern_read(0, &mut whole);
        for at in 0..64 {
            let mut byte = [0];
            registers.modern_read(at, &mut byte);
            assert_eq!(byte[0], whole[at as usize], "offset {at}");
        }
    }

    #[test]
    fn an_enabled_queue_cannot_be_moved_and_bad_sizes_are_ignored() {
        let mut registers = registers(1);
        registers.modern_write(common::QUEUE_SIZE, &48u16.to_le_bytes());
        registers.modern_write(common::QUEUE_SIZE, &512u16.to_le_bytes());
        assert_eq!(registers.queues[0].size, 256);
        registers.modern_write(common::QUEUE_ENABLE, &[1, 0]);
        registers.modern_write(common::QUEUE_DESC, &[0xff; 8]);
        registers.modern_write(common::QUEUE_ENABLE, &[0, 0]);
        assert_eq!(
            (registers.queues[0].desc, registers.queues[0].enabled),
            (0, true)
        );
        registers.modern_write(common::QUEUE_SELECT, &999u16.to_le_bytes());
        assert_eq!(read(&registers, common::QUEUE_SIZE) & 0xffff, 0);
    }
}
