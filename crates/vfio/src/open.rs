use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use retrovf_pci::Bdf;
use rustix::fs::{Mode, OFlags};
use vfio_bindings::bindings::vfio;

use crate::host::Facts;
use crate::{ioctl, Error, Result, Roots, Token};

/// Which way a function is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Via {
    /// By its own node if the kernel has iommufd and the node, else by its group.
    #[default]
    Auto,
    /// By its IOMMU group, with a container: any kernel.
    Group,
    /// By its own node, with iommufd.
    Cdev,
}

/// How to open a function.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The way.
    pub via: Via,
    /// Set on a PF; given for a VF whose PF asks for one. Others are opened without.
    pub token: Option<Token>,
    /// The host.
    pub roots: Roots,
}

/// The address space of a device, whose mappings are made on another file than its own.
#[derive(Debug)]
pub(crate) enum Space {
    Type1(OwnedFd),
    Ioas { iommufd: OwnedFd, id: u32 },
}

/// A function that was opened. Dropped in the order of the fields: the device first.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) device: OwnedFd,
    /// Held for as long as the device is.
    pub(crate) group: Option<OwnedFd>,
    pub(crate) space: Space,
}

/// Opening resets the function, and gives up at once if somebody else is at its configuration.
const OPEN_PATIENCE: Duration = Duration::from_secs(2);
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// Opens the function. Its first open resets it.
pub(crate) fn open(bdf: Bdf, facts: &Facts, options: &OpenOptions) -> Result<Opened> {
    let roots = &options.roots;
    let iommufd = roots.dev.join("iommu");
    let devices = roots.dev.join("vfio/devices");
    let node = facts.node.as_ref().map(|name| devices.join(name));
    let node = node.filter(|node| node.exists() && iommufd.exists());
    let ask = Ask {
        bdf,
        facts,
        options,
    };
    match (options.via, node) {
        (Via::Auto | Via::Cdev, Some(node)) => ask.cdev(&node, &iommufd),
        (Via::Cdev, None) => Err(ask.unavailable(
            "the kernel has no iommufd (/dev/iommu) or no node for the function under \
             /dev/vfio/devices; open it by its group",
        )),
        (Via::Auto | Via::Group, _) => ask.group(),
    }
}

/// An attempt to open a function.
struct Ask<'a> {
    bdf: Bdf,
    facts: &'a Facts,
    options: &'a OpenOptions,
}

impl Ask<'_> {
    fn group(&self) -> Result<Opened> {
        let folder = self.options.roots.dev.join("vfio");
        let container = self.node(&folder.join("vfio"))?;
        let node = folder.join(&self.facts.group);
        let group = self.node(&node)?;
        let version = ioctl::api_version(&container);
        let version = version.map_err(self.io("Asking for the version of VFIO"))?;
        if version != 0 {
            return Err(self.unavailable(format!("its interface has version {version}, not 0")));
        }
        let flags = ioctl::group_flags(&group).map_err(self.io("Asking for the IOMMU group"))?;
        if flags & vfio::VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(Error::GroupNotViable {
                bdf: self.bdf,
                group: self.facts.group.clone(),
                offenders: self.options.roots.offenders(self.bdf),
            });
        }
        let type1 = ioctl::has_extension(&container, vfio::VFIO_TYPE1v2_IOMMU);
        if !type1.map_err(self.io("Asking for the type of the IOMMU"))? {
            return Err(self.unavailable("the kernel module vfio_iommu_type1 is not loaded"));
        }
        ioctl::set_container(&group, &container).map_err(self.io("Taking the IOMMU group"))?;
        ioctl::set_iommu(&container, vfio::VFIO_TYPE1v2_IOMMU).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPERM) => Error::UnsafeInterrupts { bdf: self.bdf },
                _ => self.io("Setting up the IOMMU")(source),
            }
        })?;
        let token = self.token();
        let mut name = self.bdf.to_string();
        if let Some(token) = token {
            name = format!("{name} vf_token={}", token.text());
        }
        let name =
            CString::new(name).map_err(|error| self.io("Naming the device")(error.into()))?;
        let device = patiently(|| ioctl::group_device(&group, &name));
        let device = device.map_err(|source| self.refusal(source, token.is_some(), &node))?;
        Ok(Opened {
            device,
            group: Some(group),
            space: Space::Type1(container),
        })
    }

    fn cdev(&self, node: &Path, iommufd: &Path) -> Result<Opened> {
        let iommufd = self.node(iommufd)?;
        let device = self.node(node)?;
        let token = self.token();
        let bind = |token: Option<&Token>| {
            patiently(|| ioctl::bind(&device, &iommufd, token.map(Token::bytes)))
        };
        // A VF: kernels before the flag refuse it, and ask for no token on this way. A PF: the kernel
        // takes a token from whoever asks, even if it then refuses because the PF is open already;
        // so it gets one only if it wants one, which is while VFs are open, and its own later.
        let (first, then, unless) = match self.facts.is_owner {
            true => (None, token, libc::EACCES),
            false => (token, None, libc::EINVAL),
        };
        let mut bound = bind(first);
        let refused = |error: &io::Error| error.raw_os_error() == Some(unless);
        let retried = token.is_some() && bound.as_ref().is_err_and(refused);
        if retried {
            bound = bind(then);
        }
        bound.map_err(|source| match source.raw_os_error() {
            // What is left of the reasons: another holder. A kernel that knows the flag and takes no
            // bind without it had the same one before.
            Some(libc::EINVAL) => self.busy(node),
            Some(libc::EACCES) if retried && !self.facts.is_owner => self.busy(node),
            _ => self.refusal(source, token.is_some(), node),
        })?;
        let id = ioctl::ioas_alloc(&iommufd).map_err(self.io("Making an address space"))?;
        ioctl::attach(&device, id).map_err(self.io("Giving the device its address space"))?;
        Ok(Opened {
            device,
            group: None,
            space: Space::Ioas { iommufd, id },
        })
    }

    /// The token, where the kernel takes one: it refuses one that nobody asked for.
    fn token(&self) -> Option<&Token> {
        let wanted = self.facts.is_owner || self.facts.needs_token;
        self.options.token.as_ref().filter(|_| wanted)
    }

    fn node(&self, path: &Path) -> Result<OwnedFd> {
        let bdf = self.bdf;
        let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(|errno| match errno.raw_os_error() {
            libc::EACCES | libc::EPERM => Error::Permission {
                bdf,
                path: path.to_owned(),
                source: errno.into(),
            },
            libc::EBUSY => self.busy(path),
            libc::ENOENT | libc::ENODEV => {
                let (path, why) = (path.display(), io::Error::from(errno));
                self.unavailable(format!("{path} cannot be opened ({why})"))
            }
            _ => self.io("Opening a node of VFIO")(errno.into()),
        })
    }

    /// What a refusal of the device itself means.
    fn refusal(&self, source: io::Error, given: bool, node: &Path) -> Error {
        let bdf = self.bdf;
        match source.raw_os_error() {
            Some(libc::EACCES) => Error::Token { bdf, given },
            Some(libc::EBUSY) => self.busy(node),
            _ => self.io("Opening the device")(source),
        }
    }

    fn busy(&self, path: &Path) -> Error {
        Error::Busy {
            bdf: self.bdf,
            path: path.to_owned(),
        }
    }

    fn unavailable(&self, reason: impl Into<String>) -> Error {
        Error::Unavailable {
            bdf: self.bdf,
            reason: reason.into(),
        }
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> Error {
        let bdf = self.bdf;
        move |source| Error::Io { bdf, what, source }
    }
}

/// Repeats what somebody else's hold on the function's configuration keeps from happening.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + OPEN_PATIENCE;
    loop {
        match attempt() {
            Err(error)
                if error.raw_os_error() == Some(libc::EAGAIN) && Instant::now() < deadline =>
            {
                sleep(OPEN_PAUSE);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::{Tree, VF};
    use std::fs;

    fn attempt(tree: &Tree, via: Via) -> Error {
        let options = OpenOptions {
            via,
            token: None,
            roots: tree.0.clone(),
        };
        open(VF, &tree.0.facts(VF).unwrap(), &options).unwrap_err()
    }

    #[test]
    fn a_kernel_without_vfio_is_unavailable_and_says_which_node_is_missing() {
        let tree = Tree::new("nodes");
        let error = attempt(&tree, Via::Auto);
        assert_eq!(error.code(), "ERR_VFIO_UNAVAILABLE");
        assert!(
            error.to_string().contains("vfio/vfio cannot be opened"),
            "{error}"
        );
        fs::write(tree.0.dev.join("vfio/vfio"), "").unwrap();
        let error = attempt(&tree, Via::Group);
        assert!(
            error.to_string().contains("vfio/5 cannot be opened"),
            "{error}"
        );
    }

    #[test]
    fn the_node_of_the_function_is_taken_only_together_with_iommufd() {
        let tree = Tree::new("cdev");
        assert_eq!(attempt(&tree, Via::Cdev).code(), "ERR_VFIO_UNAVAILABLE");
        fs::create_dir_all(tree.0.function(VF).join("vfio-dev/vfio3")).unwrap();
        fs::write(tree.0.dev.join("vfio/devices/vfio3"), "").unwrap();
        assert_eq!(attempt(&tree, Via::Cdev).code(), "ERR_VFIO_UNAVAILABLE");
        fs::write(tree.0.dev.join("iommu"), "").unwrap();
        // A plain file takes no ioctl: it was opened, and asked.
        for via in [Via::Cdev, Via::Auto] {
            let error = attempt(&tree, via);
            assert_eq!(error.code(), "ERR_IO", "{error}");
        }
    }

    #[test]
    fn what_is_busy_is_tried_again_but_not_for_ever() {
        let mut left = 3;
        let done = patiently(|| {
            left -= 1;
            match left {
                0 => Ok(7),
                _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            }
        });
        assert_eq!(done.unwrap(), 7);
        let mut calls = 0;
        let refused = patiently(|| -> io::Result<()> {
            calls += 1;
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        });
        assert!(refused.is_err() && calls == 1);
    }
}
