//! Read-only and hidden paths.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use rung_sys::mount::{self, Change, FileSystem, attribute};

use super::{binds, devices, target};
use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// Locks what the plan names. What does not exist needs no lock; any other failure is an error.
pub(super) fn apply(plan: &InitPlan, read_only_later: &[OwnedFd]) -> Result<()> {
    for mounted in read_only_later {
        let change = Change { set: attribute::RDONLY, ..Change::default() };
        mount::set_attributes(mounted.as_fd(), false, &change).doing(|| "make a tmpfs read-only")?;
    }
    if plan.read_only.is_empty() && plan.masked.is_empty() {
        return Ok(());
    }
    let root = binds::current_root()?;
    for path in &plan.read_only {
        make_read_only(&root, path).doing(|| format!("make {} read-only", path.display()))?;
    }
    let mut masks = Masks::default();
    for path in &plan.masked {
        masks.hide(&root, path).doing(|| format!("mask {}", path.display()))?;
    }
    Ok(())
}

fn make_read_only(root: &OwnedFd, path: &Path) -> Result<()> {
    let place = match target::find(root.as_fd(), path, true) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other?,
    };
    let tree = mount::open_tree(place.as_fd(), Path::new(""), true)?;
    let change = Change { set: attribute::RDONLY, ..Change::default() };
    // What is mounted below it is as writable as its own options say.
    mount::set_attributes(tree.as_fd(), false, &change)?;
    Ok(mount::attach(tree.as_fd(), place.as_fd())?)
}

/// What hidden paths are covered with: made once, cloned for each.
#[derive(Default)]
struct Masks {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Masks {
    fn hide(&mut self, root: &OwnedFd, path: &Path) -> Result<()> {
        let place = match target::find(root.as_fd(), path, true) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            other => other?,
        };
        let cover = if target::is_directory(place.as_fd())? {
            match &self.empty {
                Some(empty) => mount::open_tree(empty.as_fd(), Path::new(""), false)?,
                None => {
                    let made = empty_directory()?;
                    mount::attach(made.as_fd(), place.as_fd())?;
                    self.empty = Some(made);
                    return Ok(());
                }
            }
        } else {
            let null = match &self.null {
                Some(null) => null,
                None => self.null.insert(devices::open_null()?),
            };
            mount::open_tree(null.as_fd(), Path::new(""), false)?
        };
        Ok(mount::attach(cover.as_fd(), place.as_fd())?)
    }
}

fn empty_directory() -> Result<OwnedFd> {
    let tmpfs = FileSystem::open("tmpfs")?;
    // One inode for the root itself, and no room for content even if it were writable.
    tmpfs.set("nr_inodes", "1")?;
    tmpfs.set("nr_blocks", "1")?;
    tmpfs.set("source", "tmpfs")?;
    Ok(tmpfs.mount(attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC)?)
}
