//! Rules of what is left of the Linux section.

use std::path::{Component, Path};

use crate::config::{
    Linux, LinuxDeviceType, LinuxIntelRdt, LinuxMemoryPolicy, MemoryPolicyFlagType as Flag,
    MemoryPolicyModeType as Mode, Spec,
};

use super::{Found, Violation, resources};

const PROPAGATIONS: [&str; 8] =
    ["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"];

pub(super) fn check(spec: &Spec, found: &mut Found) {
    let Some(linux) = spec.linux() else { return };
    propagation_is_known(linux, found);
    devices_have_paths(linux, found);
    if let Some(policy) = linux.memory_policy() {
        nodes_fit_mode(policy, found);
        flags_fit_mode(policy, found);
    }
    if let Some(rdt) = linux.intel_rdt() {
        class_is_one_name(rdt, found);
        schemata_are_lines(rdt, found);
    }
    if let Some(wanted) = linux.resources() {
        resources::check(wanted, "linux.resources", found);
    }
}

fn propagation_is_known(linux: &Linux, found: &mut Found) {
    if let Some(word) = linux.rootfs_propagation().as_ref().filter(|word| !word.is_empty())
        && !PROPAGATIONS.contains(&word.as_str())
    {
        let reason = format!("rootfsPropagation={word} is not supported, one of {} is", PROPAGATIONS.join(", "));
        found.push(Violation::new("linux.rootfsPropagation", reason));
    }
}

fn devices_have_paths(linux: &Linux, found: &mut Found) {
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let at = |field: &str| format!("linux.devices[{index}].{field}");
        let path = device.path();
        if !path.is_absolute() || !names_a_file(path) {
            found.push(Violation::new(at("path"), format!("{path:?} is not the absolute path of a file")));
        }
        if device.typ() == LinuxDeviceType::A {
            found.push(Violation::new(at("type"), "a is not a type of file: c, u, b or p"));
        }
        if device.typ() == LinuxDeviceType::P {
            continue;
        }
        // Of a greater one the kernel takes the lower bits, which are another device's.
        for (field, number, bits) in [("major", device.major(), 12), ("minor", device.minor(), 20)] {
            if !(0..1 << bits).contains(&number) {
                found.push(Violation::new(at(field), format!("{number} is not a device number")));
            }
        }
    }
}

fn names_a_file(path: &Path) -> bool {
    let mut parts = path.components().skip(1).peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn nodes_fit_mode(policy: &LinuxMemoryPolicy, found: &mut Found) {
    let nodes = policy.nodes().as_deref().unwrap_or_default();
    let path = "linux.memoryPolicy.nodes";
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => {
            let count = count_numbers(nodes);
            found.push(Violation::new(path, format!("{}: mode requires 0 nodes but got {count}", policy.mode())));
        }
        Mode::MpolDefault | Mode::MpolLocal | Mode::MpolPreferred if nodes.is_empty() => {}
        mode if nodes.is_empty() => found.push(Violation::new(path, format!("{mode} needs nodes"))),
        _ if !is_number_list(nodes) => {
            found.push(Violation::new(path, format!("invalid memory policy node: {nodes:?} is not a list like 0-3,7")));
        }
        _ => {}
    }
}

fn flags_fit_mode(policy: &LinuxMemoryPolicy, found: &mut Found) {
    let flags = policy.flags().as_deref().unwrap_or_default();
    let path = "linux.memoryPolicy.flags";
    if flags.contains(&Flag::MpolFStaticNodes) && flags.contains(&Flag::MpolFRelativeNodes) {
        found.push(Violation::new(path, "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"));
    }
    let placed = matches!(policy.mode(), Mode::MpolBind | Mode::MpolPreferredMany);
    if flags.contains(&Flag::MpolFNumaBalancing) && !placed {
        found.push(Violation::new(path, format!("MPOL_F_NUMA_BALANCING cannot go with {}", policy.mode())));
    }
    if !flags.is_empty() && matches!(policy.mode(), Mode::MpolDefault | Mode::MpolLocal) {
        found.push(Violation::new(path, format!("{} takes no flags", policy.mode())));
    }
}

/// How many numbers a list such as `0-3,7` has; what is none counts as one.
fn count_numbers(list: &str) -> u64 {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let count = |part: &str| part.split_once('-').and_then(|(first, last)| number(last)?.checked_sub(number(first)?));
    list.split(',').map(|part| count(part).unwrap_or(0).saturating_add(1)).fold(0, u64::saturating_add)
}

/// Whether `list` is numbers and ranges of numbers, such as `0-3,7`.
pub(super) fn is_number_list(list: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    list.trim().split(',').all(|part| match part.trim().split_once('-') {
        None => number(part.trim()).is_some(),
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
    })
}

fn class_is_one_name(rdt: &LinuxIntelRdt, found: &mut Found) {
    let Some(class) = rdt.clos_id() else { return };
    if class != "/" && (class.is_empty() || class == "." || class == ".." || class.contains('/')) {
        found.push(Violation::new("linux.intelRdt.closID", format!("invalid intelRdt.ClosID {class:?}")));
    }
}

fn schemata_are_lines(rdt: &LinuxIntelRdt, found: &mut Found) {
    for (index, line) in rdt.schemata().iter().flatten().enumerate() {
        if line.contains('\n') || !line.contains(':') {
            found.push(Violation::new(format!("linux.intelRdt.schemata[{index}]"), "is not one line with a colon"));
        }
    }
}
