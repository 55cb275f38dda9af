//! `update`.

use std::io::Read as _;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use rung_spec::config::fold_resource_keys;
use serde_json::{Map, Value, json};

use crate::cli::{Given, UpdateArgs};
use crate::container::id::ContainerId;
use crate::container::record::Json;
use crate::container::{Container, Settings};
use crate::error::{Doing as _, Error, Result};
use crate::launch::cgroup_error;
use crate::{log, resctrl};

pub(super) fn run(settings: &Settings, args: &UpdateArgs) -> Result<()> {
    let mut container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    container.require_alive()?;
    let mut document: Value = serde_json::from_str(container.record.config.spec.get())
        .map_err(|error| Error::invalid(error.to_string()))
        .doing(|| "read the recorded configuration")?;
    let mut current = document.pointer("/linux/resources").cloned().unwrap_or_else(|| json!({}));
    fold_resource_keys(&mut current);
    let mut wanted = match &args.resources {
        Some(file) => read(file)?,
        None => from_flags(args)?,
    };
    drop_zeros(&mut wanted);
    lift_swap_too(&mut wanted);
    weigh_again(&mut wanted, &current);
    complete(&mut wanted, &current);
    add_devices(&mut wanted, &current);
    let resources = parse(&wanted)?;
    rung_spec::validate::check_limits(&resources).map_err(|violations| {
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Error::invalid(all.join("; "))
    })?;
    let mut cgroup = container.cgroup();
    let (l3, bandwidth) = (args.l3_cache_schema.as_deref(), args.mem_bw_schema.as_deref());
    let schemata = [("l3CacheSchema", l3), ("memBwSchema", bandwidth)];
    let mut outcome = cgroup.apply(&resources).map_err(cgroup_error);
    if outcome.is_ok() && (l3.is_some() || bandwidth.is_some()) {
        outcome = resctrl::update(Path::new(&container.record.intel_rdt_path), l3, bandwidth);
    }
    if let Err(error) = outcome {
        // Half an update is none: what was recorded holds again, as far as the kernel lets it.
        let before = parse(&recorded(&current, &wanted))?;
        let _ = cgroup.apply(&before);
        // A cgroup that was made for it on v1 stays, with the container's processes in it.
        container.record.cgroup_paths.extend(cgroup.paths());
        container.entry.save(&container.record)?;
        return Err(error);
    }
    let mut merged = current;
    merge(&mut merged, wanted);
    if let Some(linux) = document.get_mut("linux").and_then(Value::as_object_mut) {
        linux.insert("resources".into(), merged);
        for (key, schema) in schemata.into_iter().filter_map(|(key, schema)| Some((key, schema?))) {
            linux["intelRdt"][key] = schema.into();
        }
    }
    container.record.config.spec = Json::new(&document.to_string());
    // `update` may have made a cgroup that was not needed before. One that somebody has removed stays recorded.
    container.record.cgroup_paths.extend(cgroup.paths());
    container.entry.save(&container.record)
}

fn parse(value: &Value) -> Result<LinuxResources> {
    rung_spec::config::parse_resources(&value.to_string()).map_err(|error| Error::invalid(error.to_string()))
}

/// A quota or period of zero is none: it keeps what is recorded too.
fn drop_zeros(wanted: &mut Value) {
    if let Some(cpu) = wanted.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.retain(|key, value| !matches!(key.as_str(), "quota" | "period") || value.as_i64() != Some(0));
    }
}

/// Memory without a limit lifts the limit of swap too, unless that is named: it cannot be counted from nothing.
fn lift_swap_too(wanted: &mut Value) {
    let Some(memory) = wanted.get_mut("memory").and_then(Value::as_object_mut) else { return };
    if memory.get("limit") == Some(&Value::from(-1)) && !memory.contains_key("swap") {
        memory.insert("swap".into(), Value::from(-1));
    }
}

/// Gives a group that is idle no more the shares that are recorded: while it was idle the kernel has kept none, and to
/// systemd idleness is a weight.
fn weigh_again(wanted: &mut Value, current: &Value) {
    let Some(cpu) = wanted.get_mut("cpu").and_then(Value::as_object_mut) else { return };
    let was_idle = current.pointer("/cpu/idle") == Some(&Value::from(1));
    if was_idle && cpu.get("idle") == Some(&Value::from(0)) && !cpu.contains_key("shares") {
        let shares = current.pointer("/cpu/shares").and_then(Value::as_u64).filter(|&shares| shares != 0);
        cpu.insert("shares".into(), shares.unwrap_or(DEFAULT_SHARES).into());
    }
}

/// The shares of a group that was never given any.
const DEFAULT_SHARES: u64 = 1024;

/// Adds what is only set together with something wanted, as it is recorded: on v2 quota and period are one line of one
/// file, and the limit of swap is counted from that of memory.
fn complete(wanted: &mut Value, current: &Value) {
    for (part, one, other) in [("cpu", "quota", "period"), ("memory", "limit", "swap")] {
        for (given, missing) in [(one, other), (other, one)] {
            let Some(object) = wanted.get_mut(part).and_then(Value::as_object_mut) else { continue };
            if let (true, false, Some(kept)) = (
                object.contains_key(given),
                object.contains_key(missing),
                current.pointer(&format!("/{part}/{missing}")),
            ) {
                object.insert(missing.to_owned(), kept.clone());
            }
        }
    }
}

/// Adds the devices that are recorded to lists of limits for some of them, and those with a weight to a new weight, which
/// the scheduler gives to all of them.
fn add_devices(wanted: &mut Value, current: &Value) {
    let Some(io) = wanted.get_mut("blockIO").and_then(Value::as_object_mut) else { return };
    for (list, recorded) in current["blockIO"].as_object().into_iter().flatten() {
        let Some(recorded) = recorded.as_array() else { continue };
        if !(io.contains_key(list) || list == "weightDevice" && io.contains_key("weight")) {
            continue;
        }
        let given = io.entry(list).or_insert_with(|| json!([]));
        let Some(given) = given.as_array_mut() else { continue };
        let named =
            |device: &Value| given.iter().any(|one| ["major", "minor"].iter().all(|key| one[key] == device[key]));
        let kept: Vec<Value> = recorded.iter().filter(|device| !named(device)).cloned().collect();
        given.splice(..0, kept);
    }
}

/// What is recorded of what is `wanted`.
fn recorded(current: &Value, wanted: &Value) -> Value {
    let Value::Object(wanted) = wanted else { return current.clone() };
    let known = wanted.iter().filter_map(|(key, value)| Some((key.clone(), recorded(current.get(key)?, value))));
    Value::Object(known.collect())
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
    if !value.is_object() {
        return Err(Error::invalid(format!("read {}: the limits are no JSON object", file.display())));
    }
    fold_resource_keys(&mut value);
    drop_nulls(&mut value);
    if ["/memory/kernel", "/memory/kernelTCP"].iter().any(|limit| value.pointer(limit).is_some_and(Value::is_i64)) {
        log::warning(KERNEL_MEMORY);
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("devices");
    }
    Ok(value)
}

/// What is null is not named, and keeps what is recorded.
fn drop_nulls(value: &mut Value) {
    let Value::Object(object) = value else { return };
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(drop_nulls);
}

fn number<T: Into<Value>>(given: Option<Given<T>>) -> Option<Value> {
    Some(given?.0?.into())
}

fn text(given: &Option<String>) -> Option<Value> {
    given.clone().filter(|text| !text.is_empty()).map(Value::from)
}

fn from_flags(args: &UpdateArgs) -> Result<Value> {
    if [&args.kernel_memory, &args.kernel_memory_tcp].into_iter().any(|given| text(given).is_some()) {
        log::warning(KERNEL_MEMORY);
    }
    let mut cpu = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), value);
        }
    };
    set("shares", number(args.cpu_share));
    set("quota", number(args.cpu_quota));
    set("period", number(args.cpu_period));
    set("burst", number(args.cpu_burst));
    set("realtimePeriod", number(args.cpu_rt_period));
    set("realtimeRuntime", number(args.cpu_rt_runtime));
    set("cpus", text(&args.cpuset_cpus));
    set("mems", text(&args.cpuset_mems));
    set("idle", number(args.cpu_idle));
    let mut memory = Map::new();
    for (key, flag, given) in [
        ("limit", "memory", &args.memory),
        ("reservation", "memory-reservation", &args.memory_reservation),
        ("swap", "memory-swap", &args.memory_swap),
    ] {
        if let Some(text) = given.as_deref().filter(|text| !text.is_empty()) {
            memory.insert(key.to_owned(), Value::from(size(text).doing(|| format!("invalid value for {flag}"))?));
        }
    }
    let mut resources = Map::new();
    for (key, part) in [("cpu", cpu), ("memory", memory)] {
        if !part.is_empty() {
            resources.insert(key.to_owned(), Value::Object(part));
        }
    }
    if let Some(Given(Some(limit))) = args.pids_limit {
        resources.insert("pids".into(), json!({"limit": limit}));
    }
    if let Some(Given(Some(weight))) = args.blkio_weight {
        resources.insert("blockIO".into(), json!({"weight": weight}));
    }
    Ok(Value::Object(resources))
}

/// No kernel since 5.16 keeps such a limit, and runc sets none since 1.0.
const KERNEL_MEMORY: &str = "kernel memory settings are ignored and will be removed";

/// `512m`, `1.5g`, `1024`, `-1`.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the result is rounded to whole bytes")]
fn size(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let invalid = || Error::invalid(format!("invalid size: '{text}'"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let shift = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(invalid()),
    };
    if let Ok(number) = digits.parse::<i64>() {
        return number.checked_mul(1 << shift).filter(|size| *size >= 0).ok_or_else(invalid);
    }
    let bytes = digits.parse::<f64>().map_err(|_| invalid())? * (1_i64 << shift) as f64;
    (0.0..i64::MAX as f64).contains(&bytes).then_some(bytes as i64).ok_or_else(invalid)
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
        for (text, bytes) in
            [("512m", 512 << 20), ("1G", 1 << 30), ("1024", 1024), ("-1", -1), ("2KiB", 2048), ("1.5k", 1536)]
        {
            assert_eq!(size(text).expect(text), bytes);
        }
        for bad in ["", "m", "1x", "-2", "9999999999t", "1e999p", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_set_together_is_completed_from_the_record() {
        let current = json!({"cpu": {"quota": 1, "period": 2}, "memory": {"limit": 3}, "pids": {"limit": 4}});
        let mut wanted = json!({"cpu": {"period": 5}, "memory": {"swap": 6}, "blockIO": {"weight": 7}});
        complete(&mut wanted, &current);
        assert_eq!(wanted["cpu"], json!({"quota": 1, "period": 5}));
        assert_eq!(wanted["memory"], json!({"limit": 3, "swap": 6}));
        assert_eq!(recorded(&current, &wanted), json!({"cpu": {"quota": 1, "period": 2}, "memory": {"limit": 3}}));
    }

    #[test]
    fn memory_without_a_limit_lifts_that_of_swap() {
        let current = json!({"memory": {"limit": 3, "swap": 6}});
        for (memory, settled) in [
            (json!({"limit": -1}), json!({"limit": -1, "swap": -1})),
            (json!({"limit": -1, "swap": 9}), json!({"limit": -1, "swap": 9})),
            (json!({"limit": 4}), json!({"limit": 4, "swap": 6})),
        ] {
            let mut wanted = json!({ "memory": memory });
            lift_swap_too(&mut wanted);
            complete(&mut wanted, &current);
            assert_eq!(wanted["memory"], settled);
        }
    }

    #[test]
    fn a_quota_of_zero_keeps_the_recorded_one() {
        let mut wanted = json!({"cpu": {"quota": 0, "period": 5, "shares": 0}});
        drop_zeros(&mut wanted);
        complete(&mut wanted, &json!({"cpu": {"quota": 1, "period": 2}}));
        assert_eq!(wanted["cpu"], json!({"quota": 1, "period": 5, "shares": 0}));
    }

    #[test]
    fn devices_that_are_not_named_keep_their_limits() {
        let device = |minor: u32, weight: u32| json!({"major": 8, "minor": minor, "weight": weight});
        let current = json!({"blockIO": {"weight": 10, "weightDevice": [device(0, 20), device(16, 30)]}});
        for (named, settled) in [
            (json!({"weight": 40}), json!({"weight": 40, "weightDevice": [device(0, 20), device(16, 30)]})),
            (json!({"weightDevice": [device(0, 50)]}), json!({"weightDevice": [device(16, 30), device(0, 50)]})),
            (json!({"throttleReadBpsDevice": []}), json!({"throttleReadBpsDevice": []})),
        ] {
            let mut wanted = json!({ "blockIO": named });
            add_devices(&mut wanted, &current);
            assert_eq!(wanted["blockIO"], settled);
        }
    }

    #[test]
    fn what_is_idle_no_more_has_its_shares_again() {
        for (recorded, named, settled) in [
            (json!({"shares": 512, "idle": 1}), json!({"idle": 0}), json!({"idle": 0, "shares": 512})),
            (json!({"idle": 1}), json!({"idle": 0}), json!({"idle": 0, "shares": 1024})),
            (json!({"shares": 512, "idle": 1}), json!({"idle": 0, "shares": 2}), json!({"idle": 0, "shares": 2})),
            (json!({"shares": 512, "idle": 1}), json!({"idle": 1}), json!({"idle": 1})),
            (json!({"shares": 512}), json!({"idle": 0}), json!({"idle": 0})),
        ] {
            let mut wanted = json!({ "cpu": named });
            weigh_again(&mut wanted, &json!({ "cpu": recorded }));
            assert_eq!(wanted["cpu"], settled);
        }
    }

    #[test]
    fn null_names_nothing() {
        let mut wanted = json!({"memory": null, "cpu": {"quota": null, "period": 5}});
        drop_nulls(&mut wanted);
        complete(&mut wanted, &json!({"cpu": {"quota": 1, "period": 2}}));
        assert_eq!(wanted, json!({"cpu": {"quota": 1, "period": 5}}));
    }

    #[test]
    fn limits_are_merged_key_by_key() {
        let mut value = json!({"memory": {"limit": 1, "swap": 2}});
        merge(&mut value, json!({"memory": {"limit": 3}, "pids": {"limit": 4}}));
        assert_eq!(value, json!({"memory": {"limit": 3, "swap": 2}, "pids": {"limit": 4}}));
    }
}
