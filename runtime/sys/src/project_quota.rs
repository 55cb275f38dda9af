//! Project quotas: a limit on everything in a directory, kept by the file system.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Error, Result, check, describe_fd};

/// Gives the directory, and whatever will be made in it, to the project `id`.
///
/// # Errors
/// What the kernel says: `ENOTTY` or `EOPNOTSUPP` where the file system has no projects.
pub fn assign(directory: BorrowedFd<'_>, id: u32) -> Result<()> {
    let mut attributes = FsXattr::default();
    // SAFETY: the kernel fills the struct, which lives through the call and has the size the request's number says.
    let returned = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    check(returned, "ioctl", || format!("{}, FS_IOC_FSGETXATTR", describe_fd(directory)))?;
    attributes.project = id;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the kernel reads the struct, which lives through the call.
    let returned = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    check(returned, "ioctl", || format!("{}, FS_IOC_FSSETXATTR, project {id}", describe_fd(directory))).map(drop)
}

/// Limits the project `id`, on the file system that `directory` is on, to `bytes`; 0 takes the limit away.
///
/// # Errors
/// What the kernel says: `ESRCH` where project quotas are not switched on.
pub fn limit(directory: BorrowedFd<'_>, id: u32, bytes: u64) -> Result<()> {
    let mut quota = Quota { hard_blocks: bytes.div_ceil(BLOCK), valid: QIF_BLIMITS, ..Quota::default() };
    quotactl(directory, Q_SETQUOTA, id, &mut quota)
}

/// The limit of the project `id` in bytes, and how many it takes.
///
/// # Errors
/// As [`limit`].
pub fn usage(directory: BorrowedFd<'_>, id: u32) -> Result<(u64, u64)> {
    let mut quota = Quota::default();
    quotactl(directory, Q_GETQUOTA, id, &mut quota)?;
    Ok((quota.hard_blocks.saturating_mul(BLOCK), quota.space))
}

fn quotactl(directory: BorrowedFd<'_>, command: u32, id: u32, quota: &mut Quota) -> Result<()> {
    let what = || format!("{}, {command:#x}, project {id}", describe_fd(directory));
    let operation = (command << 8) | PRJQUOTA;
    // SAFETY: the struct lives through the call and has the layout of the kernel's `if_dqblk`.
    let returned =
        unsafe { libc::syscall(SYS_QUOTACTL_FD, directory.as_raw_fd(), operation, id, std::ptr::from_mut(quota)) };
    match check(returned, "quotactl_fd", what) {
        Err(error) if error.is(&[libc::ENOSYS]) => Err(Error::new("quotactl_fd", "needs Linux 5.14", libc::ENOSYS)),
        other => other.map(drop),
    }
}

/// The same number on every architecture.
const SYS_QUOTACTL_FD: libc::c_long = 443;
const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const QIF_BLIMITS: u32 = 1;
/// The unit of limits.
const BLOCK: u64 = 1024;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!((size_of::<FsXattr>(), size_of::<Quota>()), (28, 72));
    }
}
