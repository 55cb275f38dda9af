//! Files in memory: input for programs, and output of theirs that is read once they have ended.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Result;

/// An empty file. `name` shows up in `/proc/<pid>/fd` and nowhere else.
///
/// # Errors
/// Where the kernel has no memory or no descriptor for it.
pub fn empty(name: &CStr) -> Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// A file that holds `bytes`, to be read from its start.
///
/// # Errors
/// As [`empty`].
pub fn holding(name: &CStr, bytes: &[u8]) -> Result<File> {
    let mut file = empty(name)?;
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Everything that was written to `file`.
///
/// # Errors
/// Those of reading.
pub fn read_all(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
