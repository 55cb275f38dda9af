//! Limits of a configuration as a list of (file, value), for the unified hierarchy. Pure.
//!
//! The order of the list is the order of writing within one controller. Values that depend on each other (quota and
//! period, quota and burst) may be refused in one order and accepted in the other, depending on what stands there;
//! the writer tries a refused one again after the others, so no list has to know what stands there.

use std::borrow::Cow;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::error::{Error, Result};

/// One value to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller whose file it is; its v1 name in `legacy`, its v2 name here.
    pub(super) controller: Cow<'static, str>,
    /// The file.
    pub(super) file: Cow<'static, str>,
    /// What to write.
    pub(super) value: String,
    /// What to do where this file does not exist.
    pub(super) absent: Absent,
    /// In the form of v1.
    pub(super) legacy: bool,
}

/// What to do where a file does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be kept: an error.
    Refuse,
    /// Without the file the kernel behaves as asked anyway.
    Ignore,
    /// Another file says the same.
    Instead(Box<Setting>),
}

impl Setting {
    pub(super) fn new(controller: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) -> Self {
        let controller = Cow::Borrowed(controller);
        Self { controller, file: file.into(), value: value.to_string(), absent: Absent::Refuse, legacy: false }
    }

    pub(super) fn optional(self) -> Self {
        Self { absent: Absent::Ignore, ..self }
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self { absent: Absent::Instead(Box::new(other)), ..self }
    }
}

/// The period the kernel starts with.
pub(super) const DEFAULT_PERIOD: u64 = 100_000;

/// What to write for `resources` in the unified hierarchy, device rules aside.
pub(super) fn unified(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut list = Vec::new();
    let idle = is_idle(resources);
    if let Some(cpu) = resources.cpu() {
        cpu_files(cpu, idle, &mut list)?;
    }
    if let Some(memory) = resources.memory() {
        memory_files(memory, &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        list.push(Setting::new("pids", "pids.max", pids_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        io_files(io, &mut list);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        list.push(Setting::new("hugetlb", format!("hugetlb.{size}.max"), limit.limit()));
        list.push(Setting::new("hugetlb", format!("hugetlb.{size}.rsvd.max"), limit.limit()).optional());
    }
    list.extend(rdma(resources));
    // Last, as the specification says: they may override what came before.
    let mut own: Vec<_> = resources.unified().iter().flatten().collect();
    own.sort();
    for (file, value) in own.into_iter().filter(|(file, _)| !idle || !is_weight(file)) {
        // A file of limits for devices takes one of them a write.
        for line in value.trim_end_matches('\n').split('\n') {
            list.push(unified_entry(file, line)?);
        }
    }
    Ok(list)
}

/// Whether the group shall run only when nothing else wants the processor. The kernel refuses a weight for such a group,
/// and systemd spells idle as one.
pub(super) fn is_idle(resources: &LinuxResources) -> bool {
    let own = resources.unified().as_ref().and_then(|files| files.get("cpu.idle"));
    resources.cpu().as_ref().and_then(LinuxCpu::idle) == Some(1) || own.is_some_and(|value| value.trim() == "1")
}

/// Whether a file of the unified hierarchy is the weight that an idle group cannot have.
pub(super) fn is_weight(file: &str) -> bool {
    matches!(file, "cpu.weight" | "cpu.weight.nice")
}

/// Whether `resources` ask for a weight of processor time.
pub(super) fn has_weight(resources: &LinuxResources) -> bool {
    resources.cpu().as_ref().and_then(LinuxCpu::shares).is_some_and(|shares| shares != 0)
        || resources.unified().iter().flatten().any(|(file, _)| is_weight(file))
}

fn unified_entry(file: &str, value: &str) -> Result<Setting> {
    let path = || format!("linux.resources.unified[{file:?}]");
    if file.is_empty() || file.contains('/') || file == "." || file == ".." {
        return Err(Error::invalid(path(), "must be the name of a file, without a slash"));
    }
    let Some((controller, _)) = file.split_once('.') else {
        return Err(Error::invalid(path(), "must be named controller.file"));
    };
    let controller = Cow::Owned(controller.to_owned());
    let (file, value) = (Cow::Owned(file.to_owned()), value.to_owned());
    Ok(Setting { controller, file, value, absent: Absent::Refuse, legacy: false })
}

/// `pids.max` for a limit. Zero is raised to one: systemd cannot express zero, and both drivers must agree.
pub(super) fn pids_max(limit: i64) -> String {
    match limit {
        0 => "1".to_owned(),
        1.. => limit.to_string(),
        _ => "max".to_owned(),
    }
}

fn cpu_files(cpu: &LinuxCpu, idle: bool, list: &mut Vec<Setting>) -> Result<()> {
    // While a group is idle it refuses a weight, so that is decided first.
    if let Some(idle) = cpu.idle() {
        list.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0 && !idle) {
        list.push(Setting::new("cpu", "cpu.weight", weight_of_shares(shares)));
    }
    if let Some(burst) = cpu.burst() {
        list.push(Setting::new("cpu", "cpu.max.burst", burst));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let period = if period == 0 { DEFAULT_PERIOD } else { period };
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        list.push(Setting::new("cpu", "cpu.max", format!("{quota} {period}")));
    }
    let runtime = cpu.realtime_runtime().is_some_and(|time| time != 0);
    let period = cpu.realtime_period().is_some_and(|time| time != 0);
    for (name, given) in [("realtimeRuntime", runtime), ("realtimePeriod", period)] {
        if given {
            return Err(Error::invalid(
                format!("linux.resources.cpu.{name}"),
                "cgroup v2 has no limit of realtime scheduling",
            ));
        }
    }
    cpuset_files(cpu, list);
    Ok(())
}

/// Both hierarchies have these under the same names.
pub(super) fn cpuset_files(cpu: &LinuxCpu, list: &mut Vec<Setting>) {
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            list.push(Setting::new("cpuset", file, value));
        }
    }
}

/// The v2 weight of v1 shares: 2 → 1, 1024 → 100, 262144 → 10000, on a curve through the three in log-log scale, so
/// that the default of one is the default of the other.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares are below 2^53, so they convert exactly, and the result lies between 1 and 10000"
    )]
    {
        let l = (shares as f64).log2();
        let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
        10_f64.powf(exponent).ceil() as u64
    }
}

/// A memory value of the specification: -1 is unlimited, 0 or nothing is unset.
fn max_or(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

fn memory_files(memory: &LinuxMemory, list: &mut Vec<Setting>) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    if let Some(swap) = swap_of(limit, memory.swap().unwrap_or(0))? {
        let setting = Setting::new("memory", "memory.swap.max", &swap);
        // Without swap accounting nothing is swapped or everything may be: what these two ask for.
        list.push(if swap == "max" || swap == "0" { setting.optional() } else { setting });
    }
    if limit != 0 {
        list.push(Setting::new("memory", "memory.max", max_or(limit)));
    }
    if let Some(low) = memory.reservation().filter(|&low| low != 0) {
        list.push(Setting::new("memory", "memory.low", max_or(low)));
    }
    Ok(())
}

/// `memory.swap.max`: the specification counts memory and swap together, v2 swap alone.
pub(super) fn swap_of(limit: i64, both: i64) -> Result<Option<String>> {
    let wrong = |reason| Err(Error::invalid("linux.resources.memory.swap", reason));
    match both {
        // As v1 behaves: memory without limit means swap without limit.
        0 if limit == -1 => Ok(Some("max".to_owned())),
        0 => Ok(None),
        -1 => Ok(Some("max".to_owned())),
        _ if both < -1 => wrong("must be -1 or more"),
        // Nothing can be subtracted then: it limits swap alone, as with runc.
        _ if limit == -1 => Ok(Some(both.to_string())),
        _ if limit <= 0 => wrong("cannot be limited without a limit of memory"),
        _ if both < limit => wrong("counts memory and swap together and must not be less than memory.limit"),
        _ => Ok(Some((both - limit).to_string())),
    }
}

fn io_files(io: &LinuxBlockIo, list: &mut Vec<Setting>) {
    // Only the BFQ scheduler has weights of the old scale; elsewhere the new one, converted.
    if let Some(weight) = io.weight().filter(|&w| w >= 10) {
        list.push(Setting::new("io", "io.bfq.weight", weight).or(Setting::new(
            "io",
            "io.weight",
            format!("default {}", io_weight(weight)),
        )));
    }
    for device in io.weight_device().iter().flatten() {
        let Some(weight) = device.weight().filter(|&w| w >= 10) else { continue };
        let (major, minor) = (device.major(), device.minor());
        list.push(Setting::new("io", "io.bfq.weight", format!("{major}:{minor} {weight}")).or(Setting::new(
            "io",
            "io.weight",
            format!("{major}:{minor} {}", io_weight(weight)),
        )));
    }
    throttle("rbps", io.throttle_read_bps_device(), list);
    throttle("wbps", io.throttle_write_bps_device(), list);
    throttle("riops", io.throttle_read_iops_device(), list);
    throttle("wiops", io.throttle_write_iops_device(), list);
}

/// A weight of v1, 10 to 1000, on the scale of v2, 1 to 10000.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn throttle(key: &str, devices: &Option<Vec<LinuxThrottleDevice>>, list: &mut Vec<Setting>) {
    for device in devices.iter().flatten() {
        // Zero lifts a limit, as it does in the v1 files.
        let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
        let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
        list.push(Setting::new("io", "io.max", line));
    }
}

/// A page size as the kernel names its files; refuses what could name another file.
pub(super) fn page_size(size: &str) -> Result<&str> {
    let number = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = &size[number.len()..];
    let fine = number.parse::<u32>().is_ok_and(|n| n > 0) && matches!(unit, "KB" | "MB" | "GB");
    if fine {
        Ok(size)
    } else {
        Err(Error::invalid("linux.resources.hugepageLimits", format!("no page size: {size:?} (2MB, 1GB, …)")))
    }
}

/// `rdma.max`, which v1 and v2 have alike.
pub(super) fn rdma(resources: &LinuxResources) -> Vec<Setting> {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    let max = |limit: Option<u32>| limit.map_or_else(|| "max".to_owned(), |n| n.to_string());
    devices
        .into_iter()
        .map(|(name, limits)| {
            let (handles, objects) = (max(limits.hca_handles()), max(limits.hca_objects()));
            Setting::new("rdma", "rdma.max", format!("{name} hca_handle={handles} hca_object={objects}"))
        })
        .collect()
}
