//! What plugins want changed, put into the runtime configuration of a container.
//!
//! Whatever a plugin says is held against the rules of configurations in the end, so that a container is refused here and not
//! when it starts.

mod linux;
pub(super) mod process;
mod resources;
mod seccomp;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use oci_spec::runtime::{Mount, Spec};
use rung_spec::defaults::mounts::mount;

pub(super) use resources::lay_over as lay_over_resources;

use crate::config;
use crate::cri::spec as specs;
use crate::error::{Error, Result};

/// A name that is to be removed, without the mark that says so.
pub(super) fn marked(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// Changes the configuration.
///
/// # Errors
/// `InvalidArgument` naming the field that cannot be.
pub(super) fn adjust(spec: &mut Spec, wanted: &api::ContainerAdjustment, settings: &config::Cri) -> Result<()> {
    annotations(spec, &wanted.annotations)?;
    process::adjust(spec, wanted)?;
    devices_of_vendors(spec, &wanted.cdi_devices, settings)?;
    if let Some(wanted) = &wanted.linux {
        linux::adjust(spec, wanted, settings)?;
    }
    mounts(spec, &wanted.mounts)?;
    match rung_spec::validate::check(spec) {
        Ok(()) => Ok(()),
        Err(found) => {
            let found = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(Error::invalid(format!("what is left is no configuration: {found}")))
        }
    }
}

fn annotations(spec: &mut Spec, wanted: &BTreeMap<String, String>) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut all = spec.annotations().clone().unwrap_or_default();
    change("annotations", &mut all, wanted, |text| text.clone())?;
    spec.set_annotations(Some(all));
    Ok(())
}

/// Removes what is marked, and then sets the rest.
pub(super) fn change<T, U>(
    field: &str,
    all: &mut HashMap<String, T>,
    wanted: &BTreeMap<String, U>,
    value: impl Fn(&U) -> T,
) -> Result<()> {
    for name in wanted.keys().filter_map(|key| marked(key)) {
        all.remove(name);
    }
    for (key, new) in wanted.iter().filter(|(key, _)| marked(key).is_none()) {
        if key.is_empty() || key.contains('\0') {
            return Err(Error::invalid(format!("{field}: {key:?} is not a name")));
        }
        all.insert(key.clone(), value(new));
    }
    Ok(())
}

fn devices_of_vendors(spec: &mut Spec, wanted: &[api::CdiDevice], settings: &config::Cri) -> Result<()> {
    let names: Vec<(String, String)> =
        wanted.iter().map(|device| ("CDI_devices".to_owned(), device.name.clone())).collect();
    specs::add_vendor_devices(&names, &settings.cdi_dirs, spec)
}

fn mounts(spec: &mut Spec, wanted: &[api::Mount]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    let place = |mount: &Mount| mount.destination().clone();
    for gone in wanted.iter().filter_map(|mount| marked(&mount.destination)) {
        all.retain(|mount| place(mount) != Path::new(gone));
    }
    let mut propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    for new in wanted.iter().filter(|mount| marked(&mount.destination).is_none()) {
        let inside = new.destination.as_str();
        if !inside.starts_with('/') || inside.contains('\0') || inside.split('/').any(|part| part == "..") {
            let text = format!("mounts.destination: {inside:?} is not an absolute path without '..'");
            return Err(Error::invalid(text));
        }
        if new.source.contains('\0') || new.options.iter().any(|option| option.contains('\0')) {
            return Err(Error::invalid(format!("mounts: {inside}: has a character that no path has")));
        }
        all.retain(|mount| place(mount) != Path::new(inside));
        all.push(mount(inside, &new.r#type, &new.source, new.options.clone()));
        let has = |option: &str| new.options.iter().any(|one| one == option);
        // The root has to let through what comes from outside, or goes there.
        match propagation.as_deref() {
            Some("shared" | "rshared") => {}
            _ if has("rshared") => propagation = Some("rshared".to_owned()),
            Some("slave" | "rslave") => {}
            _ if has("rslave") => propagation = Some("rslave".to_owned()),
            _ => {}
        }
    }
    // Outer ones before inner ones.
    all.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(all));
    if let Some(linux) = spec.linux_mut() {
        linux.set_rootfs_propagation(propagation);
    }
    Ok(())
}

/// A path that a plugin gives.
pub(super) fn path(field: &str, text: &str) -> Result<PathBuf> {
    match text.starts_with('/') && !text.contains('\0') {
        true => Ok(PathBuf::from(text)),
        false => Err(Error::invalid(format!("{field}: {text:?} is not an absolute path"))),
    }
}

#[cfg(test)]
mod tests;
