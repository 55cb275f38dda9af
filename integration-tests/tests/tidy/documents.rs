//! Every crate has a README and says at the head of its roots what it is; links between documents lead somewhere.

use std::fs;

use crate::{assert_none, files, root, sources};

#[test]
fn every_crate_has_a_readme_and_crate_docs() {
    let mut findings = Vec::new();
    for manifest in files(&root(), "toml").iter().filter(|path| path.ends_with("/Cargo.toml")) {
        let dir = manifest.trim_end_matches("Cargo.toml");
        if !root().join(dir).join("README.md").is_file() {
            findings.push(format!("{dir}: no README.md"));
        }
    }
    for source in sources() {
        let name = source.path.rsplit('/').next().unwrap_or_default();
        if (name == "lib.rs" || name == "main.rs") && !source.text.starts_with("//!") {
            findings.push(format!("{}: does not begin with `//!`: say what this is", source.path));
        }
    }
    assert_none(&findings);
}

#[test]
fn links_lead_somewhere() {
    let mut findings = Vec::new();
    for document in files(&root(), "md") {
        let text = fs::read_to_string(root().join(&document)).expect("read a document");
        let dir = root().join(&document).parent().expect("a file is in a directory").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !link.contains("://") && !dir.join(path).exists() {
                findings.push(format!("{document}: the link to {link} leads nowhere"));
            }
        }
    }
    assert_none(&findings);
}
