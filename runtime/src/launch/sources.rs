//! The sources of bind mounts: which of them the runtime opens, and which are left to the new process.

use std::cell::LazyCell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rung_sys::idmap::Range;
use rung_sys::mount;
use rung_sys::namespace::Namespace;

use crate::error::{Doing as _, Error, Result};
use crate::init::binds::{self, Behalf};
use crate::init::{mounts, rootfs};
use crate::launch::IN_INIT;
use crate::plan::InitPlan;
use crate::plan::mounts::{Idmap, MountKind};

/// Where the source of a mount comes from.
#[derive(Debug)]
pub enum Source {
    /// The process opens it, if it is a bind mount at all.
    Own,
    /// The runtime has opened it, and translated its ids.
    Opened(OwnedFd),
    /// The process opens it, and its ids go through this user namespace.
    Translated(OwnedFd),
}

/// Opens what the container's root could not reach from inside its user namespace, and what has its ids translated.
///
/// What lies in the container's own root is left to the process: an earlier mount of the list may be what is meant, and
/// nobody but the process sees that. An ordinary user leaves all to the process: only in the namespaces that it has made
/// may he mount anything.
pub fn open(plan: &InitPlan, joined: &[(Namespace, OwnedFd)]) -> Result<Vec<Source>> {
    let in_user_namespace = plan.namespaces.has(Namespace::User);
    let may_mount = LazyCell::new(may_mount);
    let mut sources = Vec::new();
    for step in &plan.mounts {
        let MountKind::Bind { source } = &step.kind else {
            sources.push(Source::Own);
            continue;
        };
        let translated = step.idmap.as_ref().map(|idmap| namespace(idmap, plan, joined)).transpose()?;
        let inside = source.starts_with(&plan.root.path);
        sources.push(match translated {
            Some(namespace) if inside => Source::Translated(namespace),
            None if inside || !in_user_namespace || !*may_mount => Source::Own,
            translated => {
                let behalf = if in_user_namespace { Behalf::UserNamespace } else { Behalf::Own };
                let (translated, cut_off) = (translated.as_ref().map(OwnedFd::as_fd), rootfs::cut_off(plan));
                let tree = binds::open_source(step, source, translated, behalf, cut_off);
                // Said as if the process had failed, which opens all others: to callers that makes no difference.
                Source::Opened(tree.doing(|| mounts::describe(step)).doing(|| IN_INIT)?)
            }
        });
    }
    // Missing entries count as `Own`, so those at the end need not be kept.
    while matches!(sources.last(), Some(Source::Own)) {
        sources.pop();
    }
    Ok(sources)
}

/// Whether this process may clone mounts of its mount namespace. Root of a user namespace may not always.
fn may_mount() -> bool {
    binds::current_root().is_ok_and(|root| match mount::open_tree(root.as_fd(), Path::new(""), false) {
        Ok(_) => true,
        Err(error) => error.errno() != libc::EPERM,
    })
}

/// The user namespace whose maps translate.
fn namespace(idmap: &Idmap, plan: &InitPlan, joined: &[(Namespace, OwnedFd)]) -> Result<OwnedFd> {
    let of = |uids: &[Range], gids: &[Range]| {
        rung_sys::idmap::empty_namespace(uids, gids).doing(|| "make a user namespace for the ids of a mount")
    };
    match idmap {
        Idmap::Ranges { uids, gids } => of(uids, gids),
        Idmap::Container => match (&plan.ids, joined.iter().find(|(kind, _)| *kind == Namespace::User)) {
            (Some(maps), _) => of(&maps.uids, &maps.gids),
            (None, Some((_, namespace))) => Ok(namespace.try_clone()?),
            (None, None) => Err(Error::invalid("idmap without mappings needs a user namespace")),
        },
    }
}
