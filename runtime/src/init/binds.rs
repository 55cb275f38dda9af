//! Bind mounts as detached trees: cloned, given their attributes, and only then put where anybody can see them.
//!
//! So a read-only bind is never writable for an instant, and nothing is found by path a second time.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rung_sys::file;
use rung_sys::mount::{self, Change, Propagation, attribute};
use rung_sys::mount_options::MountOptions;

use crate::error::{Doing as _, Error, Kind, Result};
use crate::plan::mounts::MountPlan;

/// On whose behalf the source of a bind mount is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behalf {
    /// This process's own: the kernel knows what it may change.
    Own,
    /// A container with a user namespace, whose root has fewer rights than this process.
    UserNamespace,
}

/// Clones the source of a bind mount and gives it its attributes. A clone of the host's tree is a peer of the host's
/// mount, and what is mounted in it would appear there too, unless it is `cut_off`.
pub fn open_source(
    plan: &MountPlan,
    source: &Path,
    user_namespace: Option<BorrowedFd<'_>>,
    behalf: Behalf,
    cut_off: Option<(Propagation, bool)>,
) -> Result<OwnedFd> {
    let mut flags = OFlag::O_PATH;
    flags.set(OFlag::O_NOFOLLOW, plan.options.source_nofollow);
    let place = file::open(source, flags).doing(|| format!("open bind source {}", source.display()))?;
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
    set_propagation(tree.as_fd(), cut_off.as_slice()).doing(|| format!("cut off {}", source.display()))?;
    if let Some(user_namespace) = user_namespace {
        translate(tree.as_fd(), user_namespace, plan.options.idmap == Some(true))
            .doing(|| format!("map the ids of {}", source.display()))?;
    }
    set_bind_attributes(tree.as_fd(), &plan.options, behalf).doing(|| format!("bind {}", source.display()))?;
    Ok(tree)
}

/// What a bind mount may have beside its access times.
const PLAIN: u64 =
    attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC | attribute::NOSYMFOLLOW;

/// Those of them that a user namespace cannot take off a mount that came from outside.
const LOCKABLE: u64 = PLAIN & !attribute::NOSYMFOLLOW;

/// As runc does, and unlike mount(8): when any attribute is named, those that are not are cleared. Access times alone
/// stay what they were unless a kind of them is asked for.
fn set_bind_attributes(tree: BorrowedFd<'_>, options: &MountOptions, behalf: Behalf) -> Result<()> {
    if options.names_attributes {
        let clear = PLAIN | if options.asks_atime() { attribute::ATIME | attribute::NODIRATIME } else { 0 };
        let change = Change { set: options.set, clear: clear & !options.set | options.clear, ..Change::default() };
        let attempt = match behalf {
            Behalf::Own => mount::set_attributes(tree, false, &change),
            Behalf::UserNamespace => set_where_unlocked(tree, options, change)?,
        };
        match attempt {
            Err(error) if error.errno() == libc::EPERM && behalf == Behalf::Own => {
                set_where_unlocked(tree, options, change)??;
            }
            other => other?,
        }
    }
    set_recursive_attributes(tree, options)?;
    set_propagation(tree, &options.propagation)
}

/// Sets the attributes, but keeps those of the mount that a user namespace may not clear. A configuration that clears
/// one of them by name, or asks for other access times, is refused.
fn set_where_unlocked(
    tree: BorrowedFd<'_>,
    options: &MountOptions,
    mut change: Change<'_>,
) -> Result<rung_sys::Result<()>> {
    let found = mount::attributes(tree)?;
    let times = attribute::ATIME | attribute::NODIRATIME;
    let kept = found & LOCKABLE;
    if kept & options.clear != 0 || (options.asks_atime() && options.set & times != found & times) {
        let cause = "cannot clear locked flags of its source in a user namespace: operation not permitted";
        return Err(Error::new(Kind::Permission, cause));
    }
    change.set |= kept;
    change.clear &= !(kept | times);
    change.set &= !times;
    Ok(mount::set_attributes(tree, false, &change))
}

/// Lets the ids of a detached tree go through the maps of a user namespace. Only who has rights over the file system
/// may do that: root of the host, not root of a container.
pub fn translate(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let change = Change { set: attribute::IDMAP, user_namespace: Some(user_namespace), ..Change::default() };
    Ok(mount::set_attributes(tree, recursive, &change)?)
}

/// Gives a mount what the option words ask for.
pub fn set_attributes(tree: BorrowedFd<'_>, options: &MountOptions) -> Result<()> {
    if options.changes_attributes() {
        let change = Change { set: options.set, clear: options.clear, ..Change::default() };
        mount::set_attributes(tree, false, &change)?;
    }
    set_recursive_attributes(tree, options)?;
    set_propagation(tree, &options.propagation)
}

/// The attributes that option words ask for on everything below, too.
pub fn set_recursive_attributes(tree: BorrowedFd<'_>, options: &MountOptions) -> Result<()> {
    if options.changes_recursively() {
        let change = Change { set: options.set_recursive, clear: options.clear_recursive, ..Change::default() };
        mount::set_attributes(tree, true, &change)?;
    }
    Ok(())
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
    file::open(Path::new("/"), OFlag::O_PATH | OFlag::O_DIRECTORY).doing(|| "open /")
}
