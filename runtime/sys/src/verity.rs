//! Files that the kernel checks whenever it reads them, and that nobody can change any more.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Result, check, describe_fd};

/// The argument of `FS_IOC_ENABLE_VERITY`.
#[repr(C)]
struct Enable {
    version: u32,
    hash: u32,
    block: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more: [u64; 11],
}

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const FS_IOC_ENABLE_VERITY: libc::Ioctl = 0x4080_6685;
const SHA256: u32 = 1;

/// Makes a file, which nobody has open for writing, one of these.
///
/// # Errors
/// What the kernel says: `ENOTTY` or `EOPNOTSUPP` where the file system or the kernel has none, `ETXTBSY` while it is
/// written.
pub fn enable(file: BorrowedFd<'_>) -> Result<()> {
    let (version, hash, block) = (1, SHA256, 4096);
    let (salt_size, salt, signature_size, reserved, signature) = (0, 0, 0, 0, 0);
    let wanted = Enable { version, hash, block, salt_size, salt, signature_size, reserved, signature, more: [0; 11] };
    // SAFETY: the kernel reads the struct, which lives through the call and has the size the request's number says.
    let returned = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const wanted) };
    check(returned, "ioctl", || format!("{}, FS_IOC_ENABLE_VERITY", describe_fd(file))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_in_its_own_layout() {
        assert_eq!(size_of::<Enable>(), 128);
    }
}
