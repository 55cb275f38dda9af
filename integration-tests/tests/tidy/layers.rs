//! The daemon's layers: a module uses lower ones, read from the paths that begin with `crate::`.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};

use crate::{assert_none, sources};

/// Top-level modules of `core-daemon/src` from the ground up.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "context",
        "labels",
        "id",
        "signals",
        "filter",
        "config",
        "blocking",
        "failpoint",
        "init",
        "oom_score",
        "program",
    ],
    &["metadata", "events", "erofs"],
    &["registry", "diff", "snapshots", "mounts", "content"],
    &["records", "image", "tasks", "shims", "net", "gc", "storage"],
    &["grpc", "engine", "ttrpc", "cri", "observe"],
    &["main", "lib", "args", "app", "serve", "hook"],
];

/// Pairs in one layer of which the first may use the second.
const BESIDE: &[(&str, &str)] = &[
    ("image", "records"),
    ("tasks", "shims"),
    ("tasks", "net"),
    ("tasks", "records"),
    // The collector reads what records keep alive.
    ("gc", "records"),
    // Whether what is stored is whole, and why it is kept.
    ("storage", "gc"),
    ("storage", "records"),
    // A layer is applied to what a snapshot says is to be mounted.
    ("diff", "snapshots::Mount"),
    ("grpc", "engine"),
    ("app", "serve"),
    ("serve", "app"),
    ("main", "*"),
    ("lib", "*"),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

#[test]
fn the_daemon_imports_downwards() {
    let mut findings = Vec::new();
    let mut there = BTreeSet::new();
    for source in sources() {
        let Some(inner) = source.path.strip_prefix("core-daemon/src/") else { continue };
        there.insert(inner.trim_end_matches(".rs").split('/').next().unwrap_or_default().to_owned());
        // Unit tests may build what they test with from above.
        if inner.ends_with("tests.rs") || inner.contains("/tests/") {
            continue;
        }
        let module = inner.trim_end_matches(".rs").split('/').next().unwrap_or_default();
        let Some(own) = layer(module) else {
            findings.push(format!("{}: module {module} has no layer; add it to tidy/layers.rs", source.path));
            continue;
        };
        let mut paths = Paths(BTreeSet::new());
        paths.visit_file(&source.tree);
        for path in &paths.0 {
            let used = path.split("::").next().unwrap_or_default();
            let Some(theirs) = layer(used).filter(|_| used != module) else { continue };
            if theirs > own || (theirs == own && own != 0 && !beside(&source.path, module, path)) {
                findings.push(format!("{}: layer {own} uses crate::{path} of layer {theirs}", source.path));
            }
        }
    }
    let gone = LAYERS.concat().into_iter().filter(|module| !there.contains(*module));
    findings.extend(gone.map(|module| format!("tidy/layers.rs: there is no module {module}")));
    assert_none(&findings);
}

fn beside(file: &str, module: &str, used: &str) -> bool {
    // One of the front doors is the engine's own.
    if module == "grpc" {
        return file.starts_with("core-daemon/src/grpc/engine") && used.starts_with("engine");
    }
    BESIDE.iter().any(|(user, other)| *user == module && (*other == "*" || used.starts_with(other)))
}

/// The first two names after `crate::` of every path, in use declarations and elsewhere.
struct Paths(BTreeSet<String>);

impl Paths {
    fn tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                let prefix = [prefix, &[path.ident.to_string()]].concat();
                self.tree(&prefix, &path.tree);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
            syn::UseTree::Name(name) => self.add(&[prefix, &[name.ident.to_string()]].concat()),
            syn::UseTree::Rename(name) => self.add(&[prefix, &[name.ident.to_string()]].concat()),
            syn::UseTree::Glob(_) => self.add(prefix),
        }
    }

    fn add(&mut self, names: &[String]) {
        if let [first, rest @ ..] = names
            && first == "crate"
            && !rest.is_empty()
        {
            self.0.insert(rest[..rest.len().min(2)].join("::"));
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&names);
        visit::visit_path(self, path);
    }
}
