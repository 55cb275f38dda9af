//! Limits, and the cgroup they are of.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxResourcesBuilder};
use rung_spec::defaults;
use rung_sys::sched::NumberSet;

use super::Making;
use crate::config::CgroupDriver;
use crate::error::{Error, Result};

/// Slice of pods that name none.
const DEFAULT_SLICE: &str = "system.slice";
/// Directory of pods that name none.
const DEFAULT_PARENT: &str = "/k8s.io";
/// First part of a scope's name, which tools that read cgroups know.
const SCOPE: &str = "cri-containerd";
/// Microseconds for which the kernel counts a share of time.
const PERIODS: RangeInclusive<i64> = 1_000..=1_000_000;
/// Fewest microseconds of time in each of them.
const LEAST_QUOTA: i64 = 1_000;
/// A limit that is none.
const UNLIMITED: i64 = -1;

/// The container's cgroup: `parent/id`, or `slice:prefix:id` with systemd.
pub(super) fn cgroups_path(making: &Making<'_>) -> PathBuf {
    cgroup_of(making.settings.cgroup_driver, making.pod, making.id)
}

/// The cgroup of a container of a pod.
pub(in crate::cri) fn cgroup_of(driver: CgroupDriver, pod: &v1::PodSandboxConfig, id: &str) -> PathBuf {
    let parent = pod.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    match driver {
        CgroupDriver::Systemd => {
            let slice = Path::new(parent).file_name().and_then(|name| name.to_str()).unwrap_or(DEFAULT_SLICE);
            PathBuf::from(format!("{slice}:{SCOPE}:{id}"))
        }
        CgroupDriver::Cgroupfs => {
            let parent = if parent.is_empty() { DEFAULT_PARENT } else { parent };
            Path::new("/").join(parent.trim_start_matches('/')).join(id)
        }
    }
}

/// The name of the directory of that cgroup.
pub(in crate::cri) fn cgroup_name(driver: CgroupDriver, id: &str) -> String {
    match driver {
        CgroupDriver::Systemd => format!("{SCOPE}-{id}.scope"),
        CgroupDriver::Cgroupfs => id.to_owned(),
    }
}

pub(super) fn make(making: &Making<'_>) -> Result<LinuxResources> {
    let mut wanted = making.limits.clone();
    validate("config.linux.resources", &wanted)?;
    possible("config.linux.resources", &wanted)?;
    wanted.unified.extend(making.granted.unified(making.name()).cloned().unwrap_or_default());
    let mut resources = limits(&wanted)?;
    let handler = making.handler;
    let all = making.privileged()
        && (!handler.privileged_without_host_devices || handler.privileged_without_host_devices_all_devices_allowed);
    resources.set_devices(Some(if all { defaults::devices::everything() } else { defaults::devices::default() }));
    Ok(resources)
}

/// Limits that make sense.
///
/// # Errors
/// `InvalidArgument` naming the one that does not.
pub(in crate::cri) fn validate(field: &str, wanted: &v1::LinuxContainerResources) -> Result<()> {
    // The least that makes sense; -1 is no limit.
    let least = [
        ("cpu_period", wanted.cpu_period, 0),
        ("cpu_shares", wanted.cpu_shares, 0),
        ("memory_limit_in_bytes", wanted.memory_limit_in_bytes, UNLIMITED),
        ("memory_swap_limit_in_bytes", wanted.memory_swap_limit_in_bytes, UNLIMITED),
    ];
    if let Some((name, value, _)) = least.into_iter().find(|(_, value, least)| value < least) {
        return Err(Error::invalid(format!("{field}.{name}: {value} is negative")));
    }
    let sizes = wanted.hugepage_limits.iter().map(|limit| limit.page_size.as_str());
    if let Some(size) = sizes.into_iter().find(|size| !is_page_size(size)) {
        let text = format!("{field}.hugepage_limits.page_size: {size:?} is not a size like 64KB, 2MB or 1GB");
        return Err(Error::invalid(text));
    }
    for (name, text) in [("cpuset_cpus", &wanted.cpuset_cpus), ("cpuset_mems", &wanted.cpuset_mems)] {
        // The kernel allows for commas too many, and so does the runtime.
        let parts: Vec<&str> = text.split(',').filter(|part| !part.trim().is_empty()).collect();
        if !parts.is_empty() && NumberSet::parse(&parts.join(",")).is_none() {
            return Err(Error::invalid(format!("{field}.{name}: {text:?} is not a list like 0-3,7")));
        }
    }
    let file = |name: &&String| name.is_empty() || name.contains('/') || name.starts_with('.') || !name.contains('.');
    match wanted.unified.keys().find(file) {
        Some(name) => Err(Error::invalid(format!("{field}.unified: {name:?} is not the name of a cgroup's file"))),
        None => Ok(()),
    }
}

/// Limits that the kernel takes, whichever cgroups there are. Those of a pod are only told to whoever asks for them.
fn possible(field: &str, wanted: &v1::LinuxContainerResources) -> Result<()> {
    let invalid = |name: &str, what: String| Err(Error::invalid(format!("{field}.{name}: {what}")));
    let (period, quota) = (wanted.cpu_period, wanted.cpu_quota);
    if period != 0 && !PERIODS.contains(&period) {
        return invalid("cpu_period", format!("{period} is not between {} and {}", PERIODS.start(), PERIODS.end()));
    }
    if (1..LEAST_QUOTA).contains(&quota) {
        return invalid("cpu_quota", format!("{quota} is less than {LEAST_QUOTA}"));
    }
    let (limit, swap) = (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes);
    if limit > 0 && swap > 0 && swap < limit {
        let what = format!("{swap} counts memory too, and is less than memory_limit_in_bytes, {limit}");
        return invalid("memory_swap_limit_in_bytes", what);
    }
    Ok(())
}

/// As the kernel writes them into the names of its files.
fn is_page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The limits that are said; 0 says nothing.
fn limits(wanted: &v1::LinuxContainerResources) -> Result<LinuxResources> {
    let mut resources =
        LinuxResourcesBuilder::default().build().map_err(|error| Error::internal(format!("resources: {error}")))?;
    resources.set_cpu(cpu(wanted)).set_memory(memory(wanted));
    let hugetlb = hugepages(wanted);
    resources.set_hugepage_limits((!hugetlb.is_empty()).then_some(hugetlb));
    let unified: HashMap<String, String> = wanted.unified.clone().into_iter().collect();
    resources.set_unified((!unified.is_empty()).then_some(unified));
    Ok(resources)
}

fn cpu(wanted: &v1::LinuxContainerResources) -> Option<LinuxCpu> {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut cpu = LinuxCpu::default();
    cpu.set_period(positive(wanted.cpu_period))
        .set_quota(Some(wanted.cpu_quota).filter(|quota| *quota != 0))
        .set_shares(positive(wanted.cpu_shares))
        .set_cpus(text(&wanted.cpuset_cpus))
        .set_mems(text(&wanted.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

/// Memory, and as much of memory and swap together where nothing is said of that: no swap.
fn memory(wanted: &v1::LinuxContainerResources) -> Option<LinuxMemory> {
    let said = |limit: i64| Some(limit).filter(|limit| *limit != 0);
    let limit = said(wanted.memory_limit_in_bytes);
    // Without a limit of memory, the runtime says whether one of swap makes sense.
    let swap = said(wanted.memory_swap_limit_in_bytes).or(limit)?;
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(Some(swap).filter(|_| counts_swap()));
    Some(memory)
}

/// Whether the kernel can limit swap.
pub(in crate::cri) fn counts_swap() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// Limits of huge pages. The kubelet sends one of 0 for every size, also where the kernel cannot count them.
fn hugepages(wanted: &v1::LinuxContainerResources) -> Vec<LinuxHugepageLimit> {
    let countable = counts_huge_pages(Path::new("/sys/fs/cgroup"));
    let wanted = wanted.hugepage_limits.iter().filter(|limit| countable || limit.limit > 0);
    wanted
        .map(|wanted| {
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(wanted.page_size.clone()).set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
            limit
        })
        .collect()
}

/// Whether the kernel can count huge pages of those whose cgroups are mounted there.
fn counts_huge_pages(cgroups: &Path) -> bool {
    // A directory alone is none of a controller's: tools make one for each that a kernel could have.
    cgroups.join("hugetlb/cgroup.procs").exists()
        || std::fs::read_to_string(cgroups.join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|controller| controller == "hugetlb"))
}

/// What is kept of a container's limits after an update, and what the runtime is told: what the update does not say stays,
/// and so does `oom_score_adj`, which processes have of their own from their start on.
pub(in crate::cri) fn update(
    before: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
) -> Result<(v1::LinuxContainerResources, LinuxResources)> {
    validate("linux", wanted)?;
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &str, old: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
    let mut after = before.clone();
    after.cpu_period = number(wanted.cpu_period, before.cpu_period);
    after.cpu_quota = number(wanted.cpu_quota, before.cpu_quota);
    after.cpu_shares = number(wanted.cpu_shares, before.cpu_shares);
    after.memory_limit_in_bytes = number(wanted.memory_limit_in_bytes, before.memory_limit_in_bytes);
    after.memory_swap_limit_in_bytes = match (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) {
        // Another memory limit without a word about swap: no swap, as when it was made.
        (limit, 0) if limit != 0 => 0,
        (_, swap) => number(swap, before.memory_swap_limit_in_bytes),
    };
    after.cpuset_cpus = text(&wanted.cpuset_cpus, &before.cpuset_cpus);
    after.cpuset_mems = text(&wanted.cpuset_mems, &before.cpuset_mems);
    after.unified.extend(wanted.unified.clone());
    if !wanted.hugepage_limits.is_empty() {
        after.hugepage_limits.clone_from(&wanted.hugepage_limits);
    }
    possible("linux", &after)?;
    let told = limits(&after)?;
    Ok((after, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_have_the_form_of_their_driver() {
        let pod = |parent: &str| v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig { cgroup_parent: parent.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let shown = |driver, parent: &str| cgroup_of(driver, &pod(parent), "c").display().to_string();
        assert_eq!(shown(CgroupDriver::Cgroupfs, "/kubepods/pod1"), "/kubepods/pod1/c");
        assert_eq!(shown(CgroupDriver::Cgroupfs, ""), "/k8s.io/c");
        assert_eq!(
            shown(CgroupDriver::Systemd, "/kubepods.slice/kubepods-pod1.slice"),
            "kubepods-pod1.slice:cri-containerd:c"
        );
        assert_eq!(shown(CgroupDriver::Systemd, ""), "system.slice:cri-containerd:c");
    }

    #[test]
    fn an_empty_directory_counts_no_huge_pages() {
        let root = tempfile::tempdir().expect("directory");
        assert!(!counts_huge_pages(root.path()));
        std::fs::create_dir(root.path().join("hugetlb")).expect("make");
        assert!(!counts_huge_pages(root.path()), "nothing is mounted on it");
        std::fs::write(root.path().join("hugetlb/cgroup.procs"), "").expect("write");
        assert!(counts_huge_pages(root.path()));
        let unified = tempfile::tempdir().expect("directory");
        for (controllers, counts) in [("cpu memory", false), ("cpu hugetlb", true)] {
            std::fs::write(unified.path().join("cgroup.controllers"), controllers).expect("write");
            assert_eq!(counts_huge_pages(unified.path()), counts, "{controllers}");
        }
    }

    #[test]
    fn an_update_changes_what_it_says() {
        let before = v1::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 27,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let wanted =
            v1::LinuxContainerResources { cpu_quota: 5000, memory_limit_in_bytes: 1 << 28, ..Default::default() };
        let (after, told) = update(&before, &wanted).expect("update");
        assert_eq!((after.cpu_shares, after.cpu_quota, after.memory_limit_in_bytes), (512, 5000, 1 << 28));
        assert_eq!(after.cpuset_cpus, "0");
        let none = v1::LinuxContainerResources { memory_limit_in_bytes: -1, oom_score_adj: 7, ..Default::default() };
        let (unlimited, said) = update(&after, &none).expect("no limit");
        let (limit, swap) = (unlimited.memory_limit_in_bytes, unlimited.memory_swap_limit_in_bytes);
        assert_eq!((limit, swap, unlimited.oom_score_adj), (-1, 0, 0));
        let memory = said.memory().expect("memory");
        assert_eq!((memory.limit(), memory.swap().unwrap_or(-1)), (Some(-1), -1));
        assert_eq!(told.memory().as_ref().and_then(|memory| memory.limit()), Some(1 << 28));
        assert_eq!(told.cpu().as_ref().and_then(|cpu| cpu.shares()), Some(512));
    }

    #[test]
    fn nonsense_is_named() {
        for (wanted, name) in [
            (v1::LinuxContainerResources { cpu_period: -1, ..Default::default() }, "cpu_period"),
            (v1::LinuxContainerResources { memory_limit_in_bytes: -2, ..Default::default() }, "memory_limit_in_bytes"),
            (
                v1::LinuxContainerResources {
                    hugepage_limits: vec![v1::HugepageLimit { page_size: "2 MB".into(), limit: 0 }],
                    ..Default::default()
                },
                "page_size",
            ),
            (v1::LinuxContainerResources { cpuset_cpus: "a".into(), ..Default::default() }, "cpuset_cpus"),
            (v1::LinuxContainerResources { cpuset_mems: "3-1".into(), ..Default::default() }, "cpuset_mems"),
            (
                v1::LinuxContainerResources {
                    unified: [("../x".to_owned(), "1".to_owned())].into(),
                    ..Default::default()
                },
                "unified",
            ),
        ] {
            let error = validate("config.linux.resources", &wanted).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
        let lists =
            v1::LinuxContainerResources { cpuset_cpus: "0,".into(), cpuset_mems: ",0".into(), ..Default::default() };
        assert!(validate("f", &lists).is_ok());
        let of = |cpu_period, cpu_quota, memory_limit_in_bytes, memory_swap_limit_in_bytes| {
            let wanted = v1::LinuxContainerResources {
                cpu_period,
                cpu_quota,
                memory_limit_in_bytes,
                memory_swap_limit_in_bytes,
                ..Default::default()
            };
            possible("f", &wanted).map_err(|error| error.to_string())
        };
        for fine in [of(0, 0, 0, 0), of(1000, 1000, 4096, 4096), of(1_000_000, -1, 4096, -1), of(0, -5, 0, 1)] {
            assert_eq!(fine, Ok(()));
        }
        let wrong = [of(999, 0, 0, 0), of(1_000_001, 0, 0, 0), of(0, 999, 0, 0), of(0, 0, 4096, 4095)];
        let fields = wrong.map(|wrong| wrong.expect_err("wrong").split(':').next().expect("field").to_owned());
        assert_eq!(fields, ["f.cpu_period", "f.cpu_period", "f.cpu_quota", "f.memory_swap_limit_in_bytes"]);
    }
}
