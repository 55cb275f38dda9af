//! User ids, group ids and supplementary groups of this thread, which is all there is of a process that sets them.
//!
//! By the bare system calls: those of a C library look for other threads first.

use crate::error::{Result, check};

/// Replaces the supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the numbers are live for the call, and how many there are is given.
    let returned = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(returned, "setgroups", || format!("{groups:?}")).map(drop)
}

/// Sets real, effective and saved group id.
pub fn set_gid(gid: u32) -> Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }, "setresgid", || gid.to_string()).map(drop)
}

/// Sets real, effective and saved user id.
pub fn set_uid(uid: u32) -> Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, "setresuid", || uid.to_string()).map(drop)
}
