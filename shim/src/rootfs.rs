//! The container's root: the request's mounts on the bundle's `rootfs`, and away again.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gantry_proto::containerd::types::Mount;
use nix::libc;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use rung_sys::mount::{self, Change};
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;

use crate::{Doing, Error, Result};

/// mount(2) takes one page of options, less one byte.
const MAX_DATA: usize = 4095;
/// Unmounting gives up after this many layers; nobody mounts more on one directory.
const MAX_STACK: usize = 64;

/// Mounts `mounts` in order; what was mounted is undone where one fails.
///
/// # Errors
/// Names the mount that failed.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o711).create(rootfs) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).doing(|| format!("create {}", rootfs.display()));
        }
        _ => {}
    }
    for one in mounts {
        let mounted = mount_one(one, rootfs).doing(|| format!("mount {} of type {:?} as root", one.source, one.r#type));
        if let Err(error) = mounted {
            unmount(rootfs);
            return Err(error);
        }
    }
    Ok(())
}

/// Takes everything off `rootfs`. Mounts that are busy are detached, so that this does not fail.
pub fn unmount(rootfs: &Path) {
    for _ in 0..MAX_STACK {
        match mount::detach(rootfs) {
            Ok(()) => {}
            // EINVAL: not a mount point (any more); ENOENT: not even a directory.
            Err(error) if error.is(&[libc::EINVAL, libc::ENOENT]) => return,
            Err(error) => {
                tracing::warn!(%error, "unmount the container's root");
                return;
            }
        }
    }
}

/// Takes everything off `rootfs`, and leaves what it takes long to be done with to whoever drops the answer: the kernel
/// flushes all of the disk below an overlay when the last that holds it goes. Where it is no overlay nobody holds it any
/// more, because there may be a device below that is to be removed next.
pub fn detach(rootfs: &Path) -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let root = OpenOptions::new().read(true).custom_flags(flags).open(rootfs).ok();
    let root = root.filter(|root| fstatfs(root).is_ok_and(|it| it.filesystem_type() == OVERLAYFS_SUPER_MAGIC));
    unmount(rootfs);
    root.map(OwnedFd::from)
}

fn mount_one(one: &Mount, rootfs: &Path) -> Result<()> {
    let target = target(one, rootfs)?;
    let options = MountOptions::parse(&one.options);
    let tree = match mount_words::make(&one.r#type, &one.source, &options) {
        Ok(tree) => tree,
        // Kernels before 6.5 know no `lowerdir+`; some file systems do not know fsconfig at all.
        Err(error) if error.is(&[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP]) && is_old(one, &options) => {
            return old_mount(one, &options, &target, &error);
        }
        Err(error) => return Err(error.into()),
    };
    mount::attach(tree.as_fd(), target.as_fd())?;
    for (propagation, recursive) in &options.propagation {
        let change = Change { propagation: Some(*propagation), ..Change::default() };
        mount::set_attributes(tree.as_fd(), *recursive, &change)?;
    }
    Ok(())
}

/// The directory to mount on, opened once. A mount may name one below the root; it must already be there.
fn target(one: &Mount, rootfs: &Path) -> Result<OwnedFd> {
    let mut path = PathBuf::from(rootfs);
    for part in Path::new(&one.target).components() {
        match part {
            std::path::Component::Normal(name) => path.push(name),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            _ => return Err(Error::invalid(format!("mount target {:?} leaves the root", one.target))),
        }
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
    Ok(opened.doing(|| format!("open {}", path.display()))?.into())
}

/// Whether mount(2) could do it too: its options fit, and are all the kernel's own.
fn is_old(one: &Mount, options: &MountOptions) -> bool {
    let is_ours = |word: &String| word.starts_with("uidmap=") || word.starts_with("gidmap=");
    !mount_words::is_bind(&one.r#type, options)
        && !options.data.iter().any(is_ours)
        && options.data.iter().map(|word| word.len() + 1).sum::<usize>() <= MAX_DATA
}

/// mount(2) on the opened directory. Where it fails too, the newer call's error is the better one.
fn old_mount(one: &Mount, options: &MountOptions, target: &OwnedFd, newer: &rung_sys::Error) -> Result<()> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
    let flag = |attribute: u64, flag: u64| if options.set & attribute != 0 { flag } else { 0 };
    use mount::attribute as a;
    let flags = flag(a::RDONLY, libc::MS_RDONLY)
        | flag(a::NOSUID, libc::MS_NOSUID)
        | flag(a::NODEV, libc::MS_NODEV)
        | flag(a::NOEXEC, libc::MS_NOEXEC)
        | flag(a::NOATIME, libc::MS_NOATIME);
    let data = options.data.join(",");
    mount::mount(Some(Path::new(&one.source)), &path, Some(&one.r#type), flags, Some(&data)).map_err(|old| {
        tracing::debug!(error = %old, "mount(2) after fsconfig failed");
        newer.clone().into()
    })
}
