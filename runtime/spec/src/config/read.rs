//! Reading config.json, process.json and resources.
//!
//! The text is read once, straight into the types. Only when that fails is it read a second time as a JSON value,
//! repaired where the specification is more tolerant than the types, and converted with a record of the path.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Capability, LinuxResources, Process, Spec, keys};

/// What was read, and what was set aside.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value.
    pub value: T,
    /// Capabilities that nobody knows, by JSON path. The specification asks to warn and go on.
    pub unknown_capabilities: Vec<(String, String)>,
}

/// Why a document could not be read.
#[derive(Debug)]
pub struct ReadError {
    /// The JSON path, empty for a text that is no JSON.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl std::error::Error for ReadError {}

/// Reads a config.json.
///
/// # Errors
/// When it is no JSON, or a value has a type or word that the specification does not allow.
pub fn parse(text: &str) -> Result<Parsed<Spec>, ReadError> {
    read(
        text,
        |spec: &Spec| {
            let classed = spec.process().as_ref().is_some_and(|process| process.io_priority().is_some());
            classed || lacks_pids_limit(spec) || keys::may_be_folded(text)
        },
        |document, unknown| {
            if let Some(process) = document.get_mut("process") {
                repair_process(process, "process", unknown);
            }
            if let Some(Value::Object(annotations)) = document.get_mut("annotations") {
                annotations.values_mut().filter(|text| text.is_null()).for_each(|text| *text = "".into());
            }
            if let Some(resources) = document.pointer_mut("/linux/resources") {
                repair_resources(resources);
            }
            // A profile without a default action and without a system call says nothing, and means no filter.
            let says_nothing = |profile: &serde_json::Map<String, Value>| {
                let named =
                    |key: &str| profile.get(key).is_some_and(|value| !value.is_null() && value.as_str() != Some(""));
                let calls = profile.get("syscalls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
                !named("defaultAction") && !calls
            };
            if let Some(Value::Object(linux)) = document.get_mut("linux")
                && linux.get("seccomp").and_then(Value::as_object).is_some_and(says_nothing)
            {
                linux.remove("seccomp");
            }
        },
    )
}

/// Reads a process document, as `exec --process` takes it.
///
/// # Errors
/// As [`parse`].
pub fn parse_process(text: &str) -> Result<Parsed<Process>, ReadError> {
    let classed = |process: &Process| process.io_priority().is_some();
    read(text, classed, |document, unknown| repair_process(document, "", unknown))
}

/// Reads resources whose keys are in their usual form, as `update` has them by then.
///
/// # Errors
/// As [`parse`].
pub fn parse_resources(text: &str) -> Result<LinuxResources, ReadError> {
    let suspicious = |resources: &LinuxResources| resources.pids().is_some_and(|pids| pids.limit() == 0);
    read(text, suspicious, |document, _| repair_resources(document)).map(|parsed| parsed.value)
}

/// A limit of zero, which the type also has for one that is not given.
fn lacks_pids_limit(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|found| found.pids().as_ref()).is_some_and(|pids| pids.limit() == 0)
}

type Repair = fn(&mut Value, &mut Vec<(String, String)>);

fn read<T: DeserializeOwned>(
    text: &str,
    doubtful: impl Fn(&T) -> bool,
    repair: Repair,
) -> Result<Parsed<T>, ReadError> {
    if let Ok(value) = serde_json::from_str::<T>(text)
        && !doubtful(&value)
    {
        return Ok(Parsed { value, unknown_capabilities: Vec::new() });
    }
    read_repaired(text, repair)
}

/// For itself, so that what is seldom needed takes neither stack nor memory of what always is.
#[cold]
#[inline(never)]
fn read_repaired<T: DeserializeOwned>(text: &str, repair: Repair) -> Result<Parsed<T>, ReadError> {
    let broken = |e: serde_json::Error| ReadError { path: String::new(), reason: format!("not valid JSON: {e}") };
    let mut document: Value = serde_json::from_str(text).map_err(broken)?;
    let mut unknown_capabilities = Vec::new();
    repair(&mut document, &mut unknown_capabilities);
    match serde_path_to_error::deserialize(document) {
        Ok(value) => Ok(Parsed { value, unknown_capabilities }),
        Err(e) => {
            let path = e.path().to_string();
            Err(ReadError { path: if path == "." { String::new() } else { path }, reason: e.into_inner().to_string() })
        }
    }
}

/// Takes unknown capabilities out, and gives the flags the types spell wrongly a spelling they take, and lists of
/// processors too.
fn repair_process(process: &mut Value, at: &str, unknown: &mut Vec<(String, String)>) {
    if let Some(Value::Object(sets)) = process.get_mut("capabilities") {
        for (set, names) in sets {
            let Value::Array(names) = names else { continue };
            names.retain(|name| {
                let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if let Some(name) = name.as_str().filter(|_| !known) {
                    let dot = if at.is_empty() { "" } else { "." };
                    unknown.push((format!("{at}{dot}capabilities.{set}"), name.to_owned()));
                    return false;
                }
                true
            });
        }
    }
    if let Some(Value::Array(flags)) = process.pointer_mut("/scheduler/flags") {
        for flag in flags {
            let known = match flag.as_str() {
                Some("SCHED_FLAG_DL_OVERRUN") => super::LinuxSchedulerFlag::SchedFlagDLOverrun,
                Some("SCHED_FLAG_RESET_ON_FORK") => super::LinuxSchedulerFlag::SchedResetOnFork,
                _ => continue,
            };
            *flag = serde_json::to_value(known).unwrap_or(Value::Null);
        }
    }
    if let Some(Value::Object(priority)) = process.get_mut("ioPriority")
        && priority.get("class").is_none_or(Value::is_null)
    {
        // The type would take the best-effort class. No word is none of those that are allowed.
        priority.insert("class".into(), "".into());
    }
    if let Some(Value::Object(affinity)) = process.get_mut("execCPUAffinity") {
        for list in affinity.values_mut() {
            // The kernel's form allows for commas and blanks too many; a list with nothing in it is none.
            let Some(text) = list.as_str() else { continue };
            let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
            *list = if parts.is_empty() { Value::Null } else { parts.join(",").into() };
        }
    }
    if let Value::Object(process) = process {
        // The specification requires it, yet every runtime takes a process without a user for root.
        process.entry("user").or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
}

/// A limit of processes that is absent or null is no limit, and must not become zero.
fn repair_resources(resources: &mut Value) {
    keys::fold_resource_keys(resources);
    let Value::Object(resources) = resources else { return };
    let given = |pids: &Value| pids.get("limit").is_some_and(|limit| !limit.is_null());
    if resources.get("pids").is_some_and(|pids| pids.is_object() && !given(pids)) {
        resources.remove("pids");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(process: &str, linux: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.3.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}}{process}}},"linux":{{{linux}}}}}"#
        )
    }

    #[test]
    fn unknown_capabilities_are_set_aside() {
        let text = config(r#","capabilities":{"bounding":["CAP_KILL","CAP_TELEPORT"],"effective":null}"#, "");
        let parsed = parse(&text).unwrap();
        assert_eq!(
            parsed.unknown_capabilities,
            [("process.capabilities.bounding".to_owned(), "CAP_TELEPORT".to_owned())]
        );
        let sets = parsed.value.process().as_ref().unwrap().capabilities().as_ref().unwrap().clone();
        assert!(sets.bounding().as_ref().unwrap().contains(&Capability::Kill));
    }

    #[test]
    fn an_absent_pids_limit_is_no_limit() {
        let pids = |linux: &str| {
            let parsed = parse(&config("", linux)).unwrap().value;
            parsed.linux().as_ref().unwrap().resources().as_ref().unwrap().pids().map(|pids| pids.limit())
        };
        assert_eq!(pids(r#""resources":{"pids":{}}"#), None);
        assert_eq!(pids(r#""resources":{"pids":{"limit":null}}"#), None);
        assert_eq!(pids(r#""resources":{"pids":{"limit":0}}"#), Some(0));
        assert_eq!(pids(r#""resources":{"pids":{"limit":9}}"#), Some(9));
        assert!(parse_resources(r#"{"pids":{}}"#).unwrap().pids().is_none());
    }

    #[test]
    fn limits_are_read_in_any_case() {
        let text = config("", r#""resources":{"CPU":{"Cpus":"0-1"},"hugepageLimits":[{"pagesize":"2MB","limit":1}]}"#);
        let parsed = parse(&text).unwrap().value;
        let resources = parsed.linux().as_ref().unwrap().resources().clone().unwrap();
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0-1"));
        assert_eq!(resources.hugepage_limits().as_ref().unwrap()[0].page_size(), "2MB");
    }

    #[test]
    fn a_profile_that_says_nothing_is_none() {
        for profile in ["{}", r#"{"syscalls":[]}"#, r#"{"architectures":["SCMP_ARCH_X86_64"],"syscalls":null}"#] {
            let parsed = parse(&config("", &format!(r#""seccomp":{profile}"#))).expect(profile).value;
            assert!(parsed.linux().as_ref().unwrap().seccomp().is_none(), "{profile}");
        }
        let call = r#"{"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        assert!(parse(&config("", &format!(r#""seccomp":{call}"#))).is_err());
    }

    #[test]
    fn the_overrun_flag() {
        let flags = r#"["SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RESET_ON_FORK"]"#;
        let text = config(&format!(r#","scheduler":{{"policy":"SCHED_DEADLINE","flags":{flags}}}"#), "");
        let parsed = parse(&text).unwrap().value;
        let flags = parsed.process().as_ref().unwrap().scheduler().as_ref().unwrap().flags().clone().unwrap();
        use crate::config::LinuxSchedulerFlag as Flag;
        assert_eq!(flags, [Flag::SchedFlagDLOverrun, Flag::SchedResetOnFork]);
    }

    #[test]
    fn an_io_priority_has_a_class() {
        let refused = parse(&config(r#","ioPriority":{"priority":3}"#, "")).unwrap_err().to_string();
        assert!(refused.starts_with("process.ioPriority.class"), "{refused}");
        assert!(parse_process(r#"{"cwd":"/","ioPriority":{"priority":3}}"#).is_err());
        assert!(parse(&config(r#","ioPriority":{"class":"IOPRIO_CLASS_RT","priority":3}"#, "")).is_ok());
    }

    #[test]
    fn a_refusal_names_the_path() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        assert!(
            refused(&config(r#","rlimits":[{"type":"RLIMIT_MOOD","hard":1,"soft":1}]"#, ""))
                .starts_with("process.rlimits[0].type: unknown variant `RLIMIT_MOOD`"),
        );
        assert!(
            refused(&config("", r#""namespaces":[{"type":"pid"},{"type":"mood"}]"#))
                .starts_with("linux.namespaces[1].type")
        );
        assert!(refused("{\"ociVersion\":").starts_with("not valid JSON: EOF"));
    }

    #[test]
    fn unknown_properties_are_ignored_and_nulls_are_absent() {
        let text = r#"{"ociVersion":"1.3.0","annotations":null,"future":{"a":1},"hostname":null,
            "process":{"cwd":"/","args":null,"sparkle":true},"linux":{"seccomp":null,"netDevices":null}}"#;
        let parsed = parse(text).unwrap().value;
        assert!(parsed.annotations().is_none());
        assert_eq!(parsed.process().as_ref().unwrap().user().uid(), 0);
    }
}
