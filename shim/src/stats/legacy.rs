//! Version 1 counters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gantry_proto::io::containerd::cgroups::v1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, RdmaEntry, RdmaStat, Throttle,
};

use crate::stats::cgroup::{Cgroup, between, keyed, number, parse};
use crate::{Error, Result};

/// The kernel counts processor time of cgroups in ticks of a hundredth of a second.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Metrics> {
    let directory = |name: &str| cgroup.controller(name).filter(|dir| dir.is_dir());
    if ["memory", "cpu", "cpuacct", "pids", "blkio"].iter().all(|name| directory(name).is_none()) {
        return Err(Error::not_found("the container's cgroup is gone"));
    }
    Ok(Metrics {
        hugetlb: directory("hugetlb").map(|dir| hugetlb(&dir)).unwrap_or_default(),
        pids: directory("pids").map(|dir| PidsStat {
            current: number(&dir, "pids.current").unwrap_or(0),
            // No limit is zero here, unlike in version 2.
            limit: number(&dir, "pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0),
        }),
        cpu: Some(cpu(directory("cpuacct").as_deref(), directory("cpu").as_deref())),
        memory: directory("memory").map(|dir| memory(&dir)),
        blkio: directory("blkio").map(|dir| blkio(&dir)),
        rdma: directory("rdma").map(|dir| RdmaStat { current: rdma(&dir, "current"), limit: rdma(&dir, "max") }),
        network: Vec::new(),
        cgroup_stats: None,
        memory_oom_control: directory("memory").map(|dir| {
            let lines = keyed(&dir, "memory.oom_control");
            let get = |key: &str| lines.get(key).copied().unwrap_or(0);
            MemoryOomControl {
                oom_kill_disable: get("oom_kill_disable"),
                under_oom: get("under_oom"),
                oom_kill: get("oom_kill"),
            }
        }),
    })
}

fn cpu(accounting: Option<&Path>, scheduler: Option<&Path>) -> CpuStat {
    let usage = accounting.map(|dir| {
        let ticks = keyed(dir, "cpuacct.stat");
        let time = |key: &str| ticks.get(key).copied().unwrap_or(0).saturating_mul(NANOSECONDS_PER_TICK);
        let per_cpu = fs::read_to_string(dir.join("cpuacct.usage_percpu")).unwrap_or_default();
        CpuUsage {
            total: number(dir, "cpuacct.usage").unwrap_or(0),
            kernel: time("system"),
            user: time("user"),
            per_cpu: per_cpu.split_whitespace().filter_map(|value| value.parse().ok()).collect(),
        }
    });
    let throttling = scheduler.map(|dir| {
        let lines = keyed(dir, "cpu.stat");
        let get = |key: &str| lines.get(key).copied().unwrap_or(0);
        Throttle {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: get("throttled_time"),
        }
    });
    CpuStat { usage, throttling }
}

fn memory(dir: &Path) -> MemoryStat {
    let lines = keyed(dir, "memory.stat");
    let get = |key: &str| lines.get(key).copied().unwrap_or(0);
    let entry = |module: &str| {
        let read = |file: &str| number(dir, &format!("memory.{module}{file}"));
        Some(MemoryEntry {
            limit: read("limit_in_bytes").unwrap_or(0),
            usage: read("usage_in_bytes")?,
            max: read("max_usage_in_bytes").unwrap_or(0),
            failcnt: read("failcnt").unwrap_or(0),
        })
    };
    MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    }
}

fn hugetlb(dir: &Path) -> Vec<HugetlbStat> {
    let sizes = between(dir, "hugetlb.", ".usage_in_bytes").into_iter().filter(|size| !size.contains('.'));
    sizes
        .map(|size| {
            let read = |file: &str| number(dir, &format!("hugetlb.{size}.{file}")).unwrap_or(0);
            HugetlbStat {
                usage: read("usage_in_bytes"),
                max: read("max_usage_in_bytes"),
                failcnt: read("failcnt"),
                pagesize: size.clone(),
            }
        })
        .collect()
}

fn blkio(dir: &Path) -> BlkIoStat {
    // The throttling policy counts on every device; the weight policy's files are there only under its scheduler.
    let first = |names: [&str; 2]| {
        let lists = names.map(|name| entries(dir, &format!("blkio.{name}")));
        lists.into_iter().find(|list| !list.is_empty()).unwrap_or_default()
    };
    let one = |name: &str| entries(dir, &format!("blkio.{name}"));
    BlkIoStat {
        io_service_bytes_recursive: first(["bfq.io_service_bytes_recursive", "throttle.io_service_bytes_recursive"]),
        io_serviced_recursive: first(["bfq.io_serviced_recursive", "throttle.io_serviced_recursive"]),
        io_queued_recursive: one("bfq.io_queued_recursive"),
        io_service_time_recursive: one("bfq.io_service_time_recursive"),
        io_wait_time_recursive: one("bfq.io_wait_time_recursive"),
        io_merged_recursive: one("bfq.io_merged_recursive"),
        io_time_recursive: one("bfq.time_recursive"),
        sectors_recursive: one("bfq.sectors_recursive"),
    }
}

/// Lines `major:minor [operation] value`; the sum at the end has no device.
fn entries(dir: &Path, file: &str) -> Vec<BlkIoEntry> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = match (words.next()?, words.next()) {
            (op, Some(value)) => (op.to_owned(), value),
            (value, None) => (String::new(), value),
        };
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some(BlkIoEntry { op, device: device(major, minor), major, minor, value: value.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

fn device(major: u64, minor: u64) -> String {
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn rdma(dir: &Path, file: &str) -> Vec<RdmaEntry> {
    let text = fs::read_to_string(dir.join(format!("rdma.{file}"))).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let device = words.next()?.to_owned();
        let values: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let get = |key: &str| {
            let value = values.get(key).and_then(|value| parse(value)).unwrap_or(0);
            u32::try_from(value).unwrap_or(u32::MAX)
        };
        Some(RdmaEntry { device, hca_handles: get("hca_handle"), hca_objects: get("hca_object") })
    };
    text.lines().filter_map(entry).collect()
}
