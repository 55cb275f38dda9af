//! Entering namespaces that exist, and the ids of a user namespace.

use std::os::fd::AsFd as _;

use rung_sys::credentials;
use rung_sys::namespace::{self, Namespace};

use super::Inherited;
use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// Joins what the configuration names, and makes the cgroup namespace, now that the process is in its cgroups.
pub(super) fn namespaces(plan: &InitPlan, inherited: &Inherited) -> Result<()> {
    all(inherited)?;
    if plan.namespaces.makes(Namespace::User) {
        become_root()?;
    }
    super::new_cgroup_namespace(plan)
}

/// Joins in the order of the list: the user namespace first, the mount namespace last.
pub(super) fn all(inherited: &Inherited) -> Result<()> {
    for (kind, fd) in &inherited.namespaces {
        // A process number namespace was joined by the parent (it only holds for children), a user namespace perhaps
        // by a process in between (it cannot be joined twice).
        let is_joined = *kind == Namespace::Pid || (*kind == Namespace::User && inherited.in_user_namespace);
        if !is_joined {
            namespace::enter(fd.as_fd(), kind.flag()).doing(|| format!("join the {} namespace", kind.proc_name()))?;
        }
        if *kind == Namespace::User {
            become_root()?;
        }
    }
    Ok(())
}

/// Becomes root of the user namespace. Groups come last and may be forbidden, which is no loss: none are added here.
fn become_root() -> Result<()> {
    credentials::set_gid(0).doing(|| "become root of the user namespace")?;
    credentials::set_uid(0).doing(|| "become root of the user namespace")
}
