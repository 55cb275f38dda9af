//! Version 2 counters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gantry_proto::io::containerd::cgroups::v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData, PsiStats, RdmaEntry,
    RdmaStat,
};

use crate::stats::cgroup::{between, keyed, number, parse};
use crate::{Error, Result};

pub(super) fn read(dir: &Path) -> Result<Metrics> {
    if !dir.is_dir() {
        return Err(Error::not_found(format!("the container's cgroup {} is gone", dir.display())));
    }
    let events = keyed(dir, "memory.events");
    let event = |key: &str| events.get(key).copied().unwrap_or(0);
    Ok(Metrics {
        pids: number(dir, "pids.current")
            .map(|current| PidsStat { current, limit: number(dir, "pids.max").unwrap_or(u64::MAX) }),
        cpu: Some(cpu(dir)),
        memory: number(dir, "memory.current").map(|usage| memory(dir, usage)),
        rdma: dir
            .join("rdma.current")
            .exists()
            .then(|| RdmaStat { current: rdma(dir, "rdma.current"), limit: rdma(dir, "rdma.max") }),
        io: Some(IoStat { usage: io(dir), psi: pressure(dir, "io.pressure") }),
        hugetlb: hugetlb(dir),
        memory_events: (!events.is_empty()).then(|| MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            oom_group_kill: event("oom_group_kill"),
        }),
        network: Vec::new(),
    })
}

fn cpu(dir: &Path) -> CpuStat {
    let lines = keyed(dir, "cpu.stat");
    let get = |key: &str| lines.get(key).copied().unwrap_or(0);
    CpuStat {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        psi: pressure(dir, "cpu.pressure"),
        nr_bursts: get("nr_bursts"),
        burst_usec: get("burst_usec"),
    }
}

fn memory(dir: &Path, usage: u64) -> MemoryStat {
    let lines = keyed(dir, "memory.stat");
    let get = |key: &str| lines.get(key).copied().unwrap_or(0);
    MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        // Kernels since 5.9 count anonymous and file pages apart.
        workingset_refault: get("workingset_refault_anon") + get("workingset_refault_file") + get("workingset_refault"),
        workingset_activate: get("workingset_activate_anon")
            + get("workingset_activate_file")
            + get("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage,
        usage_limit: number(dir, "memory.max").unwrap_or(u64::MAX),
        swap_usage: number(dir, "memory.swap.current").unwrap_or(0),
        swap_limit: number(dir, "memory.swap.max").unwrap_or(0),
        max_usage: number(dir, "memory.peak").unwrap_or(0),
        swap_max_usage: number(dir, "memory.swap.peak").unwrap_or(0),
        psi: pressure(dir, "memory.pressure"),
    }
}

/// Words `key=value` of a line.
fn words(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

fn io(dir: &Path) -> Vec<IoEntry> {
    let text = fs::read_to_string(dir.join("io.stat")).unwrap_or_default();
    let entry = |line: &str| {
        let (major, minor) = line.split_whitespace().next()?.split_once(':')?;
        let values = words(line);
        let get = |key: &str| values.get(key).and_then(|value| parse(value)).unwrap_or(0);
        Some(IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
        })
    };
    text.lines().filter_map(entry).collect()
}

fn pressure(dir: &Path, file: &str) -> Option<PsiStats> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let data = |kind: &str| {
        let values = words(text.lines().find(|line| line.starts_with(kind))?);
        let average = |key: &str| values.get(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(PsiData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: values.get("total").and_then(|value| parse(value)).unwrap_or(0),
        })
    };
    Some(PsiStats { some: data("some"), full: data("full") })
}

fn hugetlb(dir: &Path) -> Vec<HugeTlbStat> {
    let sizes = between(dir, "hugetlb.", ".current").into_iter().filter(|size| !size.contains('.'));
    sizes
        .map(|size| HugeTlbStat {
            current: number(dir, &format!("hugetlb.{size}.current")).unwrap_or(0),
            max: number(dir, &format!("hugetlb.{size}.max")).unwrap_or(u64::MAX),
            failcnt: keyed(dir, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0),
            pagesize: size,
        })
        .collect()
}

fn rdma(dir: &Path, file: &str) -> Vec<RdmaEntry> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let entry = |line: &str| {
        let values = words(line);
        let get = |key: &str| {
            let value = values.get(key).and_then(|value| parse(value)).unwrap_or(0);
            u32::try_from(value).unwrap_or(u32::MAX)
        };
        let device = line.split_whitespace().next()?.to_owned();
        Some(RdmaEntry { device, hca_handles: get("hca_handle"), hca_objects: get("hca_object") })
    };
    text.lines().filter_map(entry).collect()
}
