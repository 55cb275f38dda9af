//! The same limits as a list of (file, value) for v1 hierarchies. Pure.

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice};

use rung_sys::cgroupfs::CgroupDir;

use super::error::{Error, Result};
use super::settings::{Setting, cpuset_files, page_size, pids_max, rdma};

/// What to write for `resources` in v1 hierarchies, device rules aside.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    if resources.unified().as_ref().is_some_and(|map| !map.is_empty()) {
        return Err(Error::invalid("linux.resources.unified", "cannot use unified on cgroup v1"));
    }
    let mut list = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_files(cpu, &mut list)?;
    }
    if let Some(memory) = resources.memory() {
        memory_files(memory, &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        list.push(Setting::new("pids", "pids.max", pids_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        blkio_files(io, &mut list);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        list.push(Setting::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), limit.limit()));
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        list.push(Setting::new("hugetlb", reserved, limit.limit()).optional());
    }
    if let Some(network) = resources.network() {
        network_files(network, &mut list);
    }
    list.extend(rdma(resources));
    for setting in &mut list {
        setting.legacy = true;
    }
    Ok(list)
}

/// Fills an empty v1 cpuset, and those above it, with what their parents have: without processors and memory nodes no
/// process can enter.
pub(super) fn inherit_cpuset(mount: &Path, path: &Path) -> Result<()> {
    let mut chain: Vec<&Path> = path.ancestors().take_while(|up| up.starts_with(mount) && *up != mount).collect();
    let mut parent = CgroupDir::open(mount)?;
    while let Some(next) = chain.pop() {
        let dir = CgroupDir::open(next)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if dir.read(file)?.trim().is_empty() {
                dir.write(file, parent.read(file)?.trim())?;
            }
        }
        parent = dir;
    }
    Ok(())
}

fn cpu_files(cpu: &LinuxCpu, list: &mut Vec<Setting>) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|&n| n != 0) {
        // The kernel takes any number and means another.
        let beyond = match shares {
            0..2 => Some("the minimum allowed cpu-shares is 2"),
            2..=262_144 => None,
            _ => Some("the maximum allowed cpu-shares is 262144"),
        };
        if let Some(reason) = beyond {
            return Err(Error::invalid("linux.resources.cpu.shares", reason));
        }
        list.push(Setting::new("cpu", "cpu.shares", shares));
    }
    // While a group is idle it refuses shares; those before it are kept.
    if let Some(idle) = cpu.idle() {
        list.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(burst) = cpu.burst() {
        list.push(Setting::new("cpu", "cpu.cfs_burst_us", burst));
    }
    if let Some(period) = cpu.period().filter(|&n| n != 0) {
        list.push(Setting::new("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = cpu.quota().filter(|&n| n != 0) {
        list.push(Setting::new("cpu", "cpu.cfs_quota_us", quota.max(-1)));
    }
    if let Some(period) = cpu.realtime_period().filter(|&n| n != 0) {
        list.push(Setting::new("cpu", "cpu.rt_period_us", period));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|&n| n != 0) {
        list.push(Setting::new("cpu", "cpu.rt_runtime_us", runtime));
    }
    cpuset_files(cpu, list);
    Ok(())
}

fn memory_files(memory: &LinuxMemory, list: &mut Vec<Setting>) -> Result<()> {
    let (limit, both) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if limit > 0 && both > 0 && both < limit {
        return Err(Error::invalid(
            "linux.resources.memory.swap",
            "counts memory and swap together and must not be less than memory.limit",
        ));
    }
    if limit != 0 {
        list.push(Setting::new("memory", "memory.limit_in_bytes", limit));
    }
    let swap_file = "memory.memsw.limit_in_bytes";
    match both {
        0 if limit == -1 => list.push(Setting::new("memory", swap_file, -1).optional()),
        0 => {}
        -1 => list.push(Setting::new("memory", swap_file, -1).optional()),
        both => list.push(Setting::new("memory", swap_file, both)),
    }
    if let Some(low) = memory.reservation().filter(|&n| n != 0) {
        list.push(Setting::new("memory", "memory.soft_limit_in_bytes", low));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|&n| n != 0) {
        // Deprecated, and gone in newer kernels.
        list.push(Setting::new("memory", "memory.kmem.tcp.limit_in_bytes", tcp).optional());
    }
    if memory.disable_oom_killer() == Some(true) {
        list.push(Setting::new("memory", "memory.oom_control", 1));
    }
    match memory.swappiness() {
        None => {}
        Some(value @ 0..=100) => list.push(Setting::new("memory", "memory.swappiness", value)),
        Some(value) => {
            let reason = format!("{value} is not between 0 and 100");
            return Err(Error::invalid("linux.resources.memory.swappiness", reason));
        }
    }
    Ok(())
}

fn blkio_files(io: &LinuxBlockIo, list: &mut Vec<Setting>) {
    if let Some(weight) = io.weight().filter(|&n| n != 0) {
        let bfq = Setting::new("blkio", "blkio.bfq.weight", weight);
        list.push(Setting::new("blkio", "blkio.weight", weight).or(bfq));
    }
    if let Some(weight) = io.leaf_weight().filter(|&n| n != 0) {
        list.push(Setting::new("blkio", "blkio.leaf_weight", weight));
    }
    for device in io.weight_device().iter().flatten() {
        let (major, minor) = (device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|&n| n != 0) {
            let line = format!("{major}:{minor} {weight}");
            let bfq = Setting::new("blkio", "blkio.bfq.weight_device", &line);
            list.push(Setting::new("blkio", "blkio.weight_device", &line).or(bfq));
        }
        if let Some(weight) = device.leaf_weight().filter(|&n| n != 0) {
            list.push(Setting::new("blkio", "blkio.leaf_weight_device", format!("{major}:{minor} {weight}")));
        }
    }
    let mut throttle = |file: &'static str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            list.push(Setting::new("blkio", file, line));
        }
    };
    throttle("blkio.throttle.read_bps_device", io.throttle_read_bps_device());
    throttle("blkio.throttle.write_bps_device", io.throttle_write_bps_device());
    throttle("blkio.throttle.read_iops_device", io.throttle_read_iops_device());
    throttle("blkio.throttle.write_iops_device", io.throttle_write_iops_device());
}

fn network_files(network: &LinuxNetwork, list: &mut Vec<Setting>) {
    if let Some(class) = network.class_id().filter(|&n| n != 0) {
        list.push(Setting::new("net_cls", "net_cls.classid", class));
    }
    for interface in network.priorities().iter().flatten() {
        let line = format!("{} {}", interface.name(), interface.priority());
        list.push(Setting::new("net_prio", "net_prio.ifpriomap", line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_the_kernel_would_change_are_refused() {
        let settings = |shares: u64| {
            let text = format!("{{\"cpu\":{{\"shares\":{shares}}}}}");
            settings(&serde_json::from_str(&text).expect("resources"))
        };
        for (shares, word) in [(1, "minimum"), (262_145, "maximum")] {
            assert!(settings(shares).expect_err("refused").to_string().contains(word));
        }
        assert_eq!(settings(262_144).expect("taken").len(), 1);
        assert!(settings(0).expect("not set").is_empty());
    }
}
