//! Bind mounts as detached trees: cloned, given their attributes, and only then put where anybody can see them.
//!
//! So a read-only bind is never writable for an instant, and nothing is found by path a second time.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rung_sys::mount::{self, Change, Propagation, attribute};
use rung_sys::mount_options::MountOptions;

use crate::error::{Doing as _, Error, Result};
use crate::plan::mounts::MountPlan;

/// Clones the source of a bind mount and gives it its attributes.
pub fn open_source(plan: &MountPlan, source: &Path, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let mut flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_NOFOLLOW, plan.options.source_nofollow);
    let place = open(source, flags, Mode::empty()).doing(|| format!("open bind source {}", source.display()))?;
    if plan.destination == Path::new("/proc") {
        let found = fstatfs(&place).doing(|| format!("look at {}", source.display()))?;
        if found.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Error::invalid(format!(
                "{} is no proc file system and cannot be mounted on /proc",
                source.display()
            )));
        }
    }
    let tree = mount::open_tree(place.as_fd(), Path::new(""), plan.options.recursive_bind)
        .doing(|| format!("clone bind source {}", source.display()))?;
    if let Some(user_namespace) = user_namespace {
        let recursive = plan.options.idmap == Some(true);
        let change = Change { set: attribute::IDMAP, user_namespace: Some(user_namespace), ..Change::default() };
        mount::set_attributes(tree.as_fd(), recursive, &change)
            .doing(|| format!("map the ids of {}", source.display()))?;
    }
    set_attributes(tree.as_fd(), &plan.options).doing(|| format!("bind {}", source.display()))?;
    Ok(tree)
}

/// Gives a mount what the option words ask for.
pub fn set_attributes(tree: BorrowedFd<'_>, options: &MountOptions) -> Result<()> {
    if options.changes_attributes() {
        let change = Change { set: options.set, clear: options.clear, ..Change::default() };
        mount::set_attributes(tree, false, &change)?;
    }
    if options.changes_recursively() {
        let change = Change { set: options.set_recursive, clear: options.clear_recursive, ..Change::default() };
        mount::set_attributes(tree, true, &change)?;
    }
    set_propagation(tree, &options.propagation)
}

/// Applies propagation words in their order.
pub fn set_propagation(tree: BorrowedFd<'_>, list: &[(Propagation, bool)]) -> Result<()> {
    for (kind, recursive) in list {
        let change = Change { propagation: Some(*kind), ..Change::default() };
        mount::set_attributes(tree, *recursive, &change)?;
    }
    Ok(())
}

/// The current root directory as a place.
pub fn current_root() -> Result<OwnedFd> {
    open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).doing(|| "open /")
}
