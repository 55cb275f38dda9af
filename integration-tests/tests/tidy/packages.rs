//! What other people's packages must be: freely licensed, from the registry, and one of each that shares types.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::{assert_none, root};

/// The same list as in `deny.toml`.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Two versions of one of these would mean two of every message, error or runtime.
const ONE_VERSION: &[&str] = &[
    "clap",
    "http",
    "hyper",
    "libc",
    "oci-spec",
    "prost",
    "redb",
    "reqwest",
    "rustls",
    "serde",
    "serde_json",
    "tokio",
    "tonic",
    "tracing",
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: String,
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<String>,
}

pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
}

/// What cargo knows about the workspace and everything below it.
pub(crate) fn metadata() -> Metadata {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = value["packages"].as_array().expect("a list of packages").iter();
    Metadata {
        packages: packages
            .map(|package| Package {
                name: text(&package["name"]),
                version: text(&package["version"]),
                license: text(&package["license"]),
                source: package["source"].as_str().map(ToOwned::to_owned),
                dependencies: package["dependencies"]
                    .as_array()
                    .map(|list| list.iter().map(|dependency| text(&dependency["name"])).collect())
                    .unwrap_or_default(),
            })
            .collect(),
    }
}

#[test]
fn packages_are_free_and_from_the_registry() {
    let mut findings = Vec::new();
    for package in metadata().packages {
        let Some(source) = &package.source else { continue };
        if source != REGISTRY {
            findings.push(format!("{} comes from {source}", package.name));
        }
        if !permitted(&package.license) {
            findings.push(format!("{}: licence {:?} is not on the list", package.name, package.license));
        }
    }
    assert_none(&findings);
}

#[test]
fn there_is_one_version_of_what_shares_types() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata().packages {
        versions.entry(package.name).or_default().insert(package.version);
    }
    let findings: Vec<String> = ONE_VERSION
        .iter()
        .filter_map(|name| versions.get(*name).filter(|versions| versions.len() > 1).map(|versions| (name, versions)))
        .map(|(name, versions)| format!("{name} is here in versions {versions:?}"))
        .collect();
    assert_none(&findings);
}

/// Whether a licence expression can be satisfied from the list. `/` is an old way to write OR.
fn permitted(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let split = |text: &str, word: &str| split_outside_parentheses(text, word);
    split(&expression, " OR ").iter().any(|choice| {
        split(choice, " AND ").iter().all(|part| {
            let part = part.trim();
            match part.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
                Some(inner) => permitted(inner),
                None => LICENCES.contains(&part),
            }
        })
    })
}

fn split_outside_parentheses(text: &str, word: &str) -> Vec<String> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0i32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && text[at..].starts_with(word) => {
                parts.push(text[begin..at].to_owned());
                begin = at + word.len();
            }
            _ => {}
        }
    }
    parts.push(text[begin..].to_owned());
    parts
}

#[test]
fn licence_expressions_are_understood() {
    for good in ["MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception OR X"] {
        assert!(permitted(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT AND GPL-2.0) OR X"] {
        assert!(!permitted(bad), "{bad}");
    }
}
