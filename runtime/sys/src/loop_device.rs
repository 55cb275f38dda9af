//! Loop devices: a file as a block device, for file systems that want one.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, check, describe_fd};

/// A loop device over a file; it goes when nobody has it open or mounted any more.
#[derive(Debug)]
pub struct Loop {
    /// Where it is.
    pub path: PathBuf,
    device: File,
}

impl Loop {
    /// Has the device stay when nobody has it open any more, until [`release`].
    pub fn keep(&self) -> Result<()> {
        set_flags(&self.device, &self.path, |flags| flags & !LO_FLAGS_AUTOCLEAR)
    }
}

/// Lets a device go that was kept, once nobody uses it any more.
pub fn release(path: &Path) -> Result<()> {
    let device = File::open(path).map_err(|error| Error::from_io("open", format!("{path:?}"), &error))?;
    set_flags(&device, path, |flags| flags | LO_FLAGS_AUTOCLEAR)
}

fn set_flags(device: &File, path: &Path, change: impl FnOnce(u32) -> u32) -> Result<()> {
    let mut info = [0_u32; INFO];
    // SAFETY: the kernel writes a `loop_info64` of just this length.
    let returned = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    check(returned, "ioctl", || format!("{path:?}, LOOP_GET_STATUS64"))?;
    info[FLAGS] = change(info[FLAGS]);
    // SAFETY: the kernel reads a `loop_info64` of just this length.
    let returned = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, info.as_ptr()) };
    check(returned, "ioctl", || format!("{path:?}, LOOP_SET_STATUS64")).map(drop)
}

/// Another program may take the free device first.
const TRIES: usize = 16;

/// Makes a loop device over `file`, for reading or also for writing.
pub fn attach(file: BorrowedFd<'_>, writable: bool) -> Result<Loop> {
    let open = |path: &PathBuf, write: bool| {
        let opened = OpenOptions::new().read(true).write(write).open(path);
        opened.map_err(|error| Error::from_io("open", format!("{path:?}"), &error))
    };
    let control = open(&"/dev/loop-control".into(), true)?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = check(number, "ioctl", || "LOOP_CTL_GET_FREE".into())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path, writable)?;
        let mut config = LoopConfig { file: file.as_raw_fd().unsigned_abs(), ..LoopConfig::default() };
        config.info[FLAGS] = LO_FLAGS_AUTOCLEAR | if writable { 0 } else { LO_FLAGS_READ_ONLY };
        // SAFETY: the kernel reads the struct, which lives through the call and has its layout.
        let returned = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match check(returned, "ioctl", || format!("{path:?}, LOOP_CONFIGURE, {}", describe_fd(file))) {
            Err(error) if error.is(&[libc::EBUSY]) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(Loop { path, device }),
        }
    }
    Err(Error::new("ioctl", "LOOP_CONFIGURE: every device was taken by another", libc::EBUSY))
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// The flags' place in `loop_info64`, counted in 32-bit words.
const FLAGS: usize = 13;
/// Words of a `loop_info64`.
const INFO: usize = 58;

/// `struct loop_config`, with its `loop_info64` as words, of which only the flags matter here.
#[repr(C, align(8))]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: [u32; INFO],
    reserved: [u64; 8],
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { file: 0, block_size: 0, info: [0; INFO], reserved: [0; 8] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(size_of::<LoopConfig>(), 8 + 232 + 64);
    }
}
