//! Devices of the host in the container.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rung_spec::defaults::devices;

use super::{Making, invalid};
use crate::config::Annotation;
use crate::error::{Doing as _, Error, Result};

/// Directories in `/dev` whose content belongs to the host alone, or that a container has of its own.
const LEFT_OUT: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// Deepest directory that is looked into.
const MAX_DEPTH: usize = 16;

pub(super) fn add(making: &Making<'_>, linux: &mut Linux) -> Result<()> {
    let mut nodes: Vec<LinuxDevice> = Vec::new();
    let mut rules: Vec<LinuxDeviceCgroup> = Vec::new();
    if making.privileged() && !making.handler.privileged_without_host_devices {
        below(Path::new("/dev"), Path::new("/dev"), 0, &mut nodes).doing(|| "look at the host's devices")?;
    }
    let of_kubelet = making.config.devices.iter().map(|device| (device, false));
    for (device, is_granted) in of_kubelet.chain(making.granted.devices.iter().map(|device| (device, true))) {
        let wrong = |error: std::io::Error| match is_granted {
            true => {
                let key = making.granted.key(Annotation::Devices, "");
                Error::invalid(format!("annotation {key}: {}: {error}", device.host_path))
            }
            false => invalid(&format!("devices: {}", device.host_path), error),
        };
        let access = device.permissions.as_str();
        if access.is_empty() || !access.bytes().all(|byte| b"rwm".contains(&byte)) {
            return Err(invalid("devices.permissions", format!("{access:?} is not made of r, w and m")));
        }
        for (name, path) in [("host_path", &device.host_path), ("container_path", &device.container_path)] {
            if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
                return Err(invalid(
                    &format!("devices.{name}"),
                    format!("{path:?} is not an absolute path without '..'"),
                ));
            }
        }
        let (host, inside) = (Path::new(&device.host_path), Path::new(&device.container_path));
        let metadata = std::fs::metadata(host).map_err(wrong)?;
        let mut found: Vec<LinuxDevice> = Vec::new();
        if metadata.is_dir() {
            below(host, inside, 0, &mut found).map_err(wrong)?;
        } else {
            found.extend(node(&metadata, inside));
        }
        if found.is_empty() {
            return Err(wrong(std::io::Error::other("is not a device")));
        }
        if making.settings.device_ownership_from_security_context {
            let context = making.context();
            for node in &mut found {
                give(node, &context);
            }
        }
        rules.extend(found.iter().map(|node| allow(node, access)));
        nodes.retain(|old| !found.iter().any(|new| new.path() == old.path()));
        nodes.extend(found);
    }
    if let Some(mut resources) = linux.resources().clone() {
        let mut all = resources.devices().clone().unwrap_or_default();
        all.append(&mut rules);
        resources.set_devices(Some(all));
        linux.set_resources(Some(resources));
    }
    linux.set_devices((!nodes.is_empty()).then_some(nodes));
    Ok(())
}

/// Gives a device to whom the container runs as.
fn give(node: &mut LinuxDevice, context: &v1::LinuxContainerSecurityContext) {
    let id = |value: &Option<v1::Int64Value>| value.as_ref().and_then(|value| u32::try_from(value.value).ok());
    if let Some(user) = id(&context.run_as_user) {
        node.set_uid(Some(user));
    }
    if let Some(group) = id(&context.run_as_group) {
        node.set_gid(Some(group));
    }
}

/// The rule that lets a device be used.
pub(super) fn allow(node: &LinuxDevice, access: &str) -> LinuxDeviceCgroup {
    devices::rule(true, Some(node.typ()), Some(node.major()), Some(node.minor()), access)
}

/// The devices in a directory and those below it. Symbolic links are left out: what they lead to is there itself, or
/// lies elsewhere.
fn below(host: &Path, inside: &Path, depth: usize, found: &mut Vec<LinuxDevice>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(host)? {
        let entry = entry?;
        // A device may go while it is looked at.
        let Ok(metadata) = entry.metadata() else { continue };
        let (name, place) = (entry.file_name(), inside.join(entry.file_name()));
        let left_out = name.to_str().is_some_and(|name| LEFT_OUT.contains(&name) || (depth == 0 && name == "console"));
        if left_out {
            continue;
        }
        if metadata.is_dir() && depth < MAX_DEPTH {
            below(&entry.path(), &place, depth + 1, found)?;
        } else {
            found.extend(node(&metadata, &place));
        }
    }
    Ok(())
}

fn node(metadata: &std::fs::Metadata, inside: &Path) -> Option<LinuxDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    let number = metadata.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let mut node = LinuxDevice::default();
    node.set_path(PathBuf::from(inside))
        .set_typ(kind)
        .set_major(i64::try_from(major).ok()?)
        .set_minor(i64::try_from(minor).ok()?)
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(node)
}
