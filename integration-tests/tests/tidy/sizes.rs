//! 500 lines a file, 80 a function, 60 a `main.rs`.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::{Source, assert_none, sources};

const FILE: usize = 500;
const FUNCTION: usize = 80;
const MAIN: usize = 60;

#[test]
fn no_file_and_no_function_is_too_long() {
    let mut findings = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let program = source.path.ends_with("src/main.rs");
        let limit = if program { MAIN } else { FILE };
        if lines > limit {
            findings.push(format!("{}: {lines} lines, {limit} allowed; split it by concern", source.path));
        }
        let mut functions = Functions { source: &source, findings: &mut findings };
        functions.visit_file(&source.tree);
    }
    assert_none(&findings);
}

struct Functions<'a> {
    source: &'a Source,
    findings: &'a mut Vec<String>,
}

impl Functions<'_> {
    fn measure(&mut self, name: &syn::Ident, begin: proc_macro2::Span, end: proc_macro2::Span) {
        let (first, last) = (begin.start().line, end.end().line);
        let lines = last - first + 1;
        if lines > FUNCTION {
            let path = &self.source.path;
            self.findings.push(format!("{path}:{first}: {name} has {lines} lines, {FUNCTION} allowed; split it"));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig.ident, item.sig.span(), item.block.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig.ident, item.sig.span(), item.block.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.measure(&item.sig.ident, item.sig.span(), block.span());
        }
        visit::visit_trait_item_fn(self, item);
    }
}
