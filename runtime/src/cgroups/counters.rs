//! Reading the counters of [`super::stats`].
//!
//! Every file is optional: which exist depends on the kernel, its configuration and the version of the hierarchy. What
//! is not there is absent or zero, as runc has it.

use rung_sys::cgroupfs::{CgroupDir, flat_keyed, flat_value, nested_keyed, single};

use super::error::Result;
use super::stats::{Blkio, BlkioEntry, CpuUsage, Cpuset, Hugetlb, Memory, MemoryEntry, Pids, Psi, Stats, Throttling};
use super::{Cgroup, Place};

/// The files of one directory, each optional.
struct Files<'a>(&'a CgroupDir);

impl Files<'_> {
    fn text(&self, file: &str) -> Result<String> {
        Ok(self.0.read_optional(file)?.unwrap_or_default())
    }

    fn number(&self, file: &str) -> Result<u64> {
        Ok(single(&self.text(file)?).unwrap_or(0))
    }

    fn psi(&self, file: &str) -> Result<Option<Psi>> {
        Ok(self.0.read_optional(file)?.as_deref().and_then(psi))
    }
}

impl Cgroup {
    /// What the container has used.
    ///
    /// # Errors
    /// When a file that is there cannot be read, or the v2 cgroup is gone.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for place in &self.places {
            let dir = match place.open()? {
                Some(dir) => dir,
                // Zeros would be a lie. Of v1 there may be none of a controller that nobody needed.
                None if self.is_unified() => return Err(place.gone()),
                None => continue,
            };
            let files = Files(&dir);
            if !place.hierarchy.is_v2() {
                legacy(place, &files, &mut stats)?;
            } else if self.is_unified() {
                unified(&files, &mut stats)?;
            } else {
                // On a hybrid host v2 has what v1 left over.
                hugetlb(&files, &mut stats, true)?;
            }
        }
        Ok(stats)
    }
}

fn legacy(place: &Place, files: &Files<'_>, stats: &mut Stats) -> Result<()> {
    let has = |name: &str| place.hierarchy.has(name);
    if has("cpuacct") {
        legacy_cpu_usage(files, &mut stats.cpu.usage)?;
    }
    if has("cpu") {
        let text = files.text("cpu.stat")?;
        stats.cpu.throttling = throttling(&text, "throttled_time", 1);
    }
    if has("cpuset") {
        legacy_cpuset(files, &mut stats.cpuset)?;
    }
    if has("memory") {
        legacy_memory(files, &mut stats.memory)?;
    }
    if has("pids") {
        pids(files, &mut stats.pids)?;
    }
    if has("blkio") {
        legacy_blkio(files, &mut stats.blkio)?;
    }
    if has("hugetlb") {
        hugetlb(files, stats, false)?;
    }
    Ok(())
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn legacy_cpu_usage(files: &Files<'_>, usage: &mut CpuUsage) -> Result<()> {
    /// Nanoseconds in one unit of `cpuacct.stat`, whose clock Linux fixes at 100 Hz for programs.
    const TICK: u64 = 10_000_000;
    usage.total = files.number("cpuacct.usage")?;
    usage.percpu = numbers(&files.text("cpuacct.usage_percpu")?);
    let stat = files.text("cpuacct.stat")?;
    usage.user = flat_value(&stat, "user").unwrap_or(0) * TICK;
    usage.kernel = flat_value(&stat, "system").unwrap_or(0) * TICK;
    // cpu user system
    for line in files.text("cpuacct.usage_all")?.lines().skip(1) {
        if let [_, user, kernel] = numbers(line)[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(())
}

fn throttling(text: &str, time: &str, nanoseconds: u64) -> Throttling {
    let value = |key: &str| flat_value(text, key).unwrap_or(0);
    Throttling {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value(time) * nanoseconds,
    }
}

/// `0-2,5` as its numbers.
fn number_list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn legacy_cpuset(files: &Files<'_>, cpuset: &mut Cpuset) -> Result<()> {
    cpuset.cpus = number_list(&files.text("cpuset.cpus")?);
    cpuset.mems = number_list(&files.text("cpuset.mems")?);
    cpuset.cpu_exclusive = files.number("cpuset.cpu_exclusive")?;
    cpuset.mem_hardwall = files.number("cpuset.mem_hardwall")?;
    cpuset.mem_exclusive = files.number("cpuset.mem_exclusive")?;
    cpuset.memory_migrate = files.number("cpuset.memory_migrate")?;
    cpuset.memory_spread_page = files.number("cpuset.memory_spread_page")?;
    cpuset.memory_spread_slab = files.number("cpuset.memory_spread_slab")?;
    cpuset.memory_pressure = files.number("cpuset.memory_pressure")?;
    cpuset.sched_load_balance = files.number("cpuset.sched_load_balance")?;
    cpuset.sched_relax_domain_level = files.text("cpuset.sched_relax_domain_level")?.trim().parse().unwrap_or(0);
    Ok(())
}

fn legacy_memory(files: &Files<'_>, memory: &mut Memory) -> Result<()> {
    memory.raw = flat_keyed(&files.text("memory.stat")?).map(|(key, value)| (key.to_owned(), value)).collect();
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    let entry = |kind: &str| -> Result<MemoryEntry> {
        Ok(MemoryEntry {
            limit: files.number(&format!("memory.{kind}limit_in_bytes"))?,
            usage: files.number(&format!("memory.{kind}usage_in_bytes"))?,
            max: files.number(&format!("memory.{kind}max_usage_in_bytes"))?,
            failcnt: files.number(&format!("memory.{kind}failcnt"))?,
        })
    };
    memory.usage = entry("")?;
    memory.swap = entry("memsw.")?;
    memory.kernel = entry("kmem.")?;
    memory.kernel_tcp = entry("kmem.tcp.")?;
    Ok(())
}

fn pids(files: &Files<'_>, pids: &mut Pids) -> Result<()> {
    pids.current = files.number("pids.current")?;
    pids.limit = single(&files.text("pids.max")?).filter(|&limit| limit != u64::MAX).unwrap_or(0);
    Ok(())
}

fn legacy_blkio(files: &Files<'_>, blkio: &mut Blkio) -> Result<()> {
    // Only a scheduler that is in use counts; the throttling layer counts always.
    for scheduler in ["blkio.bfq.", "blkio."] {
        let read = |name: &str| -> Result<Vec<BlkioEntry>> {
            Ok(blkio_entries(&files.text(&format!("{scheduler}{name}_recursive"))?))
        };
        blkio.io_serviced_recursive = read("io_serviced")?;
        if !blkio.io_serviced_recursive.is_empty() {
            blkio.io_service_bytes_recursive = read("io_service_bytes")?;
            blkio.io_queue_recursive = read("io_queued")?;
            blkio.io_service_time_recursive = read("io_service_time")?;
            blkio.io_wait_time_recursive = read("io_wait_time")?;
            blkio.io_merged_recursive = read("io_merged")?;
            blkio.io_time_recursive = read("time")?;
            blkio.sectors_recursive = read("sectors")?;
            return Ok(());
        }
    }
    blkio.io_serviced_recursive = blkio_entries(&files.text("blkio.throttle.io_serviced_recursive")?);
    blkio.io_service_bytes_recursive = blkio_entries(&files.text("blkio.throttle.io_service_bytes_recursive")?);
    Ok(())
}

/// `8:0 Read 5` lines, or `8:0 5`; the sum of all devices is left out.
fn blkio_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (device, op, value) = match words[..] {
            [device, op, value] => (device, op, value),
            [device, value] => (device, "", value),
            _ => return None,
        };
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some(BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb(files: &Files<'_>, stats: &mut Stats, v2: bool) -> Result<()> {
    for size in libcgroups::stats::supported_page_sizes().unwrap_or_default() {
        let read = |name: &str| Ok(files.0.read_optional(&format!("hugetlb.{size}.{name}"))?);
        if let Some(pages) = huge_pages(v2, read)? {
            stats.hugetlb.insert(size, pages);
        }
    }
    Ok(())
}

/// Pages of one size, whose files `read` reads: what is reserved, which is what the kernel refuses more of, or on a
/// kernel before 5.7 what is used.
fn huge_pages(v2: bool, read: impl Fn(&str) -> Result<Option<String>>) -> Result<Option<Hugetlb>> {
    for kind in ["rsvd.", ""] {
        let usage = format!("{kind}{}", if v2 { "current" } else { "usage_in_bytes" });
        let Some(usage) = read(&usage)?.as_deref().map(single) else { continue };
        let mut pages = Hugetlb { usage: usage.unwrap_or(0), ..Hugetlb::default() };
        if v2 {
            pages.failcnt = read("events")?.and_then(|events| flat_value(&events, "max")).unwrap_or(0);
        } else {
            let number =
                |name| -> Result<u64> { Ok(read(&format!("{kind}{name}"))?.as_deref().and_then(single).unwrap_or(0)) };
            (pages.max, pages.failcnt) = (number("max_usage_in_bytes")?, number("failcnt")?);
        }
        return Ok(Some(pages));
    }
    Ok(None)
}

fn unified(files: &Files<'_>, stats: &mut Stats) -> Result<()> {
    const MICROSECOND: u64 = 1000;
    let text = files.text("cpu.stat")?;
    let value = |key: &str| flat_value(&text, key).unwrap_or(0) * MICROSECOND;
    stats.cpu.usage.total = value("usage_usec");
    stats.cpu.usage.user = value("user_usec");
    stats.cpu.usage.kernel = value("system_usec");
    stats.cpu.throttling = throttling(&text, "throttled_usec", MICROSECOND);
    stats.cpu.psi = files.psi("cpu.pressure")?;
    stats.cpuset.cpus = number_list(&files.text("cpuset.cpus.effective")?);
    stats.cpuset.mems = number_list(&files.text("cpuset.mems.effective")?);
    unified_memory(files, &mut stats.memory)?;
    pids(files, &mut stats.pids)?;
    unified_io(&files.text("io.stat")?, &mut stats.blkio);
    stats.blkio.psi = files.psi("io.pressure")?;
    hugetlb(files, stats, true)
}

fn unified_memory(files: &Files<'_>, memory: &mut Memory) -> Result<()> {
    memory.raw = flat_keyed(&files.text("memory.stat")?).map(|(key, value)| (key.to_owned(), value)).collect();
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    let events = files.text("memory.events")?;
    memory.usage = MemoryEntry {
        limit: files.number("memory.max")?,
        usage: files.number("memory.current")?,
        max: files.number("memory.peak")?,
        failcnt: flat_value(&events, "max").unwrap_or(0),
    };
    // v1 counts memory and swap together, and so does this form.
    memory.swap = MemoryEntry {
        limit: files.number("memory.swap.max")?.saturating_add(memory.usage.limit),
        usage: files.number("memory.swap.current")?.saturating_add(memory.usage.usage),
        max: 0,
        failcnt: flat_value(&files.text("memory.swap.events")?, "fail").unwrap_or(0),
    };
    memory.kernel.usage = memory.raw.get("kernel").copied().unwrap_or(0);
    memory.kernel_tcp.usage = memory.raw.get("sock").copied().unwrap_or(0);
    memory.psi = files.psi("memory.pressure")?;
    Ok(())
}

fn unified_io(text: &str, blkio: &mut Blkio) {
    for (device, pairs) in nested_keyed(text) {
        let Some((Ok(major), Ok(minor))) = device.split_once(':').map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (key, value) in pairs {
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut blkio.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                "dios" => (&mut blkio.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().unwrap_or(0) });
        }
    }
}

fn psi(text: &str) -> Option<Psi> {
    let mut found = Psi::default();
    for (key, pairs) in nested_keyed(text) {
        let line = match key {
            "some" => &mut found.some,
            "full" => &mut found.full,
            _ => continue,
        };
        for (name, value) in pairs {
            match name {
                "avg10" => line.avg10 = value.parse().ok()?,
                "avg60" => line.avg60 = value.parse().ok()?,
                "avg300" => line.avg300 = value.parse().ok()?,
                "total" => line.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_of_both_versions() {
        let old = blkio_entries("8:0 Read 5\n8:0 Total 9\n9:1 7\nTotal 16\n");
        let entry = |major, op: &str, value| BlkioEntry { major, minor: u64::from(major == 9), op: op.into(), value };
        assert_eq!(old, [entry(8, "Read", 5), entry(8, "Total", 9), entry(9, "", 7)]);
        let mut new = Blkio::default();
        unified_io("8:0 rbytes=5 wbytes=6 rios=1 wios=2\nodd line=1\n", &mut new);
        assert_eq!(new.io_service_bytes_recursive, [entry(8, "Read", 5), entry(8, "Write", 6)]);
        assert_eq!(new.io_serviced_recursive, [entry(8, "Read", 1), entry(8, "Write", 2)]);
    }

    #[test]
    fn reserved_huge_pages_count() {
        let count = |v2, files: &[(&str, &str)]| {
            let read = |name: &str| Ok(files.iter().find(|file| file.0 == name).map(|file| file.1.to_owned()));
            huge_pages(v2, read).unwrap().map(|pages| (pages.usage, pages.max, pages.failcnt))
        };
        assert_eq!(count(true, &[("rsvd.current", "4\n"), ("current", "2\n"), ("events", "max 3\n")]), Some((4, 0, 3)));
        assert_eq!(count(true, &[("current", "2\n"), ("events", "max 3\n")]), Some((2, 0, 3)));
        let old = [("usage_in_bytes", "2\n"), ("max_usage_in_bytes", "5\n"), ("failcnt", "1\n")];
        assert_eq!(count(false, &old), Some((2, 5, 1)));
        let new = [("rsvd.usage_in_bytes", "4\n"), ("rsvd.max_usage_in_bytes", "6\n"), ("rsvd.failcnt", "7\n")];
        assert_eq!(count(false, &[old, new].concat()), Some((4, 6, 7)));
        assert_eq!(count(true, &old), None);
    }

    #[test]
    fn pressure() {
        let found =
            psi("some avg10=1.50 avg60=2.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n");
        let found = found.unwrap();
        assert_eq!((found.some.avg10, found.some.total, found.full.total), (1.5, 77, 3));
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(number_list("0-2,5\n"), [0, 1, 2, 5]);
        assert!(number_list("\n").is_empty());
    }
}
