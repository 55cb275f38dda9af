//! The change of root.

use std::os::fd::AsFd as _;
use std::path::Path;

use nix::unistd::{chdir, chroot, fchdir};
use rung_sys::mount::{self, Change, Propagation, attribute};
use rung_sys::mountinfo;
use rung_sys::namespace::Namespace;

use super::rootfs::{self, Root};
use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// Makes the container's root the root, and lets go of the host's.
pub(super) fn change_root(plan: &InitPlan, root: &Root) -> Result<()> {
    fchdir(root).doing(|| "change to the root")?;
    if !plan.namespaces.has(Namespace::Mount) {
        chroot(".").doing(|| "chroot to the root")?;
        return chdir("/").doing(|| "change to /");
    }
    if plan.root.no_pivot {
        move_root(plan)?;
    } else {
        let old = super::binds::current_root()?;
        mount::pivot_root_here().doing(|| "pivot to the root")?;
        // The old root is on top of the new one now. It must not take the host's mounts with it when it goes. By its
        // descriptor: `.` is still the new root for all calls but the one that unmounts.
        if rootfs::cut_off(plan).is_none_or(|(_, recursive)| !recursive) {
            let change = Change { propagation: Some(Propagation::Slave), ..Change::default() };
            mount::set_attributes(old.as_fd(), true, &change).doing(|| "cut the old root off from the host's")?;
        }
        drop(old);
        mount::detach(Path::new(".")).doing(|| "detach the old root")?;
    }
    chdir("/").doing(|| "change to /")?;
    if let Some((kind @ (Propagation::Shared | Propagation::Unbindable), recursive)) = plan.root.propagation {
        let change = Change { propagation: Some(kind), ..Change::default() };
        mount::set_attributes(super::binds::current_root()?.as_fd(), recursive, &change)
            .doing(|| "set the root's propagation")?;
    }
    if plan.root.read_only {
        let change = Change { set: attribute::RDONLY, ..Change::default() };
        mount::set_attributes(super::binds::current_root()?.as_fd(), false, &change)
            .doing(|| "make the root read-only")?;
    }
    Ok(())
}

/// For a root in an initial ramdisk, which cannot be pivoted away from: the mount is moved over `/`. The host's proc and
/// sysfs would stay reachable below it through a second chroot, so they are unmounted or covered first.
fn move_root(plan: &InitPlan) -> Result<()> {
    for mounted in mountinfo::read("self").doing(|| "read /proc/self/mountinfo")? {
        let point = mounted.point.as_path();
        if !matches!(mounted.kind.as_str(), "proc" | "sysfs") || point.starts_with(&plan.root.path) {
            continue;
        }
        mount::mount(None, point, None, libc::MS_SLAVE | libc::MS_REC, None)
            .doing(|| format!("make {} a slave", point.display()))?;
        match mount::detach(point) {
            Err(error) if error.is(&[libc::EINVAL, libc::EPERM]) => {
                mount::mount(Some(Path::new("tmpfs")), point, Some("tmpfs"), 0, None)
                    .doing(|| format!("cover {}", point.display()))?;
            }
            other => other.doing(|| format!("detach {}", point.display()))?,
        }
    }
    mount::mount(Some(Path::new(".")), Path::new("/"), None, libc::MS_MOVE, None).doing(|| "move the root over /")?;
    chroot(".").doing(|| "chroot to the root")
}
