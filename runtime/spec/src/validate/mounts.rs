//! Rules of mounts.

use std::path::{Component, Path};

use crate::config::{LinuxNamespaceType, Mount, Spec};

use super::{Found, Violation, namespaces};

pub(super) fn check(spec: &Spec, found: &mut Found) {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let at = format!("mounts[{index}]");
        destination_is_inside(mount, &at, found);
        bind_has_a_source(mount, &at, found);
        mappings_are_whole(mount, &at, found);
        mappings_are_for_binds(spec, mount, &at, found);
    }
}

/// Whether it makes existing files visible elsewhere: by its options, whatever its type says.
fn is_bind(mount: &Mount) -> bool {
    let option = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    option("bind") || option("rbind") || mount.typ().as_deref() == Some("bind")
}

/// Mounting over the root would hide what was prepared in it.
fn destination_is_inside(mount: &Mount, at: &str, found: &mut Found) {
    let destination = mount.destination();
    let path = || format!("{at}.destination");
    if destination.as_os_str().is_empty() {
        found.push(Violation::new(path(), "must not be empty"));
    } else if leads_to_root(destination) {
        found.push(Violation::new(path(), format!("{destination:?} is the root of the container")));
    }
}

fn leads_to_root(path: &Path) -> bool {
    let mut depth = 0_usize;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.saturating_sub(1),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    depth == 0
}

fn bind_has_a_source(mount: &Mount, at: &str, found: &mut Found) {
    let source = mount.source().as_ref().is_some_and(|source| !source.as_os_str().is_empty());
    if is_bind(mount) && !source {
        found.push(Violation::new(format!("{at}.source"), "is required for a bind mount"));
    }
}

fn mappings_are_whole(mount: &Mount, at: &str, found: &mut Found) {
    let given = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
    if uids != gids {
        let missing = if uids { "gidMappings" } else { "uidMappings" };
        found
            .push(Violation::new(format!("{at}.{missing}"), "uidMappings and gidMappings come together or not at all"));
    }
    namespaces::ranges_are_valid(mount.uid_mappings(), &format!("{at}.uidMappings"), found);
    namespaces::ranges_are_valid(mount.gid_mappings(), &format!("{at}.gidMappings"), found);
}

fn mappings_are_for_binds(spec: &Spec, mount: &Mount, at: &str, found: &mut Found) {
    let option = mount.options().iter().flatten().find(|option| *option == "idmap" || *option == "ridmap");
    let mapped = mount.uid_mappings().as_ref().is_some_and(|list| !list.is_empty());
    if (mapped || option.is_some()) && !is_bind(mount) {
        found.push(Violation::new(at, "id-mapped mounts are only supported for bind mounts"));
    }
    if let Some(option) = option.filter(|_| !mapped && namespaces::of(spec, LinuxNamespaceType::User).is_none()) {
        let reason = format!("{option} needs uidMappings and gidMappings, or a user namespace whose mappings it takes");
        found.push(Violation::new(format!("{at}.options"), reason));
    }
}
