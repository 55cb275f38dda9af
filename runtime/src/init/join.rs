//! Entering namespaces that exist, and the ids of a user namespace.

use std::fs::File;
use std::os::fd::AsFd as _;

use rung_sys::credentials;
use rung_sys::namespace::{self, Namespace};

use super::Inherited;
use crate::error::{Doing as _, Result};
use crate::launch::clone;
use crate::plan::InitPlan;

/// Makes the namespaces that were not made with the process, and joins what the configuration names.
pub(super) fn namespaces(plan: &InitPlan, inherited: &Inherited, joined: &[Namespace]) -> Result<()> {
    let own = plan.namespaces.make.iter().filter(|kind| plan.makes_itself(**kind));
    let flags = own.fold(0, |flags, kind| flags | kind.flag());
    let make = || if flags == 0 { Ok(()) } else { namespace::leave(flags).doing(|| "make namespaces") };
    if !plan.namespaces.has(Namespace::User) {
        make()?;
        return all(inherited, joined);
    }
    all(inherited, joined)?;
    if plan.namespaces.makes(Namespace::User) {
        become_root()?;
    }
    make()
}

/// Makes the time namespace of a new user namespace and goes into it, which it can as long as it has one thread.
pub(super) fn time_namespace(plan: &InitPlan) -> Result<()> {
    let offsets = plan.namespaces.time_offsets.as_ref().filter(|_| plan.namespaces.makes(Namespace::User));
    let Some(offsets) = offsets else { return Ok(()) };
    clone::make_time_namespace(offsets)?;
    let path = "/proc/self/ns/time_for_children";
    let made = File::open(path).doing(|| format!("open {path}"))?;
    namespace::enter(made.as_fd(), Namespace::Time.flag()).doing(|| "enter the time namespace")
}

/// Joins what is not `joined` yet, in the order of the list.
pub(super) fn all(inherited: &Inherited, joined: &[Namespace]) -> Result<()> {
    for (kind, fd) in &inherited.namespaces {
        if !joined.contains(kind) {
            namespace::enter(fd.as_fd(), kind.flag()).doing(|| format!("join the {} namespace", kind.proc_name()))?;
        }
        if *kind == Namespace::User {
            become_root()?;
        }
    }
    Ok(())
}

/// Becomes root of the user namespace. Supplementary groups are set later, with the ids of the program's user.
fn become_root() -> Result<()> {
    credentials::set_gid(0).doing(|| "become root of the user namespace")?;
    credentials::set_uid(0).doing(|| "become root of the user namespace")
}
