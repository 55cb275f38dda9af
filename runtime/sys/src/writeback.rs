//! Getting to the disk what is written: begun early, so that a flush has little to wait for, and with every failure told.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// File systems that are written to. The kernel tells each descriptor once of what it could not write after that was opened:
/// one that is opened only to flush misses what another flush was told of.
#[derive(Debug)]
pub struct FileSystems(Vec<(u64, File)>);

impl FileSystems {
    /// Those that the directories are on, each once. From now on nothing that cannot be written is missed.
    ///
    /// # Errors
    /// When a directory cannot be opened.
    pub fn of<'a>(directories: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let mut all: Vec<(u64, File)> = Vec::new();
        for directory in directories {
            let directory = File::open(directory)?;
            let device = directory.metadata()?.dev();
            if !all.iter().any(|(known, _)| *known == device) {
                all.push((device, directory));
            }
        }
        Ok(Self(all))
    }

    /// Waits until everything that was written is on the disk.
    ///
    /// # Errors
    /// When something since [`FileSystems::of`], or since the last flush, could not be written.
    pub fn flush(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|(_, directory)| Ok(nix::unistd::syncfs(directory)?))
    }
}

/// Writes out what is dirty of a file and forgets its pages: what is read next is what the disk has, not what it should have.
/// The kernel keeps pages that it could not write, as if it had.
///
/// # Errors
/// When something cannot be written.
pub fn read_back(file: &File) -> io::Result<()> {
    file.sync_data()?;
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

/// Asks the kernel to begin writing out the pages of a range that are dirty, and waits for nothing. `length` 0 is up to
/// the end. A file system that cannot is left to do it in its own time: this is about speed alone.
pub fn start(file: BorrowedFd<'_>, offset: u64, length: u64) {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // SAFETY: the call takes numbers only, and changes nothing but when pages are written.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), number(offset), number(length), libc::SYNC_FILE_RANGE_WRITE);
    }
}
