//! `update`.

use std::io::Read as _;
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::cli::UpdateArgs;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings};
use crate::error::{Doing as _, Error, Result};
use crate::launch::cgroup_error;
use crate::resctrl;

pub(super) fn run(settings: &Settings, args: &UpdateArgs) -> Result<()> {
    let mut container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    container.require_alive()?;
    let mut document: Value = serde_json::from_str(container.record.config.spec.get())
        .map_err(|error| Error::invalid(error.to_string()))
        .doing(|| "read the recorded configuration")?;
    let current = document.pointer("/linux/resources").cloned().unwrap_or_else(|| json!({}));
    let wanted = match &args.resources {
        Some(file) => read(file)?,
        None => from_flags(args, &current)?,
    };
    let text = wanted.to_string();
    let resources =
        rung_spec::config::parse_resources(text.as_bytes()).map_err(|error| Error::invalid(error.to_string()))?;
    let mut cgroup = container.cgroup();
    cgroup.apply(&resources).map_err(cgroup_error)?;
    let (l3, bandwidth) = (args.l3_cache_schema.as_deref(), args.mem_bw_schema.as_deref());
    let schemata = [("l3CacheSchema", l3), ("memBwSchema", bandwidth)];
    if l3.is_some() || bandwidth.is_some() {
        resctrl::update(Path::new(&container.record.intel_rdt_path), l3, bandwidth)?;
    }
    let mut merged = current;
    merge(&mut merged, wanted);
    if let Some(linux) = document.get_mut("linux").and_then(Value::as_object_mut) {
        linux.insert("resources".into(), merged);
        for (key, schema) in schemata.into_iter().filter_map(|(key, schema)| Some((key, schema?))) {
            linux["intelRdt"][key] = schema.into();
        }
    }
    container.record.config.spec =
        RawValue::from_string(document.to_string()).map_err(|error| Error::invalid(error.to_string()))?;
    // `update` may have made a cgroup that was not needed before.
    container.record.cgroup_paths = cgroup.paths();
    container.entry.save(&container.record)
}

/// Reads limits as JSON. Device rules are never updated: what a container may open is decided when it is made.
fn read(file: &Path) -> Result<Value> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).doing(|| "read the limits from stdin")?;
    } else {
        text = std::fs::read_to_string(file).doing(|| format!("read {}", file.display()))?;
    }
    let mut value: Value = serde_json::from_str(&text)
        .map_err(|error| Error::invalid(error.to_string()))
        .doing(|| format!("read {}", file.display()))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("devices");
    }
    Ok(value)
}

fn from_flags(args: &UpdateArgs, current: &Value) -> Result<Value> {
    let mut cpu = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), value);
        }
    };
    set("shares", args.cpu_share.map(Value::from));
    set("quota", args.cpu_quota.map(Value::from));
    set("period", args.cpu_period.map(Value::from));
    set("burst", args.cpu_burst.map(Value::from));
    set("realtimePeriod", args.cpu_rt_period.map(Value::from));
    set("realtimeRuntime", args.cpu_rt_runtime.map(Value::from));
    set("cpus", args.cpuset_cpus.clone().map(Value::from));
    set("mems", args.cpuset_mems.clone().map(Value::from));
    set("idle", args.cpu_idle.map(Value::from));
    // Both are one line of one file on v2: the one that is not given keeps its value.
    for (given, other) in [("quota", "period"), ("period", "quota")] {
        if let (true, false, Some(kept)) =
            (cpu.contains_key(given), cpu.contains_key(other), current.pointer(&format!("/cpu/{other}")))
        {
            cpu.insert(other.to_owned(), kept.clone());
        }
    }
    let mut memory = Map::new();
    for (key, text) in [("limit", &args.memory), ("reservation", &args.memory_reservation), ("swap", &args.memory_swap)]
    {
        if let Some(text) = text {
            memory.insert(key.to_owned(), Value::from(size(text).doing(|| format!("--memory ({key})"))?));
        }
    }
    if memory.get("limit") == Some(&Value::from(-1)) && !memory.contains_key("swap") {
        memory.insert("swap".into(), Value::from(-1));
    }
    let mut resources = Map::new();
    for (key, part) in [("cpu", cpu), ("memory", memory)] {
        if !part.is_empty() {
            resources.insert(key.to_owned(), Value::Object(part));
        }
    }
    if let Some(limit) = args.pids_limit {
        resources.insert("pids".into(), json!({"limit": limit}));
    }
    if let Some(weight) = args.blkio_weight {
        resources.insert("blockIO".into(), json!({"weight": weight}));
    }
    Ok(Value::Object(resources))
}

/// `512m`, `1.5g`, `1024`, `-1`.
fn size(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let invalid = || Error::invalid(format!("invalid size: {text:?}"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let shift = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(invalid()),
    };
    let number: i64 = digits.parse().ok().filter(|number| *number >= 0).ok_or_else(invalid)?;
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("512m", 512 << 20), ("1G", 1 << 30), ("1024", 1024), ("-1", -1), ("2KiB", 2048)] {
            assert_eq!(size(text).expect(text), bytes);
        }
        for bad in ["", "m", "1x", "-2", "9999999999t"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_merged_key_by_key() {
        let mut value = json!({"memory": {"limit": 1, "swap": 2}});
        merge(&mut value, json!({"memory": {"limit": 3}, "pids": {"limit": 4}}));
        assert_eq!(value, json!({"memory": {"limit": 3, "swap": 2}, "pids": {"limit": 4}}));
    }
}
