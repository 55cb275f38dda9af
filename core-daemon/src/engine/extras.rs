//! What few wish of a container: from the words of a request to the builder's.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::gantry::engine::v1 as api;
use nix::sys::stat::{major, minor};
use oci_spec::runtime::{Capabilities, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType};
use rung_spec::builder::{Extras, Tmpfs, Ulimit, profile};
use rung_spec::defaults::{capabilities, devices};
use rung_spec::platform::Platform;

use crate::error::{Error, Result};

/// Deepest directory of devices that is looked into.
const MAX_DEPTH: usize = 8;

/// Everything but the devices' nodes.
///
/// # Errors
/// `InvalidArgument` naming the wish.
pub(super) fn extras(request: &api::CreateRequest, available: Option<&Capabilities>) -> Result<Extras> {
    let security = request.security.clone().unwrap_or_default();
    let limits = request.limits.unwrap_or_default();
    let seccomp = match security.seccomp.as_str() {
        "" => None,
        "unconfined" => Some(None),
        text => {
            let all = || capabilities::ALL.iter().copied().collect();
            let available = available.cloned().unwrap_or_else(all);
            let held = match request.privileged {
                true => available,
                false => capabilities::adjust(&request.cap_add, &request.cap_drop, &available)
                    .map_err(|error| Error::invalid(error.to_string()))?,
            };
            let read = profile::read(text, &held, &Platform::host().architecture);
            Some(Some(read.map_err(|error| Error::invalid(error.to_string()))?))
        }
    };
    Ok(Extras {
        ulimits: request
            .ulimits
            .iter()
            .map(|limit| Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        sysctls: request.sysctls.clone(),
        no_new_privileges: security.no_new_privileges,
        seccomp,
        apparmor: Some(security.apparmor).filter(|name| !name.is_empty()),
        open_system_paths: security.open_system_paths,
        shm_size: request.shm_size,
        host_namespaces: request.host_namespaces.iter().map(|name| namespace(name)).collect::<Result<_>>()?,
        tmpfs: request
            .tmpfs
            .iter()
            .map(|one| Tmpfs { destination: one.destination.clone(), options: one.options.clone() })
            .collect(),
        oom_score_adj: request.oom_score_adj,
        memory_reservation: limits.memory_reservation,
        cpu_shares: limits.cpu_shares,
        cpuset_cpus: request.cpuset_cpus.clone(),
        cpuset_mems: request.cpuset_mems.clone(),
        device_rules: Vec::new(),
    })
}

fn namespace(name: &str) -> Result<LinuxNamespaceType> {
    match name {
        "pid" => Ok(LinuxNamespaceType::Pid),
        "ipc" => Ok(LinuxNamespaceType::Ipc),
        "uts" => Ok(LinuxNamespaceType::Uts),
        "cgroup" => Ok(LinuxNamespaceType::Cgroup),
        _ => Err(Error::invalid(format!("host namespace {name:?}: is none that a container can share"))),
    }
}

/// The nodes of devices, and the rules that let them be used.
///
/// # Errors
/// `InvalidArgument` where a path is no device.
pub(super) fn device_nodes(wished: &[api::Device]) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>)> {
    let (mut nodes, mut rules): (Vec<LinuxDevice>, Vec<_>) = (Vec::new(), Vec::new());
    for wish in wished {
        let invalid = |problem: String| Error::invalid(format!("device {}: {problem}", wish.source));
        let access = if wish.access.is_empty() { "rwm" } else { &wish.access };
        if !access.bytes().all(|byte| b"rwm".contains(&byte)) {
            return Err(invalid(format!("access {access:?} is not made of r, w and m")));
        }
        let inside = if wish.destination.is_empty() { &wish.source } else { &wish.destination };
        for path in [&wish.source, inside] {
            if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
                return Err(invalid(format!("{path:?} is not an absolute path without '..'")));
            }
        }
        let mut found = Vec::new();
        look(Path::new(&wish.source), Path::new(inside), 0, &mut found).map_err(|error| invalid(error.to_string()))?;
        if found.is_empty() {
            return Err(invalid("is not a device".to_owned()));
        }
        let rule =
            |node: &LinuxDevice| devices::rule(true, Some(node.typ()), Some(node.major()), Some(node.minor()), access);
        rules.extend(found.iter().map(rule));
        nodes.retain(|old| !found.iter().any(|new| new.path() == old.path()));
        nodes.extend(found);
    }
    Ok((nodes, rules))
}

/// The device at a path, or those in the directory there.
fn look(host: &Path, inside: &Path, depth: usize, found: &mut Vec<LinuxDevice>) -> std::io::Result<()> {
    // What a person names may be a link; in a directory, a link leads to what is there itself, or lies elsewhere.
    let metadata = if depth == 0 { std::fs::metadata(host)? } else { std::fs::symlink_metadata(host)? };
    if metadata.is_dir() && depth < MAX_DEPTH {
        for entry in std::fs::read_dir(host)? {
            let entry = entry?;
            look(&entry.path(), &inside.join(entry.file_name()), depth + 1, found)?;
        }
    }
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(()),
    };
    let (first, second) = (major(metadata.rdev()), minor(metadata.rdev()));
    if let (Ok(first), Ok(second)) = (i64::try_from(first), i64::try_from(second)) {
        let mut node = LinuxDevice::default();
        node.set_path(PathBuf::from(inside))
            .set_typ(kind)
            .set_major(first)
            .set_minor(second)
            .set_file_mode(Some(metadata.mode() & 0o7777))
            .set_uid(Some(metadata.uid()))
            .set_gid(Some(metadata.gid()));
        found.push(node);
    }
    Ok(())
}
