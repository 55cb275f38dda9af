//! The root file system before anything is mounted on it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use rung_sys::file;
use rung_sys::mount::{self, Change, Propagation};
use rung_sys::mountinfo;
use rung_sys::namespace::Namespace;

use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// The container's root, by descriptor: every mount below is made relative to it.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Cuts the tree off from the host's and puts a mount of its own under the root, as pivot_root(2) demands.
pub(super) fn prepare(plan: &InitPlan) -> Result<Root> {
    let path = &plan.root.path;
    let open_directory =
        |path: &Path| file::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).doing(|| format!("open {}", path.display()));
    if !plan.namespaces.has(Namespace::Mount) {
        return mount_on_itself(path, open_directory(path)?);
    }
    let host = open_directory(Path::new("/"))?;
    let cut_off = cut_off(plan);
    if let Some((propagation, recursive)) = cut_off {
        let change = Change { propagation: Some(propagation), ..Change::default() };
        mount::set_attributes(host.as_fd(), recursive, &change).doing(|| "cut the mount tree off from the host's")?;
    }
    // Only the root of the tree was, or nothing: the root may be on a mount whose peers are the host's.
    if cut_off.is_none_or(|(_, recursive)| !recursive) {
        part_with_peers(path)?;
    }
    mount_on_itself(path, open_directory(path)?)
}

/// How the host's mounts are cut off from the container's, so that none of ours leave. Not at all where the root is to
/// be shared.
pub fn cut_off(plan: &InitPlan) -> Option<(Propagation, bool)> {
    match plan.root.propagation {
        _ if !plan.namespaces.has(Namespace::Mount) => None,
        Some((Propagation::Shared, _)) => None,
        Some((kind @ (Propagation::Private | Propagation::Slave), recursive)) => Some((kind, recursive)),
        Some((_, recursive)) => Some((Propagation::Slave, recursive)),
        // Slave: mounts of the host still arrive, a volume plugin may be late.
        None => Some((Propagation::Slave, true)),
    }
}

/// Without a mount namespace too: one unmount takes all the container's mounts away then.
fn mount_on_itself(path: &Path, place: OwnedFd) -> Result<Root> {
    let tree = mount::open_tree(place.as_fd(), Path::new(""), true).doing(|| format!("bind {}", path.display()))?;
    mount::attach(tree.as_fd(), place.as_fd()).doing(|| format!("bind {} on itself", path.display()))?;
    Ok(Root(tree))
}

/// Where the tree is not cut off as a whole, at least the mount that holds the root is made private: pivot_root(2)
/// refuses a shared parent, and the container's mounts would be the host's too. The rest has to keep its peers.
fn part_with_peers(path: &Path) -> Result<()> {
    let table = mountinfo::read("self").doing(|| "read /proc/self/mountinfo")?;
    let above = table.iter().map(|mount| mount.point.as_path()).filter(|point| path.starts_with(point));
    let holder = above.max_by_key(|point| point.as_os_str().len()).unwrap_or(Path::new("/"));
    mount::mount(None, holder, None, libc::MS_PRIVATE, None).doing(|| format!("make {} private", holder.display()))
}
