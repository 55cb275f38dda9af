//! The rules of the house that a machine can check, over the sources of the whole workspace.
//!
//! Each finding says where, what, and what to do about it. `ARCHITECTURE.md` has the reasons.
#![allow(clippy::disallowed_methods)]

mod documents;
mod fence;
mod graph;
mod layers;
mod names;
mod packages;
mod sizes;

use std::fs;
use std::path::{Path, PathBuf};

/// A source file of the workspace.
struct Source {
    /// Path from the workspace's root.
    path: String,
    text: String,
    tree: syn::File,
}

/// Directories whose content no rule is about: generated code and data.
const EXEMPT: &[&str] = &["proto/src/generated", "runtime/spec/src/syscalls"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Every Rust file of ours, parsed.
fn sources() -> Vec<Source> {
    files(&root(), "rs")
        .into_iter()
        .filter(|path| !EXEMPT.iter().any(|exempt| path.starts_with(exempt)))
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).expect("read a source file");
            let tree = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path} does not parse: {error}"));
            Source { path, text, tree }
        })
        .collect()
}

/// Paths from the root of all files with an extension, build output and hidden directories aside.
fn files(dir: &Path, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("read a directory").map(|entry| entry.expect("read a directory")) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            if !name.starts_with("target") && !name.starts_with('.') {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|have| have == extension) {
            let inner = path.strip_prefix(root()).expect("the file lies in the workspace");
            found.push(inner.to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Fails with all findings at once.
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
