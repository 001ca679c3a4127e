use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use retrovf_pci::{DmaAccess, DmaBacking, Error, Result, SharedMemory};
use rustix::fs::{fstat, FileType};

/// Files that a client may have mapped at a time. A virtual machine has one for each block of memory.
const MAX_FILES: usize = 512;

/// The files behind a client's DMA maps, each mapped once: a client with a vIOMMU maps thousands of
/// pages of one file and passes its descriptor with each. A file is let go with its last map.
#[derive(Debug, Default)]
pub(crate) struct MemoryFiles {
    files: HashMap<FileId, Weak<SharedMemory>>,
    /// Ranges of what is no regular file, where one descriptor need not be the same as the next.
    ranges: Vec<Weak<SharedMemory>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    writable: bool,
}

impl MemoryFiles {
    /// The memory of `size` bytes at `offset` of the file.
    pub(crate) fn backing(
        &mut self,
        fd: OwnedFd,
        offset: u64,
        size: u64,
        access: DmaAccess,
    ) -> Result<DmaBacking> {
        let stat = fstat(&fd).map_err(Error::io("Looking at a client's memory file"))?;
        let end = offset.checked_add(size).filter(|_| size > 0);
        let end = end.ok_or(Error::DmaRange { iova: offset, size })?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return self.range(fd, offset, size, access);
        }
        let id = FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
            writable: access.write,
        };
        let known = [true, access.write].into_iter().find_map(|writable| {
            let memory = self.files.get(&FileId { writable, ..id })?.upgrade()?;
            // It may have grown since.
            (end <= memory.len() as u64).then_some(memory)
        });
        if let Some(memory) = known {
            return Ok(DmaBacking::Shared { memory, offset });
        }
        self.admit()?;
        let whole = u64::try_from(stat.st_size).unwrap_or(0);
        if end > whole {
            return Err(Error::DmaRange { iova: offset, size });
        }
        let Ok(duplicate) = fd.try_clone() else {
            return self.range(fd, offset, size, access);
        };
        match SharedMemory::from_fd(duplicate, 0, whole, access.write) {
            Ok(memory) => {
                let memory = Arc::new(memory);
                self.files.insert(id, Arc::downgrade(&memory));
                Ok(DmaBacking::Shared { memory, offset })
            }
            // A sparse file may be larger than the address space has room for.
            Err(_) => self.range(fd, offset, size, access),
        }
    }

    fn range(
        &mut self,
        fd: OwnedFd,
        offset: u64,
        size: u64,
        access: DmaAccess,
    ) -> Result<DmaBacking> {
        self.admit()?;
        let memory = Arc::new(SharedMemory::from_fd(fd, offset, size, access.write)?);
        self.ranges.push(Arc::downgrade(&memory));
        Ok(DmaBacking::Shared { memory, offset: 0 })
    }

    /// Each entry holds a descriptor of ours, which other devices of the process need too.
    fn admit(&mut self) -> Result<()> {
        if self.files.len() + self.ranges.len() >= MAX_FILES {
            self.files.retain(|_, memory| memory.strong_count() > 0);
            self.ranges.retain(|memory| memory.strong_count() > 0);
        }
        if self.files.len() + self.ranges.len() >= MAX_FILES {
            return Err(Error::DmaLimit { limit: MAX_FILES });
        }
        Ok(())
    }
}
