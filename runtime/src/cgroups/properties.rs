//! Limits as properties of a systemd unit. Pure.
//!
//! What systemd has no property for is written into the cgroup afterwards; what it has must be told to it, or its next
//! `daemon-reload` would undo the write.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::dbus::Value;
use super::error::{Error, Result};
use super::gvariant;
use super::settings::{DEFAULT_PERIOD, io_weight, is_idle, is_weight, swap_of, weight_of_shares};

type List = Vec<(String, Value)>;

const INFINITY: u64 = u64::MAX;

/// The properties for `resources`, device rules aside.
pub(super) fn of(resources: &LinuxResources, unified: bool) -> Result<List> {
    let mut list = List::new();
    if let Some(memory) = resources.memory() {
        memory_properties(memory, unified, &mut list)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_properties(cpu, unified, is_idle(resources), &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = match pids.limit() {
            0 => 1,
            limit => u64::try_from(limit).unwrap_or(INFINITY),
        };
        list.push(("TasksMax".into(), Value::U64(limit)));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight()).filter(|&w| w >= 10) {
        let (name, weight) = if unified { ("IOWeight", io_weight(weight)) } else { ("BlockIOWeight", weight.into()) };
        list.push((name.into(), Value::U64(weight)));
    }
    if unified {
        unified_properties(resources, &mut list)?;
    }
    Ok(list)
}

fn bytes(value: i64) -> Value {
    Value::U64(u64::try_from(value).unwrap_or(INFINITY))
}

fn memory_properties(memory: &LinuxMemory, unified: bool, list: &mut List) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    if limit != 0 {
        list.push((if unified { "MemoryMax" } else { "MemoryLimit" }.into(), bytes(limit)));
    }
    if !unified {
        return Ok(());
    }
    if let Some(low) = memory.reservation().filter(|&low| low != 0) {
        list.push(("MemoryLow".into(), bytes(low)));
    }
    if let Some(swap) = swap_of(limit, memory.swap().unwrap_or(0))? {
        list.push(("MemorySwapMax".into(), Value::U64(swap.parse().unwrap_or(INFINITY))));
    }
    Ok(())
}

fn cpu_properties(cpu: &LinuxCpu, unified: bool, idle: bool, list: &mut List) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|&n| n != 0 && !(idle && unified)) {
        let (name, value) = if unified { ("CPUWeight", weight_of_shares(shares)) } else { ("CPUShares", shares) };
        list.push((name.into(), Value::U64(value)));
    }
    if unified && cpu.idle() == Some(1) {
        // Zero is how systemd spells idle, since version 252.
        list.push(("CPUWeight".into(), Value::U64(0)));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if period != 0 {
        list.push(("CPUQuotaPeriodUSec".into(), Value::U64(period)));
    }
    if quota != 0 || period != 0 {
        list.push(("CPUQuotaPerSecUSec".into(), Value::U64(quota_per_second(quota, period))));
    }
    if unified {
        for (name, field, value) in [("AllowedCPUs", "cpus", cpu.cpus()), ("AllowedMemoryNodes", "mems", cpu.mems())] {
            if let Some(text) = value.as_deref().filter(|text| !text.is_empty()) {
                list.push((name.into(), bits(text, &format!("linux.resources.cpu.{field}"))?));
            }
        }
    }
    Ok(())
}

/// Microseconds in each second; systemd keeps hundredths of a processor, so it is rounded up to the next.
fn quota_per_second(quota: i64, period: u64) -> u64 {
    let Some(quota) = u64::try_from(quota).ok().filter(|&quota| quota > 0) else { return INFINITY };
    let period = if period == 0 { DEFAULT_PERIOD } else { period };
    (quota.saturating_mul(1_000_000) / period).next_multiple_of(10_000)
}

/// The limits as systemd can keep them: what it rounds is written rounded to the files too, so that both say the same.
pub(super) fn rounded(resources: &LinuxResources) -> LinuxResources {
    let mut resources = resources.clone();
    let Some(cpu) = resources.cpu() else { return resources };
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().filter(|&n| n != 0).unwrap_or(DEFAULT_PERIOD));
    if quota > 0 {
        let quota = u128::from(quota_per_second(quota, period)) * u128::from(period) / 1_000_000;
        let mut cpu = cpu.clone();
        cpu.set_quota(i64::try_from(quota).ok());
        resources.set_cpu(Some(cpu));
    }
    resources
}

/// A list of numbers as a bit for each, as systemd takes it.
fn bits(list: &str, path: &str) -> Result<Value> {
    let set = rung_sys::sched::NumberSet::parse(list)
        .ok_or_else(|| Error::invalid(path, format!("{list:?} is not a list like 0-3,7")))?;
    let count = (0..8192).rev().find(|&n| set.has(n)).map_or(0, |last| last + 1);
    let bytes = (0..count.div_ceil(8)).map(|byte| {
        let bit = |n: u8| u8::from(set.has(byte * 8 + usize::from(n))) << n;
        Value::Byte((0..8).map(bit).sum())
    });
    Ok(Value::Array("y".into(), bytes.collect()))
}

/// Files of the unified hierarchy that systemd has a property for.
fn unified_properties(resources: &LinuxResources, list: &mut List) -> Result<()> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort();
    let idle = is_idle(resources);
    for (file, value) in files.into_iter().filter(|(file, _)| !idle || !is_weight(file)) {
        let path = || format!("linux.resources.unified[{file:?}]");
        let number = || {
            rung_sys::cgroupfs::single(value).ok_or_else(|| Error::invalid(path(), format!("{value:?} is no number")))
        };
        let (name, value) = match file.as_str() {
            "cpu.idle" if value.trim() == "1" => ("CPUWeight", Value::U64(0)),
            "cpu.weight" => ("CPUWeight", Value::U64(number()?)),
            "cpu.max" => {
                let mut words = value.split_ascii_whitespace();
                let (quota, period) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let period = period.parse().unwrap_or(DEFAULT_PERIOD);
                list.push(("CPUQuotaPeriodUSec".into(), Value::U64(period)));
                let quota = quota.parse().unwrap_or(-1);
                ("CPUQuotaPerSecUSec", Value::U64(quota_per_second(quota, period)))
            }
            "cpuset.cpus" => ("AllowedCPUs", bits(value, &path())?),
            "cpuset.mems" => ("AllowedMemoryNodes", bits(value, &path())?),
            "memory.high" => ("MemoryHigh", Value::U64(number()?)),
            "memory.low" => ("MemoryLow", Value::U64(number()?)),
            "memory.min" => ("MemoryMin", Value::U64(number()?)),
            "memory.max" => ("MemoryMax", Value::U64(number()?)),
            "memory.swap.max" => ("MemorySwapMax", Value::U64(number()?)),
            // Nothing is no limit to systemd.
            "pids.max" => ("TasksMax", Value::U64(number()?.max(1))),
            "memory.oom.group" if value.trim() == "1" => ("OOMPolicy", Value::text("kill")),
            "memory.oom.group" if value.trim() == "0" => ("OOMPolicy", Value::text("continue")),
            // Written into the file by the caller, as on a host without systemd.
            _ => continue,
        };
        list.push((name.into(), value));
    }
    Ok(())
}

/// The property of an annotation `org.systemd.property.<name>`, its value in GVariant's text form. A name that ends in
/// `Sec` is in seconds there and in microseconds on the wire.
pub(super) fn annotated(name: &str, text: &str) -> Result<(String, Value)> {
    let path = format!("annotations[\"org.systemd.property.{name}\"]");
    let wrong = |reason: &str| Error::invalid(&path, format!("{text:?} {reason}"));
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::invalid(&path, "is not the name of a property"));
    }
    if let "Slice" | "PIDs" = name {
        // The container would be where its limits are not.
        return Err(Error::invalid(&path, "is what linux.cgroupsPath and the process say"));
    }
    let value = gvariant::read(text).ok_or_else(|| wrong("is not a GVariant"))?;
    let Some(bare) = name.strip_suffix("Sec").filter(|bare| !bare.ends_with('U')) else {
        return Ok((name.to_owned(), value));
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no sensible time is near the limits")]
    let micros = match value {
        Value::I32(n) => u64::try_from(n).ok().map(|n| n.saturating_mul(1_000_000)),
        Value::I64(n) => u64::try_from(n).ok().map(|n| n.saturating_mul(1_000_000)),
        Value::U32(n) => Some(u64::from(n) * 1_000_000),
        Value::U64(n) => Some(n.saturating_mul(1_000_000)),
        Value::Double(n) if n >= 0.0 => Some((n * 1_000_000.0) as u64),
        _ => None,
    };
    Ok((format!("{bare}USec"), Value::U64(micros.ok_or_else(|| wrong("is not a number of seconds"))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(json: &str, unified: bool) -> List {
        of(&serde_json::from_str(json).unwrap(), unified).unwrap()
    }

    #[test]
    fn limits_of_v2() {
        let json = r#"{"memory":{"limit":1000,"swap":3000},"cpu":{"shares":1024,"quota":15000,"period":100000,"cpus":"0-1,9"},
            "pids":{"limit":0},"unified":{"memory.high":"max","io.max":"8:0 rbps=1"}}"#;
        assert_eq!(properties(r#"{"unified":{"pids.max":"0"}}"#, true), [("TasksMax".to_owned(), Value::U64(1))]);
        let spaced = properties(r#"{"unified":{"cpu.max":" 30000\t60000\n"}}"#, true);
        assert_eq!(
            spaced.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>(),
            [60_000, 500_000].map(Value::U64)
        );
        let list = properties(json, true);
        let find = |name: &str| list.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
        assert_eq!(find("MemoryMax"), Some(Value::U64(1000)));
        assert_eq!(find("MemorySwapMax"), Some(Value::U64(2000)));
        assert_eq!(find("CPUWeight"), Some(Value::U64(100)));
        assert_eq!(find("CPUQuotaPerSecUSec"), Some(Value::U64(150_000)));
        assert_eq!(find("TasksMax"), Some(Value::U64(1)));
        assert_eq!(find("MemoryHigh"), Some(Value::U64(u64::MAX)));
        assert_eq!(find("AllowedCPUs"), Some(Value::Array("y".into(), vec![Value::Byte(3), Value::Byte(2)])));
    }

    #[test]
    fn limits_of_v1() {
        let list =
            properties(r#"{"memory":{"limit":-1},"cpu":{"shares":10,"quota":-1},"blockIO":{"weight":20}}"#, false);
        let expected =
            [("MemoryLimit", u64::MAX), ("CPUShares", 10), ("CPUQuotaPerSecUSec", u64::MAX), ("BlockIOWeight", 20)];
        assert_eq!(list, expected.map(|(name, value)| (name.to_owned(), Value::U64(value))));
    }

    #[test]
    fn an_idle_group_has_no_weight() {
        for json in [r#"{"cpu":{"shares":200,"idle":1}}"#, r#"{"unified":{"cpu.idle":"1\n","cpu.weight":"8"}}"#] {
            assert_eq!(properties(json, true), [("CPUWeight".to_owned(), Value::U64(0))], "{json}");
            let files = super::super::settings::unified(&serde_json::from_str(json).unwrap()).unwrap();
            assert_eq!(files.iter().map(|setting| &*setting.file).collect::<Vec<_>>(), ["cpu.idle"], "{json}");
        }
        assert_eq!(properties(r#"{"cpu":{"shares":10,"idle":1}}"#, false), [("CPUShares".to_owned(), Value::U64(10))]);
    }

    #[test]
    fn quotas_are_rounded_up_to_hundredths() {
        assert_eq!(quota_per_second(1, 100_000), 10_000);
        assert_eq!(quota_per_second(33_333, 100_000), 340_000);
        assert_eq!(quota_per_second(200_000, 0), 2_000_000);
        let given: LinuxResources = serde_json::from_str(r#"{"cpu":{"quota":500000,"period":900000}}"#).unwrap();
        assert_eq!(rounded(&given).cpu().as_ref().and_then(LinuxCpu::quota), Some(504_000));
    }

    #[test]
    fn annotations() {
        let read = |name: &str, text: &str| annotated(name, text).unwrap();
        assert_eq!(
            read("CollectMode", "'inactive-or-failed'"),
            ("CollectMode".into(), Value::text("inactive-or-failed"))
        );
        assert_eq!(read("TimeoutStopUSec", "uint64 123456789"), ("TimeoutStopUSec".into(), Value::U64(123_456_789)));
        assert_eq!(read("TimeoutStopSec", "7"), ("TimeoutStopUSec".into(), Value::U64(7_000_000)));
        assert_eq!(read("TimeoutStopSec", "1.5"), ("TimeoutStopUSec".into(), Value::U64(1_500_000)));
        assert_eq!(read("IgnoreOnIsolate", "true"), ("IgnoreOnIsolate".into(), Value::Bool(true)));
        let after = read("After", "['a.service', \"b\\\"c\"]").1;
        assert_eq!(after, Value::Array("s".into(), vec![Value::text("a.service"), Value::text("b\"c")]));
        let tuple = read("X", "[('/dev/a', uint64 5)]").1;
        assert_eq!(tuple.signature(), "a(st)");
        for (name, text) in [
            ("X", "'open"),
            ("X", "[1, 'a']"),
            ("TimeoutSec", "'x'"),
            ("a/b", "1"),
            ("X", "1 2"),
            ("Slice", "'user.slice'"),
            ("PIDs", "[uint32 1]"),
        ] {
            assert!(annotated(name, text).is_err(), "{name} {text}");
        }
    }
}
