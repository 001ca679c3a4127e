use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovf_pci::{
    Bdf, Error, Interrupt, IrqAction, IrqIndex, IrqInfo, IrqRequest, Result, Vectors,
};
use vfio_bindings::bindings::vfio;

use crate::ioctl::{self, IrqSet};

/// The interrupts of a function.
///
/// INTx, MSI and MSI-X go from the kernel straight to the descriptors of the client; this process only
/// installs them. ERR is watched by this process and passed on to the client's descriptor; REQ is for
/// this process alone, which is the one that holds the function.
#[derive(Debug)]
pub(crate) struct Irqs {
    bdf: Bdf,
    info: Vec<IrqInfo>,
    vectors: Mutex<Vectored>,
    /// A client's descriptor for device errors.
    error: Arc<Mutex<Option<Interrupt>>>,
}

/// The one kind of interrupt that is enabled, as the kernel has it.
#[derive(Debug, Default)]
struct Vectored {
    enabled: Option<IrqIndex>,
    /// From vector 0 to the last that was installed; as many are allocated.
    fds: Vec<Option<OwnedFd>>,
}

/// Vectors that a device can have: the MSI-X table has 2048 entries at most.
const MAX_VECTORS: u32 = 2048;

impl Irqs {
    pub(crate) fn ask(bdf: Bdf, device: &OwnedFd) -> io::Result<Self> {
        let info = (0..IrqIndex::COUNT).map(|index| match ioctl::irq_info(device, index) {
            Ok((flags, count)) => Ok(info(flags, count)),
            // The function has no interrupt of this kind.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(IrqInfo::default()),
            Err(error) => Err(error),
        });
        Ok(Self {
            bdf,
            info: info.collect::<io::Result<_>>()?,
            vectors: Mutex::default(),
            error: Arc::default(),
        })
    }

    /// What clients may know about.
    pub(crate) fn info(&self, index: IrqIndex) -> IrqInfo {
        match index {
            IrqIndex::REQ => IrqInfo::default(),
            _ => self.kernel_info(index),
        }
    }

    pub(crate) fn kernel_info(&self, index: IrqIndex) -> IrqInfo {
        self.info.get(index.0 as usize).copied().unwrap_or_default()
    }

    /// What passes a device error on to the client.
    pub(crate) fn error_forwarder(&self) -> impl Fn() + Send + Sync + 'static {
        let slot = Arc::clone(&self.error);
        move || {
            let interrupt = lock(&slot).clone();
            if let Some(interrupt) = interrupt {
                interrupt.signal();
            }
        }
    }

    pub(crate) fn set(&self, device: &OwnedFd, request: IrqRequest) -> Result<()> {
        let IrqRequest {
            index,
            start,
            action,
        } = request;
        match index {
            IrqIndex::INTX | IrqIndex::MSI | IrqIndex::MSIX => {
                lock(&self.vectors).set(self, device, (index, start), action)
            }
            IrqIndex::ERR if self.info(index).count > 0 => self.set_error(action),
            _ if matches!(action, IrqAction::Disable) => Ok(()),
            _ => Err(self.refuse("the function has no interrupt of this kind")),
        }
    }

    fn set_error(&self, action: IrqAction) -> Result<()> {
        let new = match action {
            IrqAction::Disable => None,
            IrqAction::Install(fds) => match <[_; 1]>::try_from(fds) {
                Ok([fd]) => fd.map(|fd| Interrupt::new(self.bdf, fd)).transpose()?,
                Err(_) => return Err(self.refuse("there is one interrupt for errors")),
            },
            IrqAction::Fire(Vectors::Count(0)) => return Ok(()),
            IrqAction::Fire(Vectors::Flags(flags)) if !flags.contains(&true) => return Ok(()),
            IrqAction::Fire(_) => {
                self.error_forwarder()();
                return Ok(());
            }
            _ => return Err(self.refuse("interrupts of this kind cannot be masked")),
        };
        *lock(&self.error) = new;
        Ok(())
    }

    fn refuse(&self, reason: &'static str) -> Error {
        let bdf = self.bdf;
        Error::Irq { bdf, reason }
    }
}

impl Vectored {
    fn set(
        &mut self,
        irqs: &Irqs,
        device: &OwnedFd,
        (index, start): (IrqIndex, u32),
        action: IrqAction,
    ) -> Result<()> {
        let info = irqs.kernel_info(index);
        let count = match &action {
            IrqAction::Disable => return self.disable(irqs, device, index),
            IrqAction::Install(fds) => fds.len() as u64,
            IrqAction::UnmaskOn(_) => 1,
            IrqAction::Fire(vectors) | IrqAction::Mask(vectors) | IrqAction::Unmask(vectors) => {
                match vectors {
                    Vectors::Count(count) => u64::from(*count),
                    Vectors::Flags(flags) => flags.len() as u64,
                }
            }
        };
        let end = u64::from(start) + count;
        let has = info.count.min(MAX_VECTORS);
        let (Some(end), true) = (u32::try_from(end).ok(), count > 0) else {
            return Err(irqs.refuse("it names no vectors"));
        };
        if end > has {
            return Err(irqs.refuse("the vectors are outside those of the function"));
        }
        let set = |kind, action, data: &[u8]| {
            let set = IrqSet {
                flags: kind | action,
                index: index.0,
                start,
                count: end - start,
            };
            submit(irqs, device, set, data)
        };
        let (vectors, action) = match action {
            IrqAction::Install(fds) => {
                return self.install(irqs, device, (index, start, end), fds);
            }
            IrqAction::UnmaskOn(fd) => {
                let data = descriptors([&fd]);
                let unmask = vfio::VFIO_IRQ_SET_ACTION_UNMASK;
                return set(vfio::VFIO_IRQ_SET_DATA_EVENTFD, unmask, &data);
            }
            IrqAction::Fire(vectors) => (vectors, vfio::VFIO_IRQ_SET_ACTION_TRIGGER),
            IrqAction::Mask(vectors) => (vectors, vfio::VFIO_IRQ_SET_ACTION_MASK),
            IrqAction::Unmask(vectors) => (vectors, vfio::VFIO_IRQ_SET_ACTION_UNMASK),
            IrqAction::Disable => return Ok(()),
        };
        match vectors {
            Vectors::Count(_) => set(vfio::VFIO_IRQ_SET_DATA_NONE, action, &[]),
            Vectors::Flags(flags) => {
                let flags: Vec<u8> = flags.into_iter().map(u8::from).collect();
                set(vfio::VFIO_IRQ_SET_DATA_BOOL, action, &flags)
            }
        }
    }

    fn install(
        &mut self,
        irqs: &Irqs,
        device: &OwnedFd,
        (index, start, end): (IrqIndex, u32, u32),
        fds: Vec<Option<OwnedFd>>,
    ) -> Result<()> {
        if self.enabled.is_some_and(|enabled| enabled != index) {
            return Err(irqs.refuse("interrupts of another kind are enabled: disable them first"));
        }
        let enabled = self.enabled.is_some();
        let allocated = self.fds.len();
        let [first, last] = [start, end].map(|n| n as usize);
        // What the kernel cannot enlarge has to be taken down, and every vector installed again.
        let afresh = !enabled || (last > allocated && irqs.kernel_info(index).noresize);
        let mut new: Vec<Option<OwnedFd>> = Vec::new();
        new.resize_with(allocated.max(last), || None);
        for (slot, fd) in new.iter_mut().zip(std::mem::take(&mut self.fds)) {
            *slot = fd;
        }
        for (slot, fd) in new.iter_mut().skip(first).zip(fds) {
            *slot = fd;
        }
        let whole = if afresh {
            0..last.max(allocated)
        } else {
            first..last
        };
        let (from, count) = (whole.start as u32, whole.len() as u32);
        if enabled && afresh {
            self.disable(irqs, device, index)?;
        }
        let data = descriptors(new.get(whole).unwrap_or_default());
        let set = IrqSet {
            flags: vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
            index: index.0,
            start: from,
            count,
        };
        let done = submit(irqs, device, set, &data);
        if done.is_err() {
            // The kernel has detached every vector of the request again, and what was not enabled
            // before is not enabled now.
            for slot in new.iter_mut().take(last).skip(first) {
                *slot = None;
            }
        }
        if done.is_ok() || !afresh {
            self.enabled = Some(index);
            self.fds = new;
        }
        done
    }

    fn disable(&mut self, irqs: &Irqs, device: &OwnedFd, index: IrqIndex) -> Result<()> {
        // The kernel refuses to disable what is not enabled.
        if self.enabled != Some(index) {
            return Ok(());
        }
        let set = IrqSet {
            flags: vfio::VFIO_IRQ_SET_DATA_NONE | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
            index: index.0,
            start: 0,
            count: 0,
        };
        submit(irqs, device, set, &[])?;
        *self = Self::default();
        Ok(())
    }
}

fn submit(irqs: &Irqs, device: &OwnedFd, set: IrqSet, data: &[u8]) -> Result<()> {
    match ioctl::set_irqs(device, set, data) {
        Ok(0) => Ok(()),
        Ok(_) => Err(irqs.refuse("the host has not so many interrupt vectors left")),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOTTY) => irqs.refuse("the function cannot do this to its interrupts"),
            Some(libc::EBADF) => irqs.refuse("a descriptor is not an eventfd"),
            _ => Error::Io {
                what: "Setting up interrupts",
                source: error,
            },
        }),
    }
}

/// An array of descriptors as the kernel takes it; -1 detaches a vector.
fn descriptors<'a>(fds: impl IntoIterator<Item = &'a Option<OwnedFd>>) -> Vec<u8> {
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    fds.into_iter()
        .flat_map(|fd| number(fd).to_ne_bytes())
        .collect()
}

fn info(flags: u32, count: u32) -> IrqInfo {
    let has = |flag| flags & flag != 0;
    IrqInfo {
        count,
        maskable: has(vfio::VFIO_IRQ_INFO_MASKABLE),
        automasked: has(vfio::VFIO_IRQ_INFO_AUTOMASKED),
        noresize: has(vfio::VFIO_IRQ_INFO_NORESIZE),
    }
}

// Each change of what a lock guards is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{eventfd, EventfdFlags};

    fn irqs() -> (Irqs, OwnedFd) {
        let vectors = |count| IrqInfo {
            count,
            ..IrqInfo::default()
        };
        let irqs = Irqs {
            bdf: Bdf::new(0, 1, 0, 1),
            info: [0, 0, 4, 1, 1].map(vectors).to_vec(),
            vectors: Mutex::default(),
            error: Arc::default(),
        };
        (irqs, std::fs::File::open("/dev/null").unwrap().into())
    }

    fn fd() -> OwnedFd {
        eventfd(0, EventfdFlags::NONBLOCK).unwrap()
    }

    fn request(index: IrqIndex, start: u32, action: IrqAction) -> IrqRequest {
        IrqRequest {
            index,
            start,
            action,
        }
    }

    #[test]
    fn vectors_that_the_function_lacks_never_reach_the_kernel() {
        let (irqs, device) = irqs();
        for (index, start, action) in [
            (IrqIndex::MSIX, 4, IrqAction::Install(vec![None])),
            (IrqIndex::MSIX, 3, IrqAction::Install(vec![None, None])),
            (IrqIndex::MSIX, 0, IrqAction::Install(vec![])),
            (
                IrqIndex::MSIX,
                u32::MAX,
                IrqAction::Fire(Vectors::Count(u32::MAX)),
            ),
            (IrqIndex::INTX, 0, IrqAction::UnmaskOn(None)),
            (IrqIndex::REQ, 0, IrqAction::Install(vec![None])),
            (IrqIndex(9), 0, IrqAction::Mask(Vectors::Count(1))),
        ] {
            let refused = irqs.set(&device, request(index, start, action));
            assert!(
                matches!(refused, Err(Error::Irq { .. })),
                "{index:?} {refused:?}"
            );
        }
    }

    #[test]
    fn disabling_what_is_not_enabled_is_no_error() {
        let (irqs, device) = irqs();
        for index in (0..IrqIndex::COUNT + 1).map(IrqIndex) {
            irqs.set(&device, request(index, 0, IrqAction::Disable))
                .unwrap();
        }
    }

    #[test]
    fn an_installation_that_the_kernel_refuses_enables_nothing() {
        let (irqs, device) = irqs();
        let install = IrqAction::Install(vec![Some(fd())]);
        assert!(irqs
            .set(&device, request(IrqIndex::MSIX, 0, install))
            .is_err());
        assert_eq!(lock(&irqs.vectors).enabled, None);
    }

    #[test]
    fn the_client_hears_of_errors_and_not_of_requests() {
        let (irqs, device) = irqs();
        assert_eq!(irqs.info(IrqIndex::REQ).count, 0);
        assert_eq!(irqs.info(IrqIndex::ERR).count, 1);
        let client = fd();
        let copy = client.try_clone().unwrap();
        let install = IrqAction::Install(vec![Some(copy)]);
        irqs.set(&device, request(IrqIndex::ERR, 0, install))
            .unwrap();
        irqs.error_forwarder()();
        let mut counter = [0; 8];
        rustix::io::read(&client, &mut counter).unwrap();
        assert_eq!(u64::from_ne_bytes(counter), 1);
        irqs.set(&device, request(IrqIndex::ERR, 0, IrqAction::Disable))
            .unwrap();
        irqs.error_forwarder()();
        assert!(rustix::io::read(&client, &mut counter).is_err());
    }
}
