//! Seccomp profiles as docker's users write them: the runtime configuration's own form, with rules that are for some
//! architectures and capabilities only.

use std::collections::HashSet;

use oci_spec::runtime::{Capabilities, LinuxSeccomp};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A profile that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seccomp profile: {0}")]
pub struct InvalidProfile(String);

/// Who a rule is for, or not for. Kernels before those that rules ask for are none that anything here runs on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
}

/// An architecture, and those that it can run too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

/// Reads a profile for a container with `capabilities` on a machine of `architecture`, as Go calls it.
///
/// # Errors
/// Says what is wrong with the text.
pub fn read(text: &str, capabilities: &Capabilities, architecture: &str) -> Result<LinuxSeccomp, InvalidProfile> {
    let wrong = |error: serde_json::Error| InvalidProfile(error.to_string());
    let mut profile: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
    if let Some(maps) = profile.remove("archMap").filter(|maps| !maps.is_null()) {
        let maps: Vec<ArchMap> = serde_json::from_value(maps).map_err(wrong)?;
        let own = maps.into_iter().find(|map| map.architecture == seccomp_name(architecture));
        if let Some(own) = own {
            let all = [own.architecture].into_iter().chain(own.sub_architectures);
            profile.insert("architectures".to_owned(), all.map(Value::String).collect());
        }
    }
    let held: HashSet<String> = capabilities.iter().map(|capability| format!("CAP_{capability}")).collect();
    if let Some(Value::Array(rules)) = profile.get_mut("syscalls") {
        let mut kept = Vec::with_capacity(rules.len());
        for rule in rules.drain(..) {
            let Value::Object(mut rule) = rule else { return Err(InvalidProfile("a rule is not an object".into())) };
            let mut filter = |name: &str| match rule.remove(name) {
                None | Some(Value::Null) => Ok(Filter::default()),
                Some(filter) => serde_json::from_value(filter).map_err(wrong),
            };
            let (includes, excludes) = (filter("includes")?, filter("excludes")?);
            if includes.admits(&held, architecture) && !excludes.names_any(&held, architecture) {
                if let Some(name) = rule.remove("name") {
                    rule.insert("names".to_owned(), Value::Array(vec![name]));
                }
                if rule.get("args").is_some_and(Value::is_null) {
                    rule.remove("args");
                }
                rule.remove("comment");
                kept.push(Value::Object(rule));
            }
        }
        *rules = kept;
    }
    serde_json::from_value(Value::Object(profile)).map_err(wrong)
}

impl Filter {
    /// Whether a rule that is only for these applies.
    fn admits(&self, held: &HashSet<String>, architecture: &str) -> bool {
        self.caps.iter().all(|capability| held.contains(capability))
            && (self.arches.is_empty() || self.arches.iter().any(|name| name == architecture))
    }

    /// Whether a rule that is not for these must not apply.
    fn names_any(&self, held: &HashSet<String>, architecture: &str) -> bool {
        self.caps.iter().any(|capability| held.contains(capability))
            || self.arches.iter().any(|name| name == architecture)
    }
}

/// What profiles call an architecture that Go calls otherwise.
fn seccomp_name(architecture: &str) -> &str {
    match architecture {
        "amd64" => "SCMP_ARCH_X86_64",
        "386" => "SCMP_ARCH_X86",
        "arm64" => "SCMP_ARCH_AARCH64",
        "arm" => "SCMP_ARCH_ARM",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        "ppc64le" => "SCMP_ARCH_PPC64LE",
        "loong64" => "SCMP_ARCH_LOONGARCH64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Arch, Capability};

    #[test]
    fn rules_are_for_some_capabilities_and_architectures() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64"}
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}},
                {"names": ["arm_fadvise64_64"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}}
            ]
        }"#;
        let names = |capabilities: &[Capability], architecture: &str| {
            let profile = read(text, &capabilities.iter().copied().collect(), architecture).expect("profile");
            let rules = profile.syscalls().clone().unwrap_or_default();
            let names: Vec<String> = rules.iter().flat_map(|rule| rule.names().clone()).collect();
            (names.join(" "), profile.architectures().clone().unwrap_or_default())
        };
        assert_eq!(names(&[], "amd64"), ("read clone".to_owned(), vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]));
        assert_eq!(names(&[Capability::SysAdmin], "amd64").0, "read bpf");
        assert_eq!(names(&[], "arm64"), ("read clone arm_fadvise64_64".to_owned(), vec![Arch::ScmpArchAarch64]));
        assert!(read("{", &Capabilities::new(), "amd64").is_err());
        assert!(read(r#"{"defaultAction":"NO"}"#, &Capabilities::new(), "amd64").is_err());
    }
}
