//! Modules are named after what they hold, and every test file is part of the program.

use std::fs;

use syn::visit::{self, Visit};

use crate::{assert_none, root, sources};

const NAMELESS: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

#[test]
fn no_module_is_a_drawer() {
    let mut findings = Vec::new();
    for source in sources() {
        for part in source.path.trim_end_matches(".rs").split('/') {
            if NAMELESS.contains(&part) {
                findings.push(format!("{}: a module named {part}; name it after what it holds", source.path));
            }
        }
        let mut inline = Inline(Vec::new());
        inline.visit_file(&source.tree);
        findings.extend(inline.0.into_iter().map(|name| format!("{}: a module named {name}", source.path)));
    }
    assert_none(&findings);
}

struct Inline(Vec<String>);

impl<'ast> Visit<'ast> for Inline {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        if NAMELESS.contains(&name.as_str()) {
            self.0.push(name);
        }
        visit::visit_item_mod(self, item);
    }
}

/// A file without its `mod` line would never be compiled; one without its `TESTS` in the list is dead code already.
#[test]
fn every_integration_test_file_is_compiled() {
    let main = fs::read_to_string(root().join("integration-tests/tests/main.rs")).expect("read tests/main.rs");
    let mut findings = Vec::new();
    for source in sources() {
        let Some(file) = source.path.strip_prefix("integration-tests/tests/") else { continue };
        let module = file.trim_end_matches(".rs").split('/').next().unwrap_or_default();
        if module != "main" && module != "tidy" && !main.contains(&format!("mod {module};")) {
            findings.push(format!("{}: no `mod {module};` in tests/main.rs", source.path));
        }
    }
    assert_none(&findings);
}
