use std::os::fd::OwnedFd;

use retrovf_pci::{
    Bdf, Error, Interrupt, IrqAction, IrqIndex, IrqInfo, IrqRequest, Result, Vectors,
};

/// The interrupts of one function: MSI-X, and VFIO's error and request events.
#[derive(Debug)]
pub(crate) struct Irqs {
    bdf: Bdf,
    msix: Index,
    error: Index,
    request: Index,
}

#[derive(Debug)]
struct Index {
    enabled: bool,
    vectors: Vec<Option<Interrupt>>,
}

impl Index {
    fn new(count: u16) -> Self {
        Self {
            enabled: false,
            vectors: vec![None; usize::from(count)],
        }
    }

    fn disable(&mut self) {
        self.enabled = false;
        self.vectors.fill(None);
    }

    fn count(&self) -> u32 {
        u32::try_from(self.vectors.len()).unwrap_or(u32::MAX)
    }
}

impl Irqs {
    pub(crate) fn new(bdf: Bdf, vectors: u16) -> Self {
        Self {
            bdf,
            msix: Index::new(vectors),
            error: Index::new(1),
            request: Index::new(1),
        }
    }

    pub(crate) fn info(&self, index: IrqIndex) -> IrqInfo {
        let count = match index {
            IrqIndex::MSIX => self.msix.count(),
            IrqIndex::ERR => self.error.count(),
            IrqIndex::REQ => self.request.count(),
            _ => 0,
        };
        IrqInfo {
            count,
            ..IrqInfo::default()
        }
    }

    /// The holder installed MSI-X: the device signals vectors instead of setting ISR bits.
    pub(crate) fn msix_enabled(&self) -> bool {
        self.msix.enabled
    }

    pub(crate) fn vector(&self, vector: u16) -> Option<Interrupt> {
        self.msix.vectors.get(usize::from(vector))?.clone()
    }

    pub(crate) fn error(&self) -> Option<Interrupt> {
        self.error.vectors.first()?.clone()
    }

    pub(crate) fn clear(&mut self) {
        for index in [&mut self.msix, &mut self.error, &mut self.request] {
            index.disable();
        }
    }

    /// Applies a request, whole or not at all. Returns the interrupts to fire once the lock around
    /// `self` is gone.
    pub(crate) fn set(&mut self, request: IrqRequest) -> Result<Vec<Interrupt>> {
        let bdf = self.bdf;
        let refuse = |reason| Err(Error::Irq { bdf, reason });
        let index = match request.index {
            IrqIndex::MSIX => &mut self.msix,
            IrqIndex::ERR => &mut self.error,
            IrqIndex::REQ => &mut self.request,
            // Clean-up code disables what it never had.
            _ if matches!(request.action, IrqAction::Disable) => return Ok(Vec::new()),
            _ => return refuse("the function has no interrupt of this kind"),
        };
        let start = usize::try_from(request.start).unwrap_or(usize::MAX);
        match request.action {
            IrqAction::Disable => index.disable(),
            IrqAction::Install(fds) => {
                let end = start.saturating_add(fds.len());
                let Some(slots) = index.vectors.get_mut(start..end).filter(|s| !s.is_empty())
                else {
                    return refuse("the vectors are outside those of the function");
                };
                let new: Vec<_> = fds
                    .into_iter()
                    .map(|fd| fd.map(|fd: OwnedFd| Interrupt::new(bdf, fd)).transpose())
                    .collect::<Result<_>>()?;
                slots.clone_from_slice(&new);
                index.enabled = true;
            }
            IrqAction::Fire(vectors) => {
                let wanted = match vectors {
                    Vectors::Count(n) => vec![true; (n as usize).min(index.vectors.len() + 1)],
                    Vectors::Flags(flags) => flags,
                };
                let end = start.saturating_add(wanted.len());
                let Some(slots) = index.vectors.get(start..end) else {
                    return refuse("the vectors are outside those of the function");
                };
                return Ok(slots
                    .iter()
                    .zip(wanted)
                    .filter(|(_, wanted)| *wanted)
                    .filter_map(|(slot, _)| slot.clone())
                    .collect());
            }
            IrqAction::Mask(_) | IrqAction::Unmask(_) | IrqAction::UnmaskOn(_) => {
                return refuse("interrupts of this kind cannot be masked")
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{eventfd, EventfdFlags};

    fn fd() -> Option<OwnedFd> {
        Some(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
    }

    fn install(irqs: &mut Irqs, start: u32, fds: Vec<Option<OwnedFd>>) -> Result<Vec<Interrupt>> {
        irqs.set(IrqRequest {
            index: IrqIndex::MSIX,
            start,
            action: IrqAction::Install(fds),
        })
    }

    #[test]
    fn a_request_outside_the_vectors_or_with_another_kind_of_file_changes_nothing() {
        let mut irqs = Irqs::new(Bdf::new(0, 1, 0, 0), 2);
        assert!(install(&mut irqs, 1, vec![fd(), fd()]).is_err());
        assert!(install(&mut irqs, u32::MAX, vec![fd()]).is_err());
        assert!(install(&mut irqs, 0, vec![]).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(install(&mut irqs, 0, vec![fd(), Some(file.into())]).is_err());
        assert!(!irqs.msix_enabled());
        assert!(irqs.vector(0).is_none());
    }

    #[test]
    fn vectors_are_installed_fired_detached_and_disabled() {
        let mut irqs = Irqs::new(Bdf::new(0, 1, 0, 0), 2);
        install(&mut irqs, 0, vec![fd(), fd()]).unwrap();
        install(&mut irqs, 1, vec![None]).unwrap();
        assert!(irqs.msix_enabled() && irqs.vector(0).is_some() && irqs.vector(1).is_none());
        let mut request = |index, action| {
            irqs.set(IrqRequest {
                index,
                start: 0,
                action,
            })
        };
        let fire = || IrqAction::Fire(Vectors::Count(2));
        assert_eq!(request(IrqIndex::MSIX, fire()).unwrap().len(), 1);
        assert!(request(IrqIndex::MSIX, IrqAction::Fire(Vectors::Count(u32::MAX))).is_err());
        assert!(request(IrqIndex::MSIX, IrqAction::Mask(Vectors::Count(1))).is_err());
        assert!(request(IrqIndex::INTX, fire()).is_err());
        request(IrqIndex::INTX, IrqAction::Disable).unwrap();
        request(IrqIndex::MSIX, IrqAction::Disable).unwrap();
        assert!(!irqs.msix_enabled());
    }
}
