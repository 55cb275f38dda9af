//! Rarely used options of a container, from the form of a request to the form of the builder.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::gantry::engine::v1 as api;
use nix::sys::stat::{major, minor};
use oci_spec::runtime::{Capabilities, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType};
use rung_spec::builder::{Extras, Tmpfs, Ulimit, profile};
use rung_spec::defaults::{capabilities, devices};
use rung_spec::platform::Platform;

use crate::error::{Error, Result};
use crate::oom_score;

/// Levels of directories that are searched for devices.
const MAX_DEPTH: usize = 8;

/// Refuses more processors than there are, as docker does: it is a mistake, and the limit would limit nothing.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn check_processors(nano_cpus: i64) -> Result<()> {
    // Not `available_parallelism`, which goes by the limit of the daemon's own cgroup too.
    let there = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))
        .map(|set| (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count());
    match there {
        Ok(there) if nano_cpus > 1_000_000_000 * i64::try_from(there).unwrap_or(i64::MAX / 1_000_000_000) => {
            let wanted = nano_cpus / 1_000_000;
            let (whole, thousandths) = (wanted / 1000, wanted % 1000);
            Err(Error::invalid(format!("cpus: {whole}.{thousandths:03} are wanted, and {there} are there")))
        }
        _ => Ok(()),
    }
}

/// Refuses processors and memory nodes that the machine does not have: what the kernel says of them is that a result is out
/// of range.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn check_cpuset(cpus: &str, mems: &str) -> Result<()> {
    let all = [("cpus", cpus, "cpu"), ("mems", mems, "node")];
    for (what, wanted, kind) in all.into_iter().filter(|(_, wanted, _)| !wanted.is_empty()) {
        // Without the file the kernel has the last word, as it has in what is no list.
        let Ok(there) = std::fs::read_to_string(format!("/sys/devices/system/{kind}/online")) else { continue };
        let there = there.trim();
        if !is_part(wanted, there) {
            return Err(Error::invalid(format!("cpuset {what}: {wanted} are wanted, and {there} are there")));
        }
    }
    Ok(())
}

/// Whether all numbers of a list such as `0-2,5` are in another.
fn is_part(list: &str, of: &str) -> bool {
    let ranges = |text: &str| -> Vec<(u32, u32)> {
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        text.split(',').filter_map(range).collect()
    };
    let of = ranges(of);
    ranges(list).iter().all(|(first, last)| of.iter().any(|(from, to)| from <= first && last <= to))
}

/// All of these options but devices.
///
/// # Errors
/// `InvalidArgument` naming the wish.
pub(super) fn extras(request: &api::CreateRequest, available: Option<&Capabilities>) -> Result<Extras> {
    let security = request.security.clone().unwrap_or_default();
    let limits = request.limits.unwrap_or_default();
    check_processors(limits.nano_cpus)?;
    check_cpuset(&request.cpuset_cpus, &request.cpuset_mems)?;
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
        // Without AppArmor nothing is confined, and runtimes refuse a profile.
        apparmor: Some(security.apparmor)
            .filter(|name| !name.is_empty() && (name != "unconfined" || rung_sys::lsm::apparmor_enabled())),
        open_system_paths: security.open_system_paths,
        shm_size: request.shm_size,
        host_namespaces: request.host_namespaces.iter().map(|name| namespace(name)).collect::<Result<_>>()?,
        tmpfs: request
            .tmpfs
            .iter()
            .map(|one| Tmpfs { destination: one.destination.clone(), options: one.options.clone() })
            .collect(),
        oom_score_adj: request.oom_score_adj.or_else(|| oom_score::usual(oom_score::own())),
        memory_reservation: limits.memory_reservation,
        cpu_shares: limits.cpu_shares,
        blkio_weight: blkio_weight(limits.blkio_weight)?,
        memory_swappiness: request.memory_swappiness,
        cpuset_cpus: request.cpuset_cpus.clone(),
        cpuset_mems: request.cpuset_mems.clone(),
        device_rules: Vec::new(),
    })
}

/// The weight of block I/O; 0 leaves it at the default.
pub(super) fn blkio_weight(weight: u32) -> Result<u16> {
    match u16::try_from(weight) {
        Ok(weight) if weight == 0 || (10..=1000).contains(&weight) => Ok(weight),
        _ => Err(Error::invalid(format!("blkio weight {weight}: must be between 10 and 1000"))),
    }
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

/// The nodes of devices, and the rules that let them be used, beside those that are wished for themselves.
///
/// # Errors
/// `InvalidArgument` where a path is no device, or a rule none.
pub(super) fn device_nodes(
    wished: &[api::Device],
    rules_wished: &[String],
) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>)> {
    let (mut nodes, mut rules): (Vec<LinuxDevice>, Vec<_>) = (Vec::new(), Vec::new());
    for text in rules_wished {
        rules.push(device_rule(text)?);
    }
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

/// A rule such as `c 1:* rwm`.
fn device_rule(text: &str) -> Result<LinuxDeviceCgroup> {
    let invalid = || Error::invalid(format!("device rule {text:?}: is not one such as \"c 1:3 rwm\""));
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits => digits.parse::<u32>().map(|number| Some(i64::from(number))).map_err(|_| invalid()),
    };
    let mut words = text.split(' ');
    let (Some(kind), Some(numbers), Some(access), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(invalid());
    };
    let kind = match kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return Err(invalid()),
    };
    let (first, second) = numbers.split_once(':').ok_or_else(invalid)?;
    if access.is_empty() || !access.bytes().all(|byte| b"rwm".contains(&byte)) {
        return Err(invalid());
    }
    Ok(devices::rule(true, Some(kind), number(first)?, number(second)?, access))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_are_not_there_are_refused() {
        for (list, of, is) in [("0-1", "0-3", true), ("0,3", "0-3", true), ("", "0", true), ("77", "0-1", false)] {
            assert_eq!(is_part(list, of), is, "{list} of {of}");
        }
        assert!(!is_part("1-5", "0-2,4-6") && is_part("4,0-2", "0-2,4-6"));
        let said = check_cpuset("0,99999", "").map_err(|error| error.to_string());
        assert!(said.is_err_and(|said| said.starts_with("cpuset cpus: 0,99999 are wanted, and 0")));
    }

    #[test]
    fn rules_of_devices() {
        let rule = device_rule("c 1:* rw").expect("rule");
        assert_eq!((rule.typ(), rule.major(), rule.minor()), (Some(LinuxDeviceType::C), Some(1), None));
        assert_eq!((rule.allow(), rule.access().as_deref()), (true, Some("rw")));
        for bad in ["", "c 1:3", "x 1:3 r", "c 1 r", "c -1:3 r", "c 1:3 x", "c 1:3 r r", "c 1:3 "] {
            assert!(device_rule(bad).is_err(), "{bad}");
        }
    }
}
