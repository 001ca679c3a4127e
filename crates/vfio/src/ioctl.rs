//! The ioctls of VFIO and iommufd, each as a safe function. The crate's only unsafe code.
//!
//! The numbers carry no size (`_IO`), so the kernel goes by `argsz` (VFIO) or `size` (iommufd) in the
//! structure itself; each function sets it to what it really passes.
#![expect(unsafe_code, reason = "issues the ioctls of VFIO and iommufd")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use retrovf_pci::{DmaAccess, SharedMemory};
use vfio_bindings::bindings::vfio;

type Result<T> = io::Result<T>;

/// `_IO(';', 100 + n)`.
const fn vfio_number(n: u32) -> u32 {
    (vfio::VFIO_TYPE as u32) << 8 | (vfio::VFIO_BASE + n)
}

/// `_IO(';', 0x80 + n)`.
const fn iommufd_number(n: u32) -> u32 {
    (vfio::VFIO_TYPE as u32) << 8 | (0x80 + n)
}

const GET_API_VERSION: u32 = vfio_number(0);
const CHECK_EXTENSION: u32 = vfio_number(1);
const SET_IOMMU: u32 = vfio_number(2);
const GROUP_GET_STATUS: u32 = vfio_number(3);
const GROUP_SET_CONTAINER: u32 = vfio_number(4);
const GROUP_GET_DEVICE_FD: u32 = vfio_number(6);
const DEVICE_GET_INFO: u32 = vfio_number(7);
const DEVICE_GET_REGION_INFO: u32 = vfio_number(8);
const DEVICE_GET_IRQ_INFO: u32 = vfio_number(9);
const DEVICE_SET_IRQS: u32 = vfio_number(10);
const DEVICE_RESET: u32 = vfio_number(11);
const IOMMU_MAP_DMA: u32 = vfio_number(13);
const IOMMU_UNMAP_DMA: u32 = vfio_number(14);
const DEVICE_IOEVENTFD: u32 = vfio_number(16);
const DEVICE_FEATURE: u32 = vfio_number(17);
const DEVICE_BIND_IOMMUFD: u32 = vfio_number(18);
const DEVICE_ATTACH_IOMMUFD_PT: u32 = vfio_number(19);
const IOAS_ALLOC: u32 = iommufd_number(1);
const IOAS_MAP: u32 = iommufd_number(5);
const IOAS_UNMAP: u32 = iommufd_number(6);

/// iommufd's structures; `vfio-bindings` has VFIO's only.
#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

const IOAS_MAP_FIXED_IOVA: u32 = 1;
const IOAS_MAP_WRITEABLE: u32 = 2;
const IOAS_MAP_READABLE: u32 = 4;
/// New in the header of 6.17 and later; older kernels refuse any flag.
const BIND_FLAG_TOKEN: u32 = 1;

/// Passes an integer.
fn by_value(fd: BorrowedFd<'_>, number: u32, value: libc::c_ulong) -> Result<i32> {
    // SAFETY: used for the ioctls of this file that take an integer, so no memory is touched.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), value) })
}

/// Passes a structure, which the kernel reads and may write.
fn by_struct<T>(fd: BorrowedFd<'_>, number: u32, argument: &mut T) -> Result<i32> {
    // SAFETY: used for the ioctls of this file with the structure that belongs to each; those carry
    // their own size, beyond which the kernel touches nothing. They are integers only, so whatever
    // the kernel writes is valid.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), std::ptr::from_mut(argument)) })
}

/// Passes a structure of variable length, in words so that it is aligned; the first 32 bits must
/// say how many bytes there are.
fn by_words(fd: BorrowedFd<'_>, number: u32, words: &mut [u64]) -> Result<i32> {
    let claimed = words.first().map_or(0, |word| *word as u32 as usize);
    if claimed == 0 || claimed > size_of_val(words) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: used for the ioctls of this file that take `argsz` first, and `argsz` was checked to
    // lie inside the buffer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), words.as_mut_ptr()) })
}

fn check(returned: libc::c_int) -> Result<i32> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// The version of the container interface.
pub(crate) fn api_version(container: impl AsFd) -> Result<i32> {
    by_value(container.as_fd(), GET_API_VERSION, 0)
}

/// Whether the container supports an IOMMU type.
pub(crate) fn has_extension(container: impl AsFd, extension: u32) -> Result<bool> {
    Ok(by_value(container.as_fd(), CHECK_EXTENSION, extension.into())? != 0)
}

/// Chooses the IOMMU type of a container that has a group.
pub(crate) fn set_iommu(container: impl AsFd, kind: u32) -> Result<()> {
    by_value(container.as_fd(), SET_IOMMU, kind.into()).map(drop)
}

/// The flags of a group.
pub(crate) fn group_flags(group: impl AsFd) -> Result<u32> {
    let mut status = vfio::vfio_group_status {
        argsz: size::<vfio::vfio_group_status>(),
        flags: 0,
    };
    by_struct(group.as_fd(), GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(crate) fn set_container(group: impl AsFd, container: impl AsFd) -> Result<()> {
    let mut fd = container.as_fd().as_raw_fd();
    by_struct(group.as_fd(), GROUP_SET_CONTAINER, &mut fd).map(drop)
}

/// Opens a device of a group; the name may carry options.
pub(crate) fn group_device(group: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let fd = group.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a string from the address, up to its terminating zero.
    let device = check(unsafe { libc::ioctl(fd, GROUP_GET_DEVICE_FD.into(), name.as_ptr()) })?;
    // SAFETY: a successful call returns a descriptor that is ours alone.
    let device = unsafe { OwnedFd::from_raw_fd(device) };
    // The kernel opens it close-on-exec.
    Ok(device)
}

/// What a device is.
pub(crate) fn device_info(device: impl AsFd) -> Result<vfio::vfio_device_info> {
    let mut info = vfio::vfio_device_info {
        argsz: size::<vfio::vfio_device_info>(),
        ..Default::default()
    };
    by_struct(device.as_fd(), DEVICE_GET_INFO, &mut info)?;
    Ok(info)
}

/// Describes a region; `words` is the `vfio_region_info` with room for its capabilities.
pub(crate) fn region_info(device: impl AsFd, index: u32, words: &mut [u64]) -> Result<()> {
    let length = u32::try_from(size_of_val(words)).unwrap_or(0);
    words.fill(0);
    if let [first, second, ..] = words {
        *first = length.into();
        *second = index.into();
    }
    by_words(device.as_fd(), DEVICE_GET_REGION_INFO, words).map(drop)
}

/// Describes an interrupt index: flags and number.
pub(crate) fn irq_info(device: impl AsFd, index: u32) -> Result<(u32, u32)> {
    let mut info = vfio::vfio_irq_info {
        argsz: size::<vfio::vfio_irq_info>(),
        index,
        ..Default::default()
    };
    by_struct(device.as_fd(), DEVICE_GET_IRQ_INFO, &mut info)?;
    Ok((info.flags, info.count))
}

/// The fixed part of a request to change interrupts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IrqSet {
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) start: u32,
    pub(crate) count: u32,
}

/// Changes interrupts; `data` is an array of flags or descriptors, as `flags` says. Above 0: so many
/// vectors are all that the host has, and nothing was changed.
pub(crate) fn set_irqs(device: impl AsFd, set: IrqSet, data: &[u8]) -> Result<i32> {
    const HEADER: usize = 20;
    let length = HEADER + data.len();
    let total = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
    for word in [total, set.flags, set.index, set.start, set.count] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(data);
    bytes.resize(length.next_multiple_of(8), 0);
    let words = bytes.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    });
    let mut words: Vec<u64> = words.collect();
    by_words(device.as_fd(), DEVICE_SET_IRQS, &mut words)
}

/// Resets the function.
pub(crate) fn reset(device: impl AsFd) -> Result<()> {
    by_value(device.as_fd(), DEVICE_RESET, 0).map(drop)
}

/// Has the kernel write `data` (16 bits) at a device offset whenever the eventfd is signalled;
/// without an eventfd, ends that.
pub(crate) fn ioeventfd(
    device: impl AsFd,
    offset: u64,
    data: u16,
    fd: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut argument = vfio::vfio_device_ioeventfd {
        argsz: size::<vfio::vfio_device_ioeventfd>(),
        flags: vfio::VFIO_DEVICE_IOEVENTFD_16,
        offset,
        data: data.into(),
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        reserved: 0,
    };
    by_struct(device.as_fd(), DEVICE_IOEVENTFD, &mut argument).map(drop)
}

/// Sets the token that openers of the function's VFs have to give.
pub(crate) fn set_token(device: impl AsFd, token: &[u8; 16]) -> Result<()> {
    let flags = vfio::VFIO_DEVICE_FEATURE_SET | vfio::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
    let (low, high) = token.split_at(8);
    let word = |half: &[u8]| {
        half.first_chunk()
            .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    let mut words = [24 | u64::from(flags) << 32, word(low), word(high)];
    by_words(device.as_fd(), DEVICE_FEATURE, &mut words).map(drop)
}

/// Binds a device, opened by its own node, to an iommufd; before that it can do nothing.
pub(crate) fn bind(device: impl AsFd, iommufd: impl AsFd, token: Option<&[u8; 16]>) -> Result<()> {
    let mut argument = vfio::vfio_device_bind_iommufd {
        argsz: size::<vfio::vfio_device_bind_iommufd>(),
        flags: token.map_or(0, |_| BIND_FLAG_TOKEN),
        iommufd: iommufd.as_fd().as_raw_fd(),
        out_devid: 0,
        // The kernel reads 16 bytes from here during the call.
        token_uuid_ptr: token.map_or(0, |token| token.as_ptr() as u64),
    };
    by_struct(device.as_fd(), DEVICE_BIND_IOMMUFD, &mut argument).map(drop)
}

/// Gives a bound device an address space.
pub(crate) fn attach(device: impl AsFd, ioas: u32) -> Result<()> {
    // Shorter than the structure of the bindings, whose last field (a PASID) is newer than the ioctl.
    let mut words = [12, ioas.into()];
    by_words(device.as_fd(), DEVICE_ATTACH_IOMMUFD_PT, &mut words).map(drop)
}

/// Makes an address space.
pub(crate) fn ioas_alloc(iommufd: impl AsFd) -> Result<u32> {
    let mut argument = IoasAlloc {
        size: size::<IoasAlloc>(),
        flags: 0,
        out_ioas_id: 0,
    };
    by_struct(iommufd.as_fd(), IOAS_ALLOC, &mut argument)?;
    Ok(argument.out_ioas_id)
}

/// Memory to be given to a device; checked to lie inside the mapping of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    address: u64,
    pub(crate) iova: u64,
    pub(crate) size: u64,
    access: DmaAccess,
}

impl Range {
    /// `None`: not inside the memory.
    pub(crate) fn of(
        memory: &SharedMemory,
        offset: u64,
        iova: u64,
        size: u64,
        access: DmaAccess,
    ) -> Option<Self> {
        let end = offset.checked_add(size)?;
        (end <= memory.len() as u64).then_some(Self {
            address: memory.address() as u64 + offset,
            iova,
            size,
            access,
        })
    }

    /// Whether a device's page tables can describe it.
    pub(crate) fn is_aligned(&self, page: u64) -> bool {
        [self.address, self.iova, self.size]
            .iter()
            .all(|number| number.is_multiple_of(page))
    }
}

/// Maps memory into a container. The pages are pinned: they outlive the mapping of this process, and
/// a peer that truncates the file behind them only loses sight of them.
pub(crate) fn type1_map(container: impl AsFd, range: &Range) -> Result<()> {
    let flag = |on, flag| if on { flag } else { 0 };
    let mut argument = vfio::vfio_iommu_type1_dma_map {
        argsz: size::<vfio::vfio_iommu_type1_dma_map>(),
        flags: flag(range.access.read, vfio::VFIO_DMA_MAP_FLAG_READ)
            | flag(range.access.write, vfio::VFIO_DMA_MAP_FLAG_WRITE),
        vaddr: range.address,
        iova: range.iova,
        size: range.size,
    };
    by_struct(container.as_fd(), IOMMU_MAP_DMA, &mut argument).map(drop)
}

/// Takes one mapping out of a container.
pub(crate) fn type1_unmap(container: impl AsFd, iova: u64, length: u64) -> Result<()> {
    // The structure of the bindings ends in an array of no bytes; words are the same without it.
    let mut words = [24, iova, length];
    by_words(container.as_fd(), IOMMU_UNMAP_DMA, &mut words).map(drop)
}

/// Maps memory into an address space of an iommufd.
pub(crate) fn ioas_map(iommufd: impl AsFd, ioas_id: u32, range: &Range) -> Result<()> {
    let flag = |on, flag| if on { flag } else { 0 };
    let mut argument = IoasMap {
        size: size::<IoasMap>(),
        flags: IOAS_MAP_FIXED_IOVA
            | flag(range.access.read, IOAS_MAP_READABLE)
            | flag(range.access.write, IOAS_MAP_WRITEABLE),
        ioas_id,
        reserved: 0,
        user_va: range.address,
        length: range.size,
        iova: range.iova,
    };
    by_struct(iommufd.as_fd(), IOAS_MAP, &mut argument).map(drop)
}

/// Takes one mapping out of an address space of an iommufd.
pub(crate) fn ioas_unmap(iommufd: impl AsFd, ioas_id: u32, iova: u64, length: u64) -> Result<()> {
    let mut argument = IoasUnmap {
        size: size::<IoasUnmap>(),
        ioas_id,
        iova,
        length,
    };
    by_struct(iommufd.as_fd(), IOAS_UNMAP, &mut argument).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel_s_header() {
        assert_eq!(size::<IoasAlloc>(), 12);
        assert_eq!(size::<IoasMap>(), 40);
        assert_eq!(size::<IoasUnmap>(), 24);
        assert_eq!(size::<vfio::vfio_region_info>(), 32);
        assert_eq!(size::<vfio::vfio_irq_info>(), 16);
        assert_eq!(size::<vfio::vfio_iommu_type1_dma_map>(), 32);
        assert_eq!(DEVICE_IOEVENTFD, 0x3b74);
        assert_eq!(IOAS_MAP, 0x3b85);
    }

    #[test]
    fn a_buffer_that_claims_more_than_it_has_never_reaches_the_kernel() {
        let null = std::fs::File::open("/dev/null").unwrap();
        for words in [&mut [17, 0][..], &mut [0, 0], &mut []] {
            let error = by_words(null.as_fd(), DEVICE_GET_REGION_INFO, words).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_range_outside_its_memory_cannot_be_made() {
        let memory = SharedMemory::anonymous(8192).unwrap();
        let range = |offset, size| Range::of(&memory, offset, 0x1000, size, DmaAccess::READ_WRITE);
        assert!(range(4096, 4096).unwrap().is_aligned(4096));
        assert!(!range(4095, 4096).unwrap().is_aligned(4096));
        assert!(range(4096, 4097).is_none());
        assert!(range(u64::MAX, 2).is_none());
    }
}
