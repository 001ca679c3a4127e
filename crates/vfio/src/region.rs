use std::io;
use std::os::fd::OwnedFd;

use vfio_bindings::bindings::vfio;

use crate::ioctl;

/// What the kernel says about a region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegionFacts {
    /// Bytes; 0: absent.
    pub(crate) size: u64,
    /// Where it begins in the device's file.
    pub(crate) offset: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    mappable: bool,
    /// The only parts that can be mapped, if not all of it; without the MSI-X table, unless the
    /// kernel lets that be mapped too.
    areas: Option<Vec<(u64, u64)>>,
}

/// Bytes of a description without its capabilities.
const SIZE: usize = size_of::<vfio::vfio_region_info>();
/// The kernel has three kinds of capability, and one sparse area for each gap of the MSI-X table.
const MAX_SIZE: usize = 64 << 10;
const MAX_CAPABILITIES: usize = 16;
const CAPABILITY_HEADER: usize = 8;
const SPARSE_AREAS: usize = 16;
const AREA_SIZE: usize = 16;

impl RegionFacts {
    /// Asks the kernel. A region that the device does not have is absent.
    pub(crate) fn ask(device: &OwnedFd, index: u32) -> io::Result<Self> {
        let mut words = vec![0; SIZE / 8];
        loop {
            match ioctl::region_info(device, index, &mut words) {
                Ok(()) => {}
                // The VGA region, mostly.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Ok(Self::default())
                }
                Err(error) => return Err(error),
            }
            let needs = words.first().map_or(0, |word| *word as u32 as usize);
            if needs <= size_of_val(&*words) || needs > MAX_SIZE {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                return Ok(Self::parse(&bytes));
            }
            words.resize(needs.div_ceil(8), 0);
        }
    }

    /// Reads a `vfio_region_info` with its capabilities.
    fn parse(bytes: &[u8]) -> Self {
        let flags = u32_at(bytes, 4).unwrap_or(0);
        let has = |flag| flags & flag != 0;
        Self {
            size: u64_at(bytes, 16).unwrap_or(0),
            offset: u64_at(bytes, 24).unwrap_or(0),
            readable: has(vfio::VFIO_REGION_INFO_FLAG_READ),
            writable: has(vfio::VFIO_REGION_INFO_FLAG_WRITE),
            mappable: has(vfio::VFIO_REGION_INFO_FLAG_MMAP),
            areas: has(vfio::VFIO_REGION_INFO_FLAG_CAPS)
                .then(|| sparse_areas(bytes))
                .flatten(),
        }
    }

    /// Whether the page around an offset can be mapped.
    pub(crate) fn maps_page(&self, offset: u64, page: u64) -> bool {
        let start = offset - offset % page;
        let Some(end) = start.checked_add(page) else {
            return false;
        };
        // A BAR below a page in size has its page to itself if the kernel lets it be mapped.
        let whole = offset < self.size;
        let within = |(at, size): &(u64, u64)| {
            *at <= start && at.checked_add(*size).is_some_and(|limit| end <= limit)
        };
        let listed = |areas: &Vec<_>| areas.iter().any(within);
        self.mappable && whole && self.areas.as_ref().is_none_or(listed)
    }
}

/// The areas of the capability for sparse maps. The chain is as long as the kernel makes it, but
/// every step is checked, and there is an end.
fn sparse_areas(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut at = u32_at(bytes, 12)? as usize;
    for _ in 0..MAX_CAPABILITIES {
        if at < SIZE {
            return None;
        }
        let header = bytes.get(at..at.checked_add(CAPABILITY_HEADER)?)?;
        let id = u16::from_ne_bytes(*header.first_chunk()?);
        if u32::from(id) == vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = u32_at(bytes, at + CAPABILITY_HEADER)? as usize;
            let areas = bytes.get(at + SPARSE_AREAS..)?.chunks_exact(AREA_SIZE);
            let area = |area: &[u8]| Some((u64_at(area, 0)?, u64_at(area, 8)?));
            return areas.take(count).map(area).collect();
        }
        at = u32_at(header, 4)? as usize;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*part))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, cap_offset: u32, size: u64) -> Vec<u8> {
        let words = [32, flags, 4, cap_offset];
        let head = words.into_iter().flat_map(u32::to_ne_bytes);
        let tail = [size, 4 << 40].into_iter().flat_map(u64::to_ne_bytes);
        head.chain(tail).collect()
    }

    fn capability(id: u16, next: u32, body: &[u64]) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    const ALL: u32 = 15;

    #[test]
    fn sparse_areas_are_found_behind_another_capability() {
        let mut bytes = info(ALL, 32, 0x4000);
        bytes.extend(capability(3, 40, &[]));
        bytes.extend(capability(1, 0, &[2, 0, 0x1000, 0x2000, 0x2000]));
        let region = RegionFacts::parse(&bytes);
        assert_eq!(region.offset, 4 << 40);
        let maps = |offset| region.maps_page(offset, 0x1000);
        assert!(maps(0xffe) && maps(0x2000) && maps(0x3ffe));
        assert!(!maps(0x1000) && !maps(0x4000) && !maps(u64::MAX));
    }

    #[test]
    fn a_region_without_capabilities_maps_whole_or_not_at_all() {
        assert!(RegionFacts::parse(&info(7, 0, 0x4000)).maps_page(0x3ffe, 0x1000));
        assert!(RegionFacts::parse(&info(7, 0, 0x40)).maps_page(0x3e, 0x1000));
        assert!(!RegionFacts::parse(&info(3, 0, 0x4000)).maps_page(0, 0x1000));
    }

    #[test]
    fn a_chain_that_loops_leaves_the_buffer_or_lies_about_its_length_ends() {
        let mut looping = info(ALL, 32, 0x1000);
        looping.extend(capability(3, 32, &[]));
        assert_eq!(RegionFacts::parse(&looping).areas, None);
        for cap_offset in [4, 33, 4096, u32::MAX] {
            assert_eq!(RegionFacts::parse(&info(ALL, cap_offset, 1)).areas, None);
        }
        let mut greedy = info(ALL, 32, 0x1000);
        greedy.extend(capability(1, 0, &[u64::MAX, 0, 0x1000]));
        assert_eq!(RegionFacts::parse(&greedy).areas, Some(vec![(0, 0x1000)]));
        assert_eq!(RegionFacts::parse(&[]), RegionFacts::default());
    }
}
