//! The runtime's own executable, kept out of the reach of containers (CVE-2019-5736).
//!
//! A process that can see ours through /proc can open `/proc/<pid>/exe`, wait until nobody executes the file any more,
//! and write to it. Two rules close that, and `docs/decisions` has what each costs:
//!
//! - Where processes of a container are about to see ours (`exec`, and containers that share process numbers), we run
//!   from a sealed view of the executable, a detached read-only mount. What is opened through /proc can then never be
//!   written. With `--debug` it is runc's overlay without a layer that could be written, and the log says so.
//! - Elsewhere nobody is there to look: the first process of a new process number namespace is ours until it executes
//!   the program. A program that is `/proc/self/exe` would be this one again; it refuses to run.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rung_sys::file;
use rung_sys::mount::{self, Change, FileSystem, attribute};
use rung_sys::process::{CStringArray, exec_fd};

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;

const SELF: &str = "/proc/self/exe";

/// The second layer of the overlay, because the kernel makes a read-only one of two layers or more. This directory
/// exists everywhere and holds no executable.
const SECOND_LAYER: &str = "/dev";

/// Executes this program again from a sealed view of its file, unless it runs from one already.
pub fn protect() -> Result<()> {
    let own = file::open(Path::new(SELF), OFlag::O_PATH).doing(|| format!("open {SELF}"))?;
    if is_read_only(&own) {
        // These are runc's words: its test suite looks for them.
        if is_of_overlay(&own) {
            log::debug(|| format!("runc exeseal: using overlayfs for sealed {SELF}"));
        }
        log::debug(|| format!("runc exeseal: using {SELF} clone"));
        return Ok(());
    }
    let tell = |reason: &Error| log::debug(|| format!("no overlay for the executable: {reason}"));
    let made = if log::is_debug() { overlay().inspect_err(tell).ok() } else { None };
    let view = match made {
        Some(view) => view,
        None => match read_only_mount(&own)? {
            Some(view) => view,
            None => return Ok(()),
        },
    };
    let argv = CStringArray::new(std::env::args_os().map(|text| text.as_bytes().to_vec()))?;
    let env =
        CStringArray::new(std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()))?;
    Err(exec_fd(view.as_fd(), &argv, &env)).doing(|| "go on from the protected executable")
}

/// The executable through an overlay of its directory, which takes three times as long to make as a mount.
fn overlay() -> Result<OwnedFd> {
    let path = std::fs::read_link(SELF).doing(|| format!("read {SELF}"))?;
    if !is_at(&path) {
        return Err(Error::invalid(format!("{} is another file by now", path.display())));
    }
    let (Some(directory), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
        return Err(Error::invalid(format!("{} is no place for a layer", path.display())));
    };
    let layer = directory.replace('\\', "\\\\").replace(':', "\\:");
    let system = FileSystem::open("overlay")?;
    system.set("lowerdir", &format!("{layer}:{SECOND_LAYER}"))?;
    // Across file systems the kernel would log that it does without.
    system.set("xino", "off")?;
    let made = system.mount(attribute::RDONLY | attribute::NODEV | attribute::NOSUID)?;
    openat(&made, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| format!("open {} in its overlay", path.display()))
}

/// The executable through a mount of its own. `None` where this process may not mount: then it does not run as root, and
/// its containers cannot write to a file that root owns.
fn read_only_mount(own: &OwnedFd) -> Result<Option<OwnedFd>> {
    let tree = match mount::open_tree(own.as_fd(), Path::new(""), false) {
        Err(error) if error.is(&[libc::EPERM]) => {
            log::debug(|| format!("the executable stays where it is: {error}"));
            return Ok(None);
        }
        other => other.doing(|| "protect the executable")?,
    };
    let change = Change { set: attribute::RDONLY, ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change).doing(|| "protect the executable")?;
    Ok(Some(tree))
}

fn is_read_only(file: &OwnedFd) -> bool {
    fstatvfs(file).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

fn is_of_overlay(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

/// Whether this is the path of the executable.
fn is_at(path: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((place(path), place(Path::new(SELF))), (Ok(found), Ok(own)) if found == own)
}

/// Whether this is an ordinary user who cannot change the executable. Then a process of his that waits for `start` may
/// be visible to processes that join its container: none of them could write to the file either.
pub fn is_of_another_user() -> bool {
    let user = nix::unistd::geteuid();
    let owner = std::fs::metadata(SELF).map(|found| found.uid());
    !user.is_root()
        && owner.is_ok_and(|owner| owner != user.as_raw())
        && nix::unistd::access(SELF, nix::unistd::AccessFlags::W_OK) == Err(nix::errno::Errno::EACCES)
}

/// As [`protect`], but before the command line is parsed, so that it is parsed only once. A failure is ignored here: the
/// command calls [`protect`] again, and reports it.
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
    if is_at(&path) {
        return Ok(());
    }
    // Where `protect` goes on from: a mount of the file alone, whose path is that of its own root, or an overlay with the
    // file at its top. A read-only disk is no such place.
    let sealed = |file: OwnedFd| {
        is_read_only(&file)
            && (path == Path::new("/") || (path.parent() == Some(Path::new("/")) && is_of_overlay(&file)))
    };
    if file::open(Path::new(SELF), OFlag::O_PATH).is_ok_and(sealed) {
        return Ok(());
    }
    Err(Error::new(Kind::Permission, "refused: this executable is outside of the root it was started in"))
}
