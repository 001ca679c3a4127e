use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use retrovf_pci::Bdf;

use crate::{Error, Result};

/// Where the kernel shows itself; other folders of the same shape in tests.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
        }
    }
}

/// What sysfs says about a function before it is opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) group: String,
    /// Name of its own node under `vfio/devices`.
    pub(crate) node: Option<String>,
    /// Has VFs of its own or could have.
    pub(crate) is_owner: bool,
    /// A VF, and so without a memory enable bit of its own.
    pub(crate) is_vf: bool,
    /// A VF whose PF is on vfio-pci, which then asks for the token.
    pub(crate) needs_token: bool,
}

/// Entries of a folder that are looked at; groups have a handful of devices.
const MAX_ENTRIES: usize = 4096;
/// A module parameter is a number.
const MAX_PARAMETER: u64 = 64;

impl Roots {
    pub(crate) fn function(&self, bdf: Bdf) -> PathBuf {
        self.sys.join("bus/pci/devices").join(bdf.to_string())
    }

    /// Checks that the function is VFIO's to open.
    pub(crate) fn facts(&self, bdf: Bdf) -> Result<Facts> {
        let path = self.function(bdf);
        if !path.is_dir() {
            return Err(Error::NoSuchDevice { bdf });
        }
        let driver = link_name(&path.join("driver"))?;
        // Variants such as virtio_vfio_pci have this interface too, but not the VF as it is.
        if driver.as_deref() != Some("vfio-pci") {
            return Err(Error::NotBound { bdf, driver });
        }
        let group = link_name(&path.join("iommu_group"))?.ok_or(Error::NoIommu { bdf })?;
        // vfio-pci without an IOMMU: the device could reach all memory of the host.
        let marked = path.join("iommu_group/name");
        if read_line(&marked).is_some_and(|name| name == "vfio-noiommu") {
            return Err(Error::NoIommu { bdf });
        }
        let owner_driver = link_name(&path.join("physfn/driver"))?;
        Ok(Facts {
            group,
            node: entries(&path.join("vfio-dev")).into_iter().next(),
            is_owner: path.join("sriov_totalvfs").exists(),
            is_vf: path.join("physfn").exists(),
            needs_token: owner_driver.as_deref() == Some("vfio-pci"),
        })
    }

    /// Devices of the function's group that keep it from being used, and their drivers.
    pub(crate) fn offenders(&self, bdf: Bdf) -> Vec<(String, String)> {
        let devices = self.function(bdf).join("iommu_group/devices");
        let driver_of = |name: &String| {
            let driver = link_name(&devices.join(name).join("driver")).ok()??;
            let allowed = driver.contains("vfio") || driver == "pci-stub" || driver == "pcieport";
            (!allowed).then(|| (name.clone(), driver))
        };
        entries(&devices).iter().filter_map(driver_of).collect()
    }

    /// How many mappings the kernel allows in one container.
    pub(crate) fn dma_entry_limit(&self) -> Option<usize> {
        let path = "module/vfio_iommu_type1/parameters/dma_entry_limit";
        read_line(&self.sys.join(path))?.parse().ok()
    }
}

/// The last part of what a link points to; `None` without a link.
fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(printable)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Sysfs {
            path: path.to_owned(),
            source,
        }),
    }
}

fn entries(path: &Path) -> Vec<String> {
    let Ok(folder) = fs::read_dir(path) else {
        return Vec::new();
    };
    let names = folder
        .take(MAX_ENTRIES)
        .filter_map(|entry| Some(printable(&entry.ok()?.file_name())));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn read_line(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_PARAMETER).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// Names go into messages and paths below our roots.
fn printable(name: &OsStr) -> String {
    let plain = |c: char| {
        if c.is_ascii_graphic() && c != '/' {
            c
        } else {
            '?'
        }
    };
    name.to_string_lossy().chars().take(64).map(plain).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder in the shape of /sys and /dev with a PF and a VF, removed on drop.
    pub(crate) struct Tree(pub(crate) Roots);

    pub(crate) const PF: Bdf = Bdf::new(0, 1, 0, 0);
    pub(crate) const VF: Bdf = Bdf::new(0, 1, 0, 1);

    impl Tree {
        pub(crate) fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("retrovf-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            let roots = Roots {
                sys: root.join("sys"),
                dev: root.join("dev"),
            };
            for (bdf, group) in [(PF, "4"), (VF, "5")] {
                let device = roots.function(bdf);
                let group_path = roots.sys.join("kernel/iommu_groups").join(group);
                fs::create_dir_all(&device).unwrap();
                fs::create_dir_all(group_path.join("devices")).unwrap();
                symlink(
                    "../../../../bus/pci/drivers/vfio-pci",
                    device.join("driver"),
                )
                .unwrap();
                symlink(&group_path, device.join("iommu_group")).unwrap();
                symlink(&device, group_path.join("devices").join(bdf.to_string())).unwrap();
            }
            fs::write(roots.function(PF).join("sriov_totalvfs"), "2\n").unwrap();
            symlink(roots.function(PF), roots.function(VF).join("physfn")).unwrap();
            fs::create_dir_all(roots.dev.join("vfio/devices")).unwrap();
            Self(roots)
        }

        pub(crate) fn rebind(&self, bdf: Bdf, driver: Option<&str>) {
            let link = self.0.function(bdf).join("driver");
            fs::remove_file(&link).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../drivers/{driver}"), link).unwrap();
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.sys.parent().unwrap());
        }
    }

    #[test]
    fn a_vf_of_a_pf_on_vfio_pci_needs_the_token() {
        let tree = Tree::new("token");
        let facts = tree.0.facts(VF).unwrap();
        assert!(facts.needs_token && facts.is_vf && !facts.is_owner && facts.group == "5");
        assert!(tree.0.facts(PF).unwrap().is_owner);
        tree.rebind(PF, Some("virtio-pci"));
        assert!(!tree.0.facts(VF).unwrap().needs_token);
    }

    #[test]
    fn another_driver_no_driver_no_group_and_no_function_are_told_apart() {
        let tree = Tree::new("drivers");
        let code = |bdf| tree.0.facts(bdf).unwrap_err().code();
        tree.rebind(VF, Some("virtio_vfio_pci"));
        assert_eq!(code(VF), "ERR_VFIO_NOT_BOUND");
        let message = tree.0.facts(VF).unwrap_err().to_string();
        assert!(message.contains("virtio_vfio_pci"), "{message}");
        tree.rebind(VF, None);
        assert_eq!(code(VF), "ERR_VFIO_NOT_BOUND");
        fs::remove_file(tree.0.function(PF).join("iommu_group")).unwrap();
        assert_eq!(code(PF), "ERR_VFIO_NO_IOMMU");
        assert_eq!(code(Bdf::new(9, 9, 9, 1)), "ERR_NO_SUCH_DEVICE");
    }

    #[test]
    fn a_group_without_an_iommu_is_refused() {
        let tree = Tree::new("noiommu");
        let name = tree.0.function(VF).join("iommu_group/name");
        fs::write(name, "vfio-noiommu\n").unwrap();
        assert_eq!(tree.0.facts(VF).unwrap_err().code(), "ERR_VFIO_NO_IOMMU");
    }

    #[test]
    fn the_devices_that_make_a_group_unusable_are_named_with_their_drivers() {
        let tree = Tree::new("viable");
        let devices = tree.0.function(VF).join("iommu_group/devices");
        for (name, driver) in [("0000:02:00.0", "e1000e"), ("0000:00:01.0", "pcieport")] {
            fs::create_dir(devices.join(name)).unwrap();
            symlink(format!("../{driver}"), devices.join(name).join("driver")).unwrap();
        }
        fs::create_dir(devices.join("0000:02:00.1")).unwrap();
        let offenders = tree.0.offenders(VF);
        assert_eq!(
            offenders,
            [("0000:02:00.0".to_owned(), "e1000e".to_owned())]
        );
    }
}
