//! Starting to write to disk early what a later flush would have to wait for.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to begin writing out the pages of a range that are dirty, and waits for nothing. `length` 0 is up to
/// the end. A file system that cannot is left to do it in its own time: this is about speed alone.
pub fn start(file: BorrowedFd<'_>, offset: u64, length: u64) {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // SAFETY: the call takes numbers only, and changes nothing but when pages are written.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), number(offset), number(length), libc::SYNC_FILE_RANGE_WRITE);
    }
}
