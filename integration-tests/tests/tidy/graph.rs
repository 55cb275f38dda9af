//! Which crate may use which: processes talk to each other, crates do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_none;
use crate::packages::metadata;

/// What each crate may depend on. `ARCHITECTURE.md` shows the same table with its reasons.
const ALLOWED: &[(&str, &[&str])] = &[
    ("gantry-proto", &[]),
    ("rung-spec", &[]),
    ("rung-sys", &[]),
    ("rung", &["rung-spec", "rung-sys"]),
    ("containerd-shim-rung-v2", &["gantry-proto", "rung-spec", "rung-sys"]),
    ("gantryd", &["gantry-proto", "rung-spec", "rung-sys"]),
    ("gantry", &["gantry-proto", "rung-spec"]),
    ("integration-tests", &["gantry-proto", "rung-spec"]),
];

#[test]
fn crates_depend_as_the_table_says() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let metadata = metadata();
    let ours: Vec<_> = metadata.packages.iter().filter(|package| package.source.is_none()).collect();
    let names: BTreeSet<&str> = ours.iter().map(|package| package.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in &ours {
        let Some(may) = allowed.get(package.name.as_str()) else {
            findings.push(format!("{}: a crate that the table does not know", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| names.contains(dependency.as_str())) {
            if !may.contains(&dependency.as_str()) {
                findings.push(format!("{} depends on {dependency}; it may use {may:?}", package.name));
            }
        }
    }
    let missing = allowed.keys().filter(|name| !names.contains(**name));
    findings.extend(missing.map(|name| format!("{name}: in the table, not in the workspace")));
    assert_none(&findings);
}
