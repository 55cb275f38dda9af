//! The runtime's own executable, kept out of the reach of containers (CVE-2019-5736).
//!
//! A process that can see ours through /proc can open `/proc/<pid>/exe`, wait until nobody executes the file any more,
//! and write to it. Two rules close that, and `docs/decisions` has what each costs:
//!
//! - Where processes of a container are about to see ours (`exec`, and containers that share process numbers), we run
//!   from a detached read-only mount of the executable: what is opened through /proc can then never be written.
//! - Elsewhere nobody is there to look: the first process of a new process number namespace is ours until it executes
//!   the program. A program that is `/proc/self/exe` would be this one again; it refuses to run.

use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rung_sys::file;
use rung_sys::mount::{self, Change, attribute};
use rung_sys::process::{CStringArray, exec_fd};

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;

const SELF: &str = "/proc/self/exe";

/// Goes on from a read-only mount of the executable, unless that is where it comes from.
pub fn protect() -> Result<()> {
    let own = file::open(Path::new(SELF), OFlag::O_PATH).doing(|| format!("open {SELF}"))?;
    if fstatvfs(&own).doing(|| format!("look at {SELF}"))?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let tree = match mount::open_tree(own.as_fd(), Path::new(""), false) {
        // Without the right to mount this is no runtime of root, and a container of it cannot write what root owns.
        Err(error) if error.is(&[libc::EPERM]) => {
            log::debug(|| format!("the executable stays where it is: {error}"));
            return Ok(());
        }
        other => other.doing(|| "protect the executable")?,
    };
    let change = Change { set: attribute::RDONLY, ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change).doing(|| "protect the executable")?;
    let argv = CStringArray::new(std::env::args_os().map(|text| text.as_bytes().to_vec()))?;
    let env =
        CStringArray::new(std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()))?;
    Err(exec_fd(tree.as_fd(), &argv, &env)).doing(|| "go on from the protected executable")
}

/// Whether the executable is not this user's to change. Then an ordinary user's process that waits for `start` need not be
/// hidden from what is executed in its container meanwhile, as it has to be joined by: neither could write the file.
pub fn is_of_another_user() -> bool {
    let user = nix::unistd::geteuid();
    let owner = std::fs::metadata(SELF).map(|found| found.uid());
    !user.is_root()
        && owner.is_ok_and(|owner| owner != user.as_raw())
        && nix::unistd::access(SELF, nix::unistd::AccessFlags::W_OK) == Err(nix::errno::Errno::EACCES)
}

/// As [`protect`], before the command line is read, which is done twice otherwise. Whether it is needed is found out
/// again later, and so is why it failed.
pub fn protect_early() {
    if refuse_inside_containers().is_ok() {
        drop(protect());
    }
}

/// Refuses to run where the executable cannot be found at its own path: that is how a container sees the runtime's.
pub fn refuse_inside_containers() -> Result<()> {
    let Ok(path) = std::fs::read_link(SELF) else { return Ok(()) };
    let Ok(own) = std::fs::metadata(SELF) else { return Ok(()) };
    // Replaced by an upgrade, or run from memory: there is no file left to protect.
    if own.nlink() == 0 {
        return Ok(());
    }
    if std::fs::metadata(&path).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())) {
        return Ok(());
    }
    // Where `protect` goes on from: a mount of the file alone, whose path is that of its own root. A read-only disk is
    // no such place.
    let read_only = || {
        file::open(Path::new(SELF), OFlag::O_PATH)
            .and_then(fstatvfs)
            .is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
    };
    if path == Path::new("/") && read_only() {
        return Ok(());
    }
    Err(Error::new(Kind::Permission, "refused: this executable is outside of the root it was started in"))
}
