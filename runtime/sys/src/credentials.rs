//! User ids, group ids and supplementary groups of this process.

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::error::{Error, Result};

/// Replaces the supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(|errno| Error::new("setgroups", format!("{groups:?}"), errno as i32))
}

/// Sets real, effective and saved group id.
pub fn set_gid(gid: u32) -> Result<()> {
    let id = Gid::from_raw(gid);
    setresgid(id, id, id).map_err(|errno| Error::new("setresgid", gid.to_string(), errno as i32))
}

/// Sets real, effective and saved user id.
pub fn set_uid(uid: u32) -> Result<()> {
    let id = Uid::from_raw(uid);
    setresuid(id, id, id).map_err(|errno| Error::new("setresuid", uid.to_string(), errno as i32))
}
