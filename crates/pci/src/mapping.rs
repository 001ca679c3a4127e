//! Memory maps of files, and the volatile accesses to them. The crate's only unsafe code.
#![expect(
    unsafe_code,
    reason = "maps files and device BARs and accesses them as volatile memory"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU16, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::{Error, Result};

/// A shared mapping that is unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that any thread may access; every access goes through raw
// pointers or atomics, never through references to its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, offset: u64, len: usize, prot: ProtFlags) -> Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }
        .map_err(Error::io("Mapping memory"))?;
        let start = NonNull::new(start.cast()).ok_or(Error::Io {
            what: "Mapping memory",
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap returned, and nobody borrows from the mapping.
        // The only failure would be wrong arguments.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Memory shared with a peer (or with a device): a range of a file, mapped.
///
/// The peer may change the bytes at any time, so every access copies. If the peer could also shrink
/// the file, touching the mapping would raise SIGBUS and end the process; unless a seal rules that
/// out, accesses go through `process_vm_readv`/`writev` on ourselves, which report a fault instead.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Mapping,
    /// The file cannot shrink, so the mapping can be touched directly.
    sealed: bool,
    fd: OwnedFd,
}

impl SharedMemory {
    /// Allocates zeroed memory of our own.
    pub fn anonymous(len: usize) -> Result<Self> {
        let fd =
            rustix::fs::memfd_create(c"retrovf", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(Error::io("Creating a memory file"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(Error::io("Sizing a memory file"))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(Error::io("Sealing a memory file"))?;
        let mapping = Mapping::new(&fd, 0, len, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self {
            mapping,
            sealed: true,
            fd,
        })
    }

    /// Maps `len` bytes at `offset` of a peer's file, read-only unless `writable`.
    pub fn from_fd(fd: OwnedFd, offset: u64, len: u64, writable: bool) -> Result<Self> {
        let invalid = Error::DmaRange {
            iova: offset,
            size: len,
        };
        let Some(end) = offset.checked_add(len) else {
            return Err(invalid);
        };
        let Ok(map_len) = usize::try_from(len) else {
            return Err(invalid);
        };
        let stat = rustix::fs::fstat(&fd).map_err(Error::io("Reading a file's size"))?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if regular && u64::try_from(stat.st_size).is_ok_and(|size| end > size) {
            return Err(invalid);
        }
        let sealed =
            rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let prot = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        let mapping = Mapping::new(&fd, offset, map_len, prot)?;
        Ok(Self {
            mapping,
            sealed,
            fd,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// True for an empty mapping, which no constructor makes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file behind the memory, to be passed to a peer or a device.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Address of the mapping in this process, for `VFIO_IOMMU_MAP_DMA`.
    pub fn address(&self) -> usize {
        self.mapping.start.as_ptr() as usize
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let from = self.at(offset, out.len())?;
        if self.sealed {
            // SAFETY: `at` checked that the range lies inside the mapping, which the seal keeps
            // backed; `out` is ours and disjoint. Concurrent writers are other processes or other
            // raw copies, as with any DMA: bytes may tear, nothing else can go wrong.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        self.checked_copy(from, out.as_mut_ptr(), out.len(), libc::process_vm_readv)
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let to = self.at(offset, data.len())?;
        if self.sealed {
            // SAFETY: as in `read`, with the directions swapped. Callers write only to mappings
            // made writable (`DmaMapping` carries the access rights).
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
            return Ok(());
        }
        self.checked_copy(
            to,
            data.as_ptr().cast_mut(),
            data.len(),
            libc::process_vm_writev,
        )
    }

    /// Loads a 16-bit ring index or flag; what the peer wrote before it is visible afterwards.
    pub fn load_u16(&self, offset: usize) -> Result<u16> {
        if self.sealed && offset.is_multiple_of(2) {
            let word = self.at(offset, 2)?;
            // SAFETY: inside the mapping and aligned (mappings are page aligned); the peer uses it
            // as an atomic too. Acquire pairs with the peer's release store of the index.
            let value = unsafe { AtomicU16::from_ptr(word.cast()) }.load(Ordering::Acquire);
            return Ok(u16::from_le(value));
        }
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes)?;
        fence(Ordering::Acquire);
        Ok(u16::from_le_bytes(bytes))
    }

    /// Stores a 16-bit ring index or flag after everything written before it.
    pub fn store_u16(&self, offset: usize, value: u16) -> Result<()> {
        if self.sealed && offset.is_multiple_of(2) {
            let word = self.at(offset, 2)?;
            // SAFETY: as in `load_u16`; release pairs with the peer's acquire load.
            unsafe { AtomicU16::from_ptr(word.cast()) }.store(value.to_le(), Ordering::Release);
            return Ok(());
        }
        fence(Ordering::Release);
        self.write(offset, &value.to_le_bytes())
    }

    fn at(&self, offset: usize, len: usize) -> Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(Error::DmaFault {
                iova: offset as u64,
                len: len as u64,
            });
        }
        Ok(self.mapping.start.as_ptr().wrapping_add(offset))
    }

    fn checked_copy(
        &self,
        shared: *mut u8,
        ours: *mut u8,
        len: usize,
        copy: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> libc::ssize_t,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let local = libc::iovec {
            iov_base: ours.cast(),
            iov_len: len,
        };
        let remote = libc::iovec {
            iov_base: shared.cast(),
            iov_len: len,
        };
        // SAFETY: both vectors describe memory of this process; `ours` is valid for `len` bytes in
        // the direction of `copy`, and the kernel checks `shared` and reports faults.
        let copied = unsafe { copy(std::process::id() as libc::pid_t, &local, 1, &remote, 1, 0) };
        if usize::try_from(copied).is_ok_and(|copied| copied == len) {
            return Ok(());
        }
        let source = match copied {
            -1 => io::Error::last_os_error(),
            _ => io::Error::from_raw_os_error(libc::EFAULT),
        };
        Err(Error::Io {
            what: "Touching memory that its owner has truncated",
            source,
        })
    }
}

/// A 16-bit little-endian word of a mapped BAR: a virtio notify address.
#[derive(Debug)]
pub struct MappedWord {
    mapping: Mapping,
    offset: usize,
}

impl MappedWord {
    /// Maps the page of `fd` that holds the word at file offset `offset`.
    pub fn map(fd: impl AsFd, offset: u64) -> Result<Self> {
        let page = rustix::param::page_size();
        if !offset.is_multiple_of(2) {
            return Err(Error::DmaRange {
                iova: offset,
                size: 2,
            });
        }
        let in_page = (offset % page as u64) as usize;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let mapping = Mapping::new(fd, offset - in_page as u64, page, prot)?;
        Ok(Self {
            mapping,
            offset: in_page,
        })
    }

    /// Where the word is, as long as this lives.
    pub fn as_ptr(&self) -> *mut u16 {
        let start = self.mapping.start.as_ptr();
        start.wrapping_add(self.offset).cast()
    }

    /// Stores the value with one 16-bit access.
    #[inline]
    pub fn store(&self, value: u16) {
        let word = self.as_ptr();
        // The guest made its ring updates visible before it notified; x86 keeps stores in order
        // (TSO), and the release fence keeps the compiler from moving ours up.
        fence(Ordering::Release);
        // SAFETY: `map` checked the alignment, an aligned word does not leave its page, and
        // `self.mapping` keeps it mapped.
        unsafe { word.write_volatile(value.to_le()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_come_back() {
        let memory = SharedMemory::anonymous(8192).unwrap();
        memory.write(4094, &[1, 2, 3, 4]).unwrap();
        let mut out = [0; 4];
        memory.read(4094, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        memory.store_u16(10, 0xabcd).unwrap();
        assert_eq!(memory.load_u16(10).unwrap(), 0xabcd);
        assert!(memory.read(8191, &mut out).is_err());
        assert!(memory.load_u16(usize::MAX).is_err());
    }

    #[test]
    fn memory_that_its_owner_truncates_is_an_error_and_not_a_signal() {
        let fd = rustix::fs::memfd_create(c"peer", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        let memory = SharedMemory::from_fd(fd.try_clone().unwrap(), 0, 8192, true).unwrap();
        memory.write(4096, b"here").unwrap();
        rustix::fs::ftruncate(&fd, 0).unwrap();
        let mut out = [0; 4];
        assert!(memory.read(4096, &mut out).is_err());
        assert!(memory.write(4096, &out).is_err());
        assert!(memory.load_u16(0).is_err());
        assert!(memory.store_u16(0, 1).is_err());
    }

    #[test]
    fn a_range_behind_the_end_of_the_file_is_refused() {
        let fd = rustix::fs::memfd_create(c"peer", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(SharedMemory::from_fd(fd, 0, 8192, true).is_err());
    }

    #[test]
    fn a_mapped_word_is_stored_where_the_file_has_it() {
        let memory = SharedMemory::anonymous(8192).unwrap();
        let word = MappedWord::map(memory.fd(), 4096 + 6).unwrap();
        word.store(0x1234);
        assert_eq!(memory.load_u16(4096 + 6).unwrap(), 0x1234);
        assert!(MappedWord::map(memory.fd(), 3).is_err());
    }
}
