use std::sync::Mutex;
use std::time::Duration;

use retrovf_pci::Bdf;

use crate::sync::lock;

/// A failure to show, as hardware might.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Admin commands fail with this status and are not executed.
    CommandStatus {
        /// Which commands.
        filter: CommandFilter,
        /// Their status.
        status: u16,
        /// Their status qualifier.
        qualifier: u16,
    },
    /// Admin commands are taken, but neither executed nor ever completed.
    NoCompletion {
        /// Which commands.
        filter: CommandFilter,
    },
    /// Admin commands are executed and completed late, possibly after ones submitted later.
    SlowCompletion {
        /// Which commands.
        filter: CommandFilter,
        /// How late.
        delay: Duration,
    },
    /// LEGACY_NOTIFY_INFO answers these bytes.
    NotifyInfo {
        /// Which commands; the opcode doesn't matter.
        filter: CommandFilter,
        /// The four entries.
        entries: [u8; 64],
    },
    /// The function meets an error of its own: NEEDS_RESET is set and its queues stop.
    DeviceReset {
        /// Which function.
        bdf: Bdf,
    },
    /// The function no longer answers, as if it were pulled out: it reads as all ones until
    /// [`crate::SoftNic::clear_faults`] puts it back, with its state lost.
    FunctionGone {
        /// Which function.
        bdf: Bdf,
    },
}

/// Which admin commands a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandFilter {
    /// Only this opcode.
    pub opcode: Option<u16>,
    /// Only this member id.
    pub member: Option<u64>,
    /// So many commands.
    pub count: u32,
}

impl Default for CommandFilter {
    /// The next command, whatever it is.
    fn default() -> Self {
        Self {
            opcode: None,
            member: None,
            count: 1,
        }
    }
}

/// What a fault does to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandFault {
    Status { status: u16, qualifier: u16 },
    NoCompletion,
    Slow(Duration),
    NotifyInfo([u8; 64]),
}

/// Command faults that have not been used up.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<(CommandFilter, CommandFault)>>);

/// Faults that can wait at once.
const MAX_FAULTS: usize = 1024;

impl Faults {
    pub(crate) fn add(&self, filter: CommandFilter, fault: CommandFault) {
        let mut faults = lock(&self.0);
        faults.retain(|(filter, _)| filter.count > 0);
        if faults.len() < MAX_FAULTS {
            faults.push((filter, fault));
        }
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// The first fault that hits this command, which uses up one of its count.
    pub(crate) fn take(&self, opcode: u16, member: u64) -> Option<CommandFault> {
        let mut faults = lock(&self.0);
        let (filter, fault) = faults.iter_mut().find(|(filter, _)| {
            filter.count > 0
                && filter.opcode.is_none_or(|wanted| wanted == opcode)
                && filter.member.is_none_or(|wanted| wanted == member)
        })?;
        filter.count -= 1;
        Some(*fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_commands_of_its_filter_as_often_as_it_says() {
        let faults = Faults::default();
        let filter = CommandFilter {
            opcode: Some(3),
            member: Some(2),
            count: 2,
        };
        faults.add(filter, CommandFault::NoCompletion);
        assert_eq!(faults.take(3, 1), None);
        assert_eq!(faults.take(2, 2), None);
        assert_eq!(faults.take(3, 2), Some(CommandFault::NoCompletion));
        assert_eq!(faults.take(3, 2), Some(CommandFault::NoCompletion));
        assert_eq!(faults.take(3, 2), None);
        faults.add(CommandFilter::default(), CommandFault::NoCompletion);
        faults.clear();
        assert_eq!(faults.take(3, 2), None);
    }
}
