//! Which namespaces are made and which are joined.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rung_sys::namespace::Namespace;

use crate::error::{Error, Result};

/// The namespaces of a container.
#[derive(Debug, Default)]
pub struct NamespacePlan {
    /// Kinds to make, in no order.
    pub make: Vec<Namespace>,
    /// Kinds to join, each by path, in the order of the configuration.
    pub join: Vec<(Namespace, PathBuf)>,
    /// Offsets of a new time namespace, as the kernel reads them.
    pub time_offsets: Option<String>,
}

impl NamespacePlan {
    /// Reads the list of the configuration; a kind that is absent stays the runtime's own.
    pub fn new(linux: Option<&Linux>) -> Result<Self> {
        let mut plan = Self::default();
        for entry in linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten() {
            let kind = kind(entry.typ());
            if plan.has(kind) {
                let name = entry.typ();
                return Err(Error::invalid(format!("linux.namespaces: malformed spec file: duplicated ns {name}")));
            }
            match entry.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    if !path.is_absolute() {
                        return Err(Error::invalid(format!(
                            "linux.namespaces: path {} of the {} namespace is not absolute",
                            path.display(),
                            entry.typ()
                        )));
                    }
                    plan.join.push((kind, path.clone()));
                }
                _ => plan.make.push(kind),
            }
        }
        plan.time_offsets = plan.offsets(linux)?;
        Ok(plan)
    }

    /// Whether the container has a namespace of this kind that may differ from the runtime's.
    pub fn has(&self, kind: Namespace) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// Whether a new one is made.
    pub fn makes(&self, kind: Namespace) -> bool {
        self.make.contains(&kind)
    }

    /// Whether one is joined by path.
    pub fn joins(&self, kind: Namespace) -> bool {
        self.join.iter().any(|(joined, _)| *joined == kind)
    }

    fn offsets(&self, linux: Option<&Linux>) -> Result<Option<String>> {
        let Some(offsets) = linux.and_then(|linux| linux.time_offsets().as_ref()).filter(|map| !map.is_empty()) else {
            return Ok(None);
        };
        if self.joins(Namespace::Time) {
            return Err(Error::invalid(
                "linux.timeOffsets: time offsets cannot be set in a time namespace that is joined",
            ));
        }
        if !self.makes(Namespace::Time) {
            return Err(Error::invalid(
                "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config",
            ));
        }
        let mut lines: Vec<String> = Vec::new();
        for (clock, offset) in offsets {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(Error::invalid(format!(
                    "linux.timeOffsets: {clock}: unknown clock (use monotonic or boottime)"
                )));
            }
            lines.push(format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
        }
        lines.sort();
        Ok(Some(lines.concat()))
    }
}

/// The kind of a configured namespace.
pub fn kind(configured: LinuxNamespaceType) -> Namespace {
    match configured {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

/// The key of a kind in `state.json`.
pub fn record_key(kind: Namespace) -> &'static str {
    match kind {
        Namespace::Mount => "NEWNS",
        Namespace::Cgroup => "NEWCGROUP",
        Namespace::Uts => "NEWUTS",
        Namespace::Ipc => "NEWIPC",
        Namespace::User => "NEWUSER",
        Namespace::Pid => "NEWPID",
        Namespace::Network => "NEWNET",
        Namespace::Time => "NEWTIME",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<NamespacePlan> {
        let linux: Linux = serde_json::from_str(json).expect("valid JSON");
        NamespacePlan::new(Some(&linux))
    }

    #[test]
    fn makes_and_joins() {
        let plan = plan(r#"{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/x"}]}"#).expect("plan");
        assert!(plan.makes(Namespace::Pid) && plan.joins(Namespace::Network) && !plan.has(Namespace::Uts));
    }

    #[test]
    fn refusals_name_the_reason() {
        for (json, text) in [
            (r#"{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#, "duplicated ns"),
            (r#"{"namespaces":[{"type":"pid","path":"proc/1/ns/pid"}]}"#, "not absolute"),
            (r#"{"timeOffsets":{"monotonic":{"secs":1}}}"#, "time namespace isn't enabled"),
            (r#"{"namespaces":[{"type":"time"}],"timeOffsets":{"realtime":{"secs":1}}}"#, "unknown clock"),
        ] {
            let error = plan(json).expect_err(json).to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
