//! Counters of a cgroup, straight from its files, the same for both versions.
//!
//! What a kernel does not count stays absent. The parsers take text; [`Cgroup::read`] reads the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rung_sys::cgroupfs::{CgroupDir, Version, memberships, version_at};

use crate::error::{Error, Result};

/// Where the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Version 1 counts processor time of cgroups in ticks of a hundredth of a second.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
const NANOSECONDS_PER_MICROSECOND: u64 = 1000;
/// Version 1 writes "no limit" as the largest number of pages.
const UNLIMITED: u64 = 1 << 62;

/// How much of a cgroup is read. Each file costs a kubelet that asks for hundreds of them every few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cri) enum Extent {
    /// What statistics say: the use of processors, memory and swap, waiting, and the number of processes.
    Use,
    /// What metrics say as well.
    Everything,
}

/// The open directories of one cgroup.
pub(super) enum Cgroup {
    /// Version 2: one directory.
    Unified(CgroupDir),
    /// Version 1: one for each controller.
    Legacy(BTreeMap<String, CgroupDir>),
}

/// Everything that is counted of a cgroup. Times are in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::cri) struct Counters {
    pub(in crate::cri) cpu: Cpu,
    pub(in crate::cri) memory: Memory,
    pub(in crate::cri) io: Vec<Device>,
    pub(in crate::cri) io_pressure: Option<Pressure>,
    pub(in crate::cri) processes: Option<u64>,
    pub(in crate::cri) processes_max: Option<u64>,
    pub(in crate::cri) huge_pages: Vec<HugePages>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::cri) struct Cpu {
    pub(in crate::cri) usage: u64,
    pub(in crate::cri) user: u64,
    pub(in crate::cri) system: u64,
    pub(in crate::cri) periods: u64,
    pub(in crate::cri) throttled_periods: u64,
    pub(in crate::cri) throttled: u64,
    pub(in crate::cri) pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::cri) struct Memory {
    pub(in crate::cri) usage: u64,
    pub(in crate::cri) max_usage: u64,
    pub(in crate::cri) limit: Option<u64>,
    pub(in crate::cri) active_file: u64,
    pub(in crate::cri) inactive_file: u64,
    pub(in crate::cri) anonymous: u64,
    pub(in crate::cri) cache: u64,
    pub(in crate::cri) mapped_file: u64,
    pub(in crate::cri) kernel: u64,
    pub(in crate::cri) faults: u64,
    pub(in crate::cri) major_faults: u64,
    pub(in crate::cri) limit_hits: u64,
    pub(in crate::cri) oom_kills: u64,
    pub(in crate::cri) swap: Option<u64>,
    pub(in crate::cri) swap_limit: Option<u64>,
    pub(in crate::cri) pressure: Option<Pressure>,
}

impl Memory {
    /// What cannot be given back at once.
    pub(in crate::cri) fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// How long processes waited for something: some of them, and all at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::cri) struct Pressure {
    pub(in crate::cri) some: Stall,
    pub(in crate::cri) full: Stall,
}

/// A share of the last seconds in percent, and microseconds in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::cri) struct Stall {
    pub(in crate::cri) avg10: f64,
    pub(in crate::cri) avg60: f64,
    pub(in crate::cri) avg300: f64,
    pub(in crate::cri) total: u64,
}

/// What was read from and written to a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cri) struct Device {
    pub(in crate::cri) major: u32,
    pub(in crate::cri) minor: u32,
    pub(in crate::cri) read_bytes: u64,
    pub(in crate::cri) written_bytes: u64,
    pub(in crate::cri) reads: u64,
    pub(in crate::cri) writes: u64,
}

/// Huge pages of one size, such as `2MB`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cri) struct HugePages {
    pub(in crate::cri) size: String,
    pub(in crate::cri) usage: u64,
    pub(in crate::cri) max_usage: u64,
}

impl Cgroup {
    /// The cgroup of a process.
    ///
    /// # Errors
    /// `NotFound` when the process has ended.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let table = std::fs::read(format!("/proc/{pid}/cgroup")).map_err(Error::from)?;
        Self::open(|controller| path_of(&table, controller))
    }

    /// The cgroup at one path in every hierarchy.
    ///
    /// # Errors
    /// `NotFound` without such a cgroup.
    pub(super) fn at(path: &str) -> Result<Self> {
        Self::open(|_| Some(path.into()))
    }

    fn open(path: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let missing = || Error::not_found("cgroup: not found");
        let join = |mount: &Path, path: &Path| mount.join(path.strip_prefix("/").unwrap_or(path));
        let mount = Path::new(MOUNT);
        if version_at(mount) == Some(Version::V2) {
            let path = path("").ok_or_else(missing)?;
            let dir = CgroupDir::open(&join(mount, &path)).map_err(|error| missing().context(error))?;
            return Ok(Self::Unified(dir));
        }
        let mut dirs = BTreeMap::new();
        for controller in ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"] {
            let Some(path) = path(controller) else { continue };
            if let Ok(dir) = CgroupDir::open(&join(&mount.join(controller), &path)) {
                dirs.insert(controller.to_owned(), dir);
            }
        }
        if dirs.is_empty() { Err(missing()) } else { Ok(Self::Legacy(dirs)) }
    }

    /// The counters now.
    ///
    /// # Errors
    /// `NotFound` once the cgroup is gone.
    pub(super) fn read(&self, extent: Extent) -> Result<Counters> {
        match self {
            Self::Unified(dir) => unified(dir, extent),
            Self::Legacy(dirs) => legacy(dirs, extent),
        }
    }
}

impl Counters {
    /// Both together. Pressure does not add up.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.cpu.usage += other.cpu.usage;
        self.cpu.user += other.cpu.user;
        self.cpu.system += other.cpu.system;
        self.memory.usage += other.memory.usage;
        self.memory.active_file += other.memory.active_file;
        self.memory.inactive_file += other.memory.inactive_file;
        self.memory.anonymous += other.memory.anonymous;
        self.memory.faults += other.memory.faults;
        self.memory.major_faults += other.memory.major_faults;
        self
    }
}

/// The path of a controller's hierarchy in `/proc/PID/cgroup`; version 2's for an empty name.
fn path_of(table: &[u8], controller: &str) -> Option<PathBuf> {
    let is_it = |names: &[String]| match controller {
        "" => names.is_empty(),
        controller => names.iter().any(|name| name == controller),
    };
    memberships(table).find_map(|(names, path)| is_it(&names).then_some(path))
}

fn gone(_: rung_sys::Error) -> Error {
    Error::not_found("cgroup: is gone")
}

fn unified(dir: &CgroupDir, extent: Extent) -> Result<Counters> {
    let everything = extent == Extent::Everything;
    let text = |file: &str| dir.read(file).unwrap_or_default();
    let more = |file: &str| if everything { text(file) } else { String::new() };
    let (cpu, memory, events) = (dir.read("cpu.stat").map_err(gone)?, text("memory.stat"), more("memory.events"));
    let (cpu, memory, events) = (keyed(&cpu), keyed(&memory), keyed(&events));
    let time = |key: &str| get(&cpu, key).saturating_mul(NANOSECONDS_PER_MICROSECOND);
    Ok(Counters {
        cpu: Cpu {
            usage: time("usage_usec"),
            user: time("user_usec"),
            system: time("system_usec"),
            periods: get(&cpu, "nr_periods"),
            throttled_periods: get(&cpu, "nr_throttled"),
            throttled: time("throttled_usec"),
            pressure: pressure(&text("cpu.pressure")),
        },
        memory: Memory {
            usage: number(&text("memory.current")).unwrap_or(0),
            max_usage: number(&more("memory.peak")).unwrap_or(0),
            limit: number(&text("memory.max")),
            active_file: get(&memory, "active_file"),
            inactive_file: get(&memory, "inactive_file"),
            anonymous: get(&memory, "anon"),
            cache: get(&memory, "file"),
            mapped_file: get(&memory, "file_mapped"),
            kernel: get(&memory, "kernel"),
            faults: get(&memory, "pgfault"),
            major_faults: get(&memory, "pgmajfault"),
            limit_hits: get(&events, "max"),
            oom_kills: get(&events, "oom_kill"),
            swap: number(&text("memory.swap.current")),
            swap_limit: number(&text("memory.swap.max")),
            pressure: pressure(&text("memory.pressure")),
        },
        io: io_stat(&more("io.stat")),
        io_pressure: pressure(&text("io.pressure")),
        processes: number(&text("pids.current")),
        processes_max: number(&more("pids.max")),
        huge_pages: if everything { huge_pages(dir, ".current", ".current") } else { Vec::new() },
    })
}

fn legacy(dirs: &BTreeMap<String, CgroupDir>, extent: Extent) -> Result<Counters> {
    let everything = extent == Extent::Everything;
    let text =
        |controller: &str, file: &str| dirs.get(controller).and_then(|dir| dir.read(file).ok()).unwrap_or_default();
    let more = |controller: &str, file: &str| if everything { text(controller, file) } else { String::new() };
    // The one file that every container has tells whether its cgroup is still there.
    let time = dirs.get("cpuacct").map(|dir| dir.read("cpuacct.usage").map_err(gone)).transpose()?.unwrap_or_default();
    let (ticks, cpu) = (more("cpuacct", "cpuacct.stat"), more("cpu", "cpu.stat"));
    let (memory, oom) = (text("memory", "memory.stat"), more("memory", "memory.oom_control"));
    let (ticks, cpu, memory, oom) = (keyed(&ticks), keyed(&cpu), keyed(&memory), keyed(&oom));
    let of_memory = |file: &str| number(&text("memory", &format!("memory.{file}")));
    let more_of_memory = |file: &str| if everything { of_memory(file) } else { None };
    let limit = |file: &str| of_memory(file).filter(|limit| *limit < UNLIMITED);
    let memory_limit = limit("limit_in_bytes");
    let swap_limit = limit("memsw.limit_in_bytes").zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory));
    let usage = of_memory("usage_in_bytes").unwrap_or(0);
    Ok(Counters {
        cpu: Cpu {
            usage: number(&time).unwrap_or(0),
            user: get(&ticks, "user").saturating_mul(NANOSECONDS_PER_TICK),
            system: get(&ticks, "system").saturating_mul(NANOSECONDS_PER_TICK),
            periods: get(&cpu, "nr_periods"),
            throttled_periods: get(&cpu, "nr_throttled"),
            throttled: get(&cpu, "throttled_time"),
            pressure: None,
        },
        memory: Memory {
            usage,
            max_usage: more_of_memory("max_usage_in_bytes").unwrap_or(0),
            limit: memory_limit,
            active_file: get(&memory, "total_active_file"),
            inactive_file: get(&memory, "total_inactive_file"),
            anonymous: get(&memory, "total_rss"),
            cache: get(&memory, "total_cache"),
            mapped_file: get(&memory, "total_mapped_file"),
            kernel: more_of_memory("kmem.usage_in_bytes").unwrap_or(0),
            faults: get(&memory, "total_pgfault"),
            major_faults: get(&memory, "total_pgmajfault"),
            limit_hits: more_of_memory("failcnt").unwrap_or(0),
            oom_kills: get(&oom, "oom_kill"),
            swap: of_memory("memsw.usage_in_bytes").map(|both| both.saturating_sub(usage)),
            swap_limit,
            pressure: None,
        },
        io: block_io(
            &more("blkio", "blkio.throttle.io_service_bytes_recursive"),
            &more("blkio", "blkio.throttle.io_serviced_recursive"),
        ),
        io_pressure: None,
        processes: number(&text("pids", "pids.current")),
        processes_max: number(&more("pids", "pids.max")),
        huge_pages: dirs
            .get("hugetlb")
            .filter(|_| everything)
            .map(|dir| huge_pages(dir, ".usage_in_bytes", ".max_usage_in_bytes"))
            .unwrap_or_default(),
    })
}

/// A number; `None` for `max` and for nothing.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a key and a number.
fn keyed(text: &str) -> BTreeMap<&str, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key, value.trim().parse().ok()?))).collect()
}

fn get(all: &BTreeMap<&str, u64>, key: &str) -> u64 {
    all.get(key).copied().unwrap_or(0)
}

/// Words `key=value` of a line.
fn words(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let values = words(text.lines().find(|line| line.starts_with(kind))?);
        let average = |key: &str| values.get(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        let total = values.get("total").and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(Stall { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
    };
    // Older kernels do not know whether all processes waited for a processor.
    Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
}

fn device_number(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn io_stat(text: &str) -> Vec<Device> {
    let device = |line: &str| {
        let (major, minor) = device_number(line.split_whitespace().next()?)?;
        let values = words(line);
        let get = |key: &str| values.get(key).and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(Device {
            major,
            minor,
            read_bytes: get("rbytes"),
            written_bytes: get("wbytes"),
            reads: get("rios"),
            writes: get("wios"),
        })
    };
    text.lines().filter_map(device).collect()
}

/// Version 1: lines `major:minor operation value`, bytes and operations in a file each.
fn block_io(bytes: &str, operations: &str) -> Vec<Device> {
    let mut devices: BTreeMap<(u32, u32), Device> = BTreeMap::new();
    let mut each = |text: &str, set: fn(&mut Device, &str, u64)| {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let place = words.next().and_then(device_number);
            let (Some((major, minor)), Some(operation), Some(value)) = (place, words.next(), words.next()) else {
                continue;
            };
            let empty = || Device { major, minor, ..Device::default() };
            set(devices.entry((major, minor)).or_insert_with(empty), operation, value.parse().unwrap_or(0));
        }
    };
    each(bytes, |device, operation, value| match operation {
        "Read" => device.read_bytes = value,
        "Write" => device.written_bytes = value,
        _ => {}
    });
    each(operations, |device, operation, value| match operation {
        "Read" => device.reads = value,
        "Write" => device.writes = value,
        _ => {}
    });
    devices.into_values().collect()
}

/// The sizes of huge pages that the machine has.
fn huge_pages(dir: &CgroupDir, usage: &str, max_usage: &str) -> Vec<HugePages> {
    let sizes = super::huge_page_sizes();
    let read = |size: &str, file: &str| number(&dir.read(&format!("hugetlb.{size}{file}")).ok()?);
    let pages = sizes.iter().filter_map(|size| {
        let now = read(size, usage)?;
        Some(HugePages { size: size.clone(), usage: now, max_usage: read(size, max_usage).unwrap_or(now) })
    });
    pages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_versions_are_understood() {
        // Of the others, somebody's name may be no text.
        let proc = b"12:cpu,cpuacct:/pod/a\n4:memory:/pod/a\n1:name=systemd:/s\xe9rvice\n0::/unified/a\n";
        assert_eq!(path_of(proc, "cpuacct").as_deref(), Some(Path::new("/pod/a")));
        assert_eq!(path_of(proc, "").as_deref(), Some(Path::new("/unified/a")));
        assert_eq!(path_of(proc, "pids"), None);
        let stat = keyed("usage_usec 12\nuser_usec 3\nbroken\n");
        assert_eq!((get(&stat, "usage_usec"), get(&stat, "none")), (12, 0));
        assert_eq!((number("max\n"), number("7\n")), (None, Some(7)));
    }

    #[test]
    fn pressure_is_read_as_far_as_the_kernel_knows_it() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=42\n";
        let read = pressure(text).expect("pressure");
        assert_eq!((read.some.avg10, read.some.total, read.full), (1.5, 42, Stall::default()));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn devices_are_the_same_in_both_versions() {
        let expected = Device { major: 8, minor: 0, read_bytes: 4096, written_bytes: 512, reads: 2, writes: 1 };
        let unified = "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n";
        assert_eq!(io_stat(unified), vec![expected.clone()]);
        let bytes = "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\nTotal 4608\n";
        assert_eq!(block_io(bytes, "8:0 Read 2\n8:0 Write 1\n"), vec![expected]);
    }
}
