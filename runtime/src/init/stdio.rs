//! The first three descriptors of the program.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Uid, fchown};
use rung_sys::process::replace_descriptor;

use super::devices;
use crate::error::{Doing as _, Result};
use crate::plan::process::ProcessPlan;

/// Swaps a null device of the host for the container's, and lets a user that is not root open its pipes, and a terminal
/// of its own, again through `/proc/self/fd`. Nothing else ever changes its owner, least of all the caller's terminal.
pub(super) fn prepare(process: &ProcessPlan) -> Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let descriptors: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let uid = process.spec.user().uid();
    let mut null = None;
    for (number, fd) in (0..).zip(descriptors) {
        let Ok(found) = fstat(fd) else { continue };
        let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
        if devices::is_null_device(&found) {
            if null.is_none() {
                // A container without a null device of its own keeps the host's, which gives nothing away.
                let Ok(opened) = devices::reopen_null() else { break };
                null = Some(opened);
            }
            if let Some(null) = &null {
                replace_descriptor(null.as_fd(), number).doing(|| "replace the null device of the host")?;
            }
            continue;
        }
        let console = process.terminal() && kind == SFlag::S_IFCHR && rung_sys::tty::is_terminal(fd);
        let ours = kind == SFlag::S_IFIFO || console;
        if ours && uid != 0 && found.st_uid != uid {
            // Not mapped, read-only, or forbidden: the program can still use what it was given.
            let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
    Ok(())
}
