//! Rules of resources.

use crate::config::{LinuxCpu, LinuxDeviceType, LinuxMemory, LinuxResources};

use super::linux::is_number_list;
use super::{Found, Violation};

pub(super) fn check(resources: &LinuxResources, at: &str, found: &mut Found) {
    device_rules_are_complete(resources, at, found);
    limits_have_sense(resources, at, found);
    unified_names_are_files(resources, at, found);
}

/// What holds for the limits of a container that runs too.
pub(super) fn limits_have_sense(resources: &LinuxResources, at: &str, found: &mut Found) {
    if let Some(memory) = resources.memory() {
        swap_holds_memory(memory, at, found);
        swappiness_is_in_range(memory, at, found);
    }
    if let Some(cpu) = resources.cpu() {
        idle_is_a_switch(cpu, at, found);
        lists_are_lists(cpu, at, found);
    }
    weights_are_in_range(resources, at, found);
    page_sizes_are_sizes(resources, at, found);
}

fn device_rules_are_complete(resources: &LinuxResources, at: &str, found: &mut Found) {
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        let path = |field: &str| format!("{at}.devices[{index}].{field}");
        // An `a` beside them means nothing, and is found in the wild because the kernel has a rule of that name.
        if let Some(access) = rule.access()
            && (access.trim_matches('a').is_empty() || access.chars().any(|c| !"rwma".contains(c)))
        {
            found.push(Violation::new(path("access"), format!("{access:?} is not of r, w and m")));
        }
        if rule.typ() == Some(LinuxDeviceType::P) {
            found.push(Violation::new(path("type"), "a fifo is no device"));
        }
        for (field, number) in [("major", rule.major()), ("minor", rule.minor())] {
            if let Some(n) = number.filter(|&n| n != -1 && u32::try_from(n).is_err()) {
                found.push(Violation::new(path(field), format!("{n} is not a device number")));
            }
        }
    }
}

/// The swap limit counts memory too.
fn swap_holds_memory(memory: &LinuxMemory, at: &str, found: &mut Found) {
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if limit > 0 && swap > 0 && swap < limit {
        let reason = format!("{swap} counts memory and swap together and must not be less than memory.limit {limit}");
        found.push(Violation::new(format!("{at}.memory.swap"), reason));
    }
}

fn swappiness_is_in_range(memory: &LinuxMemory, at: &str, found: &mut Found) {
    if let Some(value) = memory.swappiness().filter(|&value| value > 100) {
        found.push(Violation::new(format!("{at}.memory.swappiness"), format!("{value} is not between 0 and 100")));
    }
}

fn idle_is_a_switch(cpu: &LinuxCpu, at: &str, found: &mut Found) {
    if let Some(idle) = cpu.idle().filter(|idle| !(0..=1).contains(idle)) {
        found.push(Violation::new(format!("{at}.cpu.idle"), format!("{idle} is neither 0 nor 1")));
    }
}

fn lists_are_lists(cpu: &LinuxCpu, at: &str, found: &mut Found) {
    for (field, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty() && !is_number_list(list)) {
            found.push(Violation::new(format!("{at}.cpu.{field}"), format!("{list:?} is not a list like 0-3,7")));
        }
    }
}

fn weights_are_in_range(resources: &LinuxResources, at: &str, found: &mut Found) {
    let Some(io) = resources.block_io() else { return };
    let mut weigh = |path: String, weight: Option<u16>| {
        if let Some(weight) = weight.filter(|&weight| weight != 0 && !(10..=1000).contains(&weight)) {
            found.push(Violation::new(path, format!("{weight} is not between 10 and 1000")));
        }
    };
    weigh(format!("{at}.blockIO.weight"), io.weight());
    weigh(format!("{at}.blockIO.leafWeight"), io.leaf_weight());
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        weigh(format!("{at}.blockIO.weightDevice[{index}].weight"), device.weight());
        weigh(format!("{at}.blockIO.weightDevice[{index}].leafWeight"), device.leaf_weight());
    }
}

fn page_sizes_are_sizes(resources: &LinuxResources, at: &str, found: &mut Found) {
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let fine = digits.parse::<u32>().is_ok_and(|n| n > 0) && matches!(&size[digits.len()..], "KB" | "MB" | "GB");
        if !fine {
            let path = format!("{at}.hugepageLimits[{index}].pageSize");
            found.push(Violation::new(path, format!("{size:?} is not a size like 64KB, 2MB or 1GB")));
        }
    }
}

fn unified_names_are_files(resources: &LinuxResources, at: &str, found: &mut Found) {
    for name in resources.unified().iter().flatten().map(|(name, _)| name) {
        if name.is_empty() || name.contains('/') || !name.contains('.') || name.starts_with('.') {
            let reason = "must be the name of a file, without a slash: controller.file";
            found.push(Violation::new(format!("{at}.unified[{name:?}]"), reason));
        }
        // A start in a frozen cgroup would wait for ever, and the others act on processes, of the host even.
        if matches!(name.as_str(), "cgroup.freeze" | "cgroup.kill" | "cgroup.procs" | "cgroup.threads") {
            found.push(Violation::new(format!("{at}.unified[{name:?}]"), "is no limit"));
        }
    }
}
