//! The terminal of a container.
//!
//! The pair comes from the container's own devpts, its slave is opened through the master, and the two ends are used by
//! descriptor only: no name in `/dev` or `/dev/pts`, which the image may have prepared, is ever followed.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag};
use rung_sys::mount;
use rung_sys::tty::{self, WindowSize};

use super::{binds, target};
use crate::error::{Doing as _, Error, Result};
use crate::launch::sync::ChildEnd;
use crate::plan::process::ProcessPlan;

/// Makes the terminal, hands the master to the parent, and puts the slave at stdin, stdout, stderr and `/dev/console`.
pub(super) fn set_up(process: &ProcessPlan, own_dev: bool, sync: &ChildEnd) -> Result<()> {
    let slave = make(process, sync)?;
    if own_dev {
        bind_console(slave.as_fd()).doing(|| "set /dev/console up")?;
    }
    take(slave.as_fd())
}

/// The same for an `exec`, whose container has its console already.
pub(super) fn set_up_exec(process: &ProcessPlan, sync: &ChildEnd) -> Result<()> {
    let slave = make(process, sync)?;
    take(slave.as_fd())
}

fn make(process: &ProcessPlan, sync: &ChildEnd) -> Result<std::os::fd::OwnedFd> {
    let root = binds::current_root()?;
    let pts = target::find_without_links(root.as_fd(), Path::new("/dev/pts"))
        .doing(|| "open /dev/pts of the container (a terminal needs a devpts mount there)")?;
    let master = tty::open_master(pts.as_fd(), c"ptmx").doing(|| "open a terminal in the container's /dev/pts")?;
    let slave = tty::open_slave(master.as_fd()).doing(|| "open the terminal")?;
    let given = process.spec.console_size().map(|size| {
        let part = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        WindowSize { rows: part(size.height()), columns: part(size.width()) }
    });
    // In the foreground the caller's terminal is what the program writes to, and it may ask for the size at once.
    if let Some(size) = given.or_else(|| tty::window_size(std::io::stdin().as_fd()).ok()) {
        tty::set_window_size(master.as_fd(), size).doing(|| "set the terminal's size")?;
    }
    let (uid, gid) = (process.spec.user().uid(), nix::sys::stat::fstat(&slave)?.st_gid);
    if uid != 0 {
        let ids = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
        nix::unistd::fchown(&slave, Some(ids.0), Some(ids.1)).doing(|| "give the terminal to the user")?;
    }
    sync.console(master.as_fd()).doing(|| "hand the terminal over")?;
    Ok(slave)
}

fn bind_console(slave: BorrowedFd<'_>) -> Result<()> {
    let root = binds::current_root()?;
    let dev = target::find_without_links(root.as_fd(), Path::new("/dev"))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    match openat(&dev, "console", flags, Mode::from_bits_truncate(0o600)) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let place = openat(&dev, "console", OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if target::kind_of(place.as_fd())? == SFlag::S_IFLNK {
        return Err(Error::invalid("/dev/console of the root is a link, which is refused"));
    }
    let tree = mount::open_tree(slave, Path::new(""), false)?;
    Ok(mount::attach(tree.as_fd(), place.as_fd())?)
}

fn take(slave: BorrowedFd<'_>) -> Result<()> {
    tty::set_controlling(slave).doing(|| "take the terminal")?;
    for number in 0..3 {
        rung_sys::process::replace_descriptor(slave, number)
            .doing(|| format!("put the terminal ({}) in place", slave.as_raw_fd()))?;
    }
    Ok(())
}
