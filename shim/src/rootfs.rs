//! The container's root: the request's mounts on the bundle's `rootfs`, and away again.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path};

use gantry_proto::containerd::types::Mount;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use rung_sys::beneath::Root;
use rung_sys::mount::{self, Change};
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;

use crate::{Doing, Error, Result};

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

/// Takes everything off `rootfs`. If that was an overlay, the answer is a descriptor that still holds it: when the last
/// holder lets go, the kernel syncs the whole file system below the overlay, and the caller decides when to wait for
/// that. Any other root is let go of at once, because it may be on a device that is removed next.
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
    let tree = mount_words::make(&one.r#type, &one.source, &options)?;
    mount::attach(tree.as_fd(), target.as_fd())?;
    for (propagation, recursive) in &options.propagation {
        let change = Change { propagation: Some(*propagation), ..Change::default() };
        mount::set_attributes(tree.as_fd(), *recursive, &change)?;
    }
    Ok(())
}

/// The directory to mount on, opened once. A mount may name a directory below the root, which must exist; links on the
/// way, which an earlier mount may have brought, do not lead out of the root.
fn target(one: &Mount, rootfs: &Path) -> Result<OwnedFd> {
    let below = Path::new(&one.target);
    if below.components().any(|part| part == Component::ParentDir) {
        return Err(Error::invalid(format!("mount target {:?} leaves the root", one.target)));
    }
    let opened = Root::open(rootfs).and_then(|root| root.resolve(below, OFlag::O_PATH | OFlag::O_DIRECTORY));
    opened.doing(|| format!("open {} in {}", below.display(), rootfs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_inside_whatever_links_there_are() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let dir = tempfile::tempdir().expect("temporary directory");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for made in [root.join("in/b"), outside.join("b")] {
            std::fs::create_dir_all(made).expect("directories");
        }
        symlink(&outside, root.join("a")).expect("link");
        symlink("/in", root.join("c")).expect("link");
        let find = |target: &str| target_of(target, &root);
        let target_inode =
            |target: &str| nix::sys::stat::fstat(find(target).expect(target)).map(|found| found.st_ino).expect("stat");
        assert!(find("a/b").is_err());
        assert!(find("../outside").is_err());
        let inode = |path: &Path| std::fs::metadata(path).expect("metadata").ino();
        assert_eq!(target_inode("/c/b"), inode(&root.join("in/b")));
        assert_eq!(target_inode(""), inode(&root));
    }

    fn target_of(target: &str, root: &Path) -> Result<OwnedFd> {
        super::target(&Mount { target: target.to_owned(), ..Mount::default() }, root)
    }
}
