//! Rules of namespaces, and of what only makes sense in one.

use crate::config::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType as Type, Spec};

use super::{Found, Violation, sysctl};

/// More ranges than this the kernel does not take.
const MOST_RANGES: usize = 340;

pub(super) fn check(spec: &Spec, found: &mut Found) {
    types_are_given_once(spec, found);
    paths_are_absolute(spec, found);
    names_need_uts(spec, found);
    mappings_are_valid(spec, found);
    new_user_needs_mappings(spec, found);
    offsets_need_new_time(spec, found);
    hidden_paths_need_mount(spec, found);
    devices_need_network(spec, found);
    sysctl::check(spec, found);
}

fn all(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default()
}

/// The namespace of a type, if the container has its own or joins one.
pub(super) fn of(spec: &Spec, typ: Type) -> Option<&LinuxNamespace> {
    all(spec).iter().find(|namespace| namespace.typ() == typ)
}

/// Whether the namespace is joined, not made.
fn is_joined(namespace: &LinuxNamespace) -> bool {
    namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
}

fn types_are_given_once(spec: &Spec, found: &mut Found) {
    let list = all(spec);
    for (index, namespace) in list.iter().enumerate() {
        if list[..index].iter().any(|before| before.typ() == namespace.typ()) {
            let path = format!("linux.namespaces[{index}].type");
            found.push(Violation::new(path, format!("malformed spec file: duplicated ns: {}", namespace.typ())));
        }
    }
}

fn paths_are_absolute(spec: &Spec, found: &mut Found) {
    for (index, namespace) in all(spec).iter().enumerate() {
        if let Some(path) = namespace.path().as_ref().filter(|path| is_joined(namespace) && !path.is_absolute()) {
            found.push(Violation::new(format!("linux.namespaces[{index}].path"), format!("{path:?} is not absolute")));
        }
    }
}

fn names_need_uts(spec: &Spec, found: &mut Found) {
    if of(spec, Type::Uts).is_some() {
        return;
    }
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if name.as_ref().is_some_and(|name| !name.is_empty()) {
            found.push(Violation::new(field, format!("unable to set {field} without a private UTS namespace")));
        }
    }
}

fn mappings_are_valid(spec: &Spec, found: &mut Found) {
    let Some(linux) = spec.linux() else { return };
    for (field, list) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        ranges_are_valid(list, &format!("linux.{field}"), found);
    }
}

pub(super) fn ranges_are_valid(list: &Option<Vec<LinuxIdMapping>>, path: &str, found: &mut Found) {
    let list = list.as_deref().unwrap_or_default();
    if list.len() > MOST_RANGES {
        found.push(Violation::new(path, format!("has {} ranges, and the kernel takes {MOST_RANGES}", list.len())));
    }
    for (index, range) in list.iter().enumerate() {
        if range.size() == 0 {
            found.push(Violation::new(format!("{path}[{index}].size"), "must not be zero"));
        }
        for (field, first) in [("containerID", range.container_id()), ("hostID", range.host_id())] {
            if first.checked_add(range.size().saturating_sub(1)).is_none() {
                let reason = format!("{first} and {} following ids exceed 32 bits", range.size());
                found.push(Violation::new(format!("{path}[{index}].{field}"), reason));
            }
        }
    }
}

fn new_user_needs_mappings(spec: &Spec, found: &mut Found) {
    let Some(linux) = spec.linux() else { return };
    if of(spec, Type::User).is_none_or(is_joined) {
        return;
    }
    for (field, list) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        if list.as_ref().is_none_or(Vec::is_empty) {
            let reason = "user namespaces enabled, but no mappings found: a new user namespace needs some";
            found.push(Violation::new(format!("linux.{field}"), reason));
        }
    }
}

fn offsets_need_new_time(spec: &Spec, found: &mut Found) {
    let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref());
    let Some(offsets) = offsets.filter(|offsets| !offsets.is_empty()) else { return };
    match of(spec, Type::Time) {
        None => found.push(Violation::new(
            "linux.timeOffsets",
            "time namespace offsets specified, but time namespace isn't enabled in the config",
        )),
        Some(joined) if is_joined(joined) => {
            found.push(Violation::new("linux.timeOffsets", "cannot be set in a time namespace that is joined"));
        }
        Some(_) => {}
    }
    for (clock, offset) in offsets {
        let path = format!("linux.timeOffsets.{clock}");
        if clock != "monotonic" && clock != "boottime" {
            found.push(Violation::new(&path, "is not one of monotonic, boottime"));
        }
        if offset.nanosecs().is_some_and(|nanos| nanos >= 1_000_000_000) {
            found.push(Violation::new(format!("{path}.nanosecs"), "is a second or more"));
        }
    }
}

fn hidden_paths_need_mount(spec: &Spec, found: &mut Found) {
    let Some(linux) = spec.linux().as_ref().filter(|_| of(spec, Type::Mount).is_none()) else { return };
    for (field, list) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            let reason = "unable to restrict sys entries without a private MNT namespace";
            found.push(Violation::new(format!("linux.{field}"), reason));
        }
    }
}

fn devices_need_network(spec: &Spec, found: &mut Found) {
    let devices = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
    let Some(devices) = devices.filter(|devices| !devices.is_empty()) else { return };
    if of(spec, Type::Network).is_none() {
        let reason = "unable to move network devices without a NET namespace";
        found.push(Violation::new("linux.netDevices", reason));
    }
    for (name, device) in devices {
        let path = format!("linux.netDevices.{name}");
        if !is_device_name(name) {
            found.push(Violation::new(&path, format!("invalid network device name {name:?}")));
        }
        if let Some(new) = device.name().as_ref().filter(|new| !new.is_empty() && !is_device_name(new)) {
            found.push(Violation::new(format!("{path}.name"), format!("invalid network device name {new:?}")));
        }
    }
}

/// The kernel's rule for names of network devices.
fn is_device_name(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace();
    !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && !name.contains(forbidden)
}
