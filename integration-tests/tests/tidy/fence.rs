//! Unsafe code lives in `runtime/sys` only, every crate takes the workspace's lints, and `rung` stays single-threaded.

use std::fs;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::{assert_none, files, root, sources};

const FENCE: &str = "runtime/sys/";

#[test]
fn unsafe_code_is_inside_the_fence() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with(FENCE)) {
        let mut sites = Sites(Vec::new());
        sites.visit_file(&source.tree);
        findings.extend(
            sites
                .0
                .iter()
                .map(|line| format!("{}:{line}: unsafe code; put a safe function for it in {FENCE}src", source.path)),
        );
    }
    assert_none(&findings);
}

struct Sites(Vec<usize>);

impl<'ast> Visit<'ast> for Sites {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.0.push(block.span().start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if matches!(signature.safety, syn::Safety::Unsafe(_)) {
            self.0.push(signature.span().start().line);
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.0.push(item.span().start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta
            && (list.path.is_ident("allow") || list.path.is_ident("expect"))
            && list.tokens.to_string().contains("unsafe_code")
        {
            self.0.push(attribute.span().start().line);
        }
    }
}

#[test]
fn every_crate_takes_the_lints() {
    let mut findings = Vec::new();
    for manifest in files(&root(), "toml").iter().filter(|path| path.ends_with("/Cargo.toml")) {
        let text = fs::read_to_string(root().join(manifest)).expect("read a manifest");
        let fuzz = manifest.contains("fuzz/");
        if !fuzz && !text.contains("[lints]\nworkspace = true") {
            findings.push(format!("{manifest}: no `[lints] workspace = true`"));
        }
    }
    assert_none(&findings);
}

/// `rung` clones itself; a second thread could hold a lock that the child then waits for, and nothing would release it.
#[test]
fn rung_has_one_thread() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("runtime/src/")) {
        // Unit tests at the end of a file run in the test harness, not in rung.
        let product = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for word in ["thread::spawn", "thread::scope", "thread::Builder", "tokio::"] {
            if product.contains(word) && !source.path.ends_with("/tests.rs") {
                findings.push(format!("{}: {word}; rung is single-threaded", source.path));
            }
        }
    }
    assert_none(&findings);
}
