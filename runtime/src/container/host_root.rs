//! The root of a container without a mount namespace: its mounts are made where the runtime is, and go with it.

use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use rung_sys::mount;

use crate::error::{Doing as _, Result};

/// The number of the mount that a directory is on, which is another one once a root is mounted on it.
pub(super) fn mount_id(path: &Path) -> Result<u64> {
    find(path).doing(|| format!("look at {}", path.display()))
}

fn find(path: &Path) -> Result<u64> {
    let place = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(mount::number_of(place.as_fd())?)
}

/// Detaches the root and everything that is mounted below it. `before` is the mount that the root was mounted on; where
/// nothing is mounted on it, nothing is done.
pub(super) fn release(path: &Path, before: u64) -> Result<()> {
    let place = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    if place.is_err_and(|errno| errno == Errno::ENOENT) || mount_id(path)? == before {
        return Ok(());
    }
    mount::detach(path).doing(|| format!("detach {}", path.display()))
}
