//! The container's view of its cgroups at `/sys/fs/cgroup`.
//!
//! What a container may see is its own cgroup, as the root of each hierarchy. Binding that directory shows exactly this
//! and costs a fraction of a new cgroup superblock a hierarchy, which is what mounting by type would make.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, mkdirat};
use rung_sys::mount::{self, Change, FileSystem, attribute};
use rung_sys::namespace::Namespace;

use super::rootfs::Root;
use super::target::{self, Make};
use super::{Inherited, binds};
use crate::cgroups::View;
use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;
use crate::plan::mounts::MountPlan;

/// Mounts it.
pub(super) fn mount(step: &MountPlan, inherited: &Inherited, plan: &InitPlan, root: &Root) -> Result<()> {
    let place = target::find_or_make(root.as_fd(), &step.destination, Make::Directory)?;
    match &inherited.views[..] {
        [only] if only.name.is_empty() => {
            let source = if plan.namespaces.has(Namespace::Cgroup) { &only.directory } else { &only.mount };
            let tree = clone(source, step)?;
            Ok(mount::attach(tree.as_fd(), place.as_fd())?)
        }
        [] => {
            let tree = clone(Path::new("/sys/fs/cgroup"), step)?;
            Ok(mount::attach(tree.as_fd(), place.as_fd())?)
        }
        views => mount_v1(step, views, &place, plan.namespaces.has(Namespace::Cgroup)),
    }
}

fn clone(source: &Path, step: &MountPlan) -> Result<std::os::fd::OwnedFd> {
    let tree = mount::open_tree_at_path(source, false).doing(|| format!("bind {}", source.display()))?;
    binds::set_attributes(tree.as_fd(), &step.options)?;
    Ok(tree)
}

/// What file systems of the runtime's own making have, whether or not a configuration says so.
const HARDENED: u64 = attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;

/// A tmpfs with a directory for each hierarchy, and links for the controllers that share one. To a container that has
/// a cgroup namespace the hierarchies are new file systems, and not binds of the host's, as far as it can see.
fn mount_v1(step: &MountPlan, views: &[View], place: &std::os::fd::OwnedFd, new: bool) -> Result<()> {
    let tmpfs = FileSystem::open("tmpfs")?;
    tmpfs.set("mode", "755")?;
    tmpfs.set("source", "tmpfs")?;
    let tmpfs = tmpfs.mount(step.options.set & !attribute::RDONLY | HARDENED)?;
    // Attached before it is filled: a mount can only be put on a mount that is part of the tree.
    mount::attach(tmpfs.as_fd(), place.as_fd())?;
    for view in views {
        let name = PathBuf::from(&view.name);
        mkdirat(&tmpfs, &name, Mode::from_bits_truncate(0o755)).doing(|| format!("make {}", view.name))?;
        let tree = clone(&view.directory, step)?;
        if new {
            mount::set_attributes(tree.as_fd(), false, &Change { set: HARDENED, ..Change::default() })?;
        }
        mount::attach_at(tree.as_fd(), tmpfs.as_fd(), &name).doing(|| format!("bind {}", view.directory.display()))?;
        for controller in view.controllers.iter().filter(|controller| **controller != view.name) {
            let controller = controller.strip_prefix("name=").unwrap_or(controller);
            if controller != view.name {
                nix::unistd::symlinkat(view.name.as_str(), &tmpfs, controller)
                    .doing(|| format!("make link {controller}"))?;
            }
        }
    }
    if step.options.set & attribute::RDONLY != 0 {
        let change = Change { set: attribute::RDONLY, ..Change::default() };
        mount::set_attributes(tmpfs.as_fd(), false, &change)?;
    }
    binds::set_propagation(tmpfs.as_fd(), &step.options.propagation)
}
