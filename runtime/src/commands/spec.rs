//! `spec`.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::cgroups;
use crate::cli::{SpecArgs, program};
use crate::error::{Doing as _, Error, Kind, Result};

pub(super) fn run(args: &SpecArgs) -> Result<()> {
    let directory = args.bundle.as_deref().unwrap_or(Path::new("."));
    let path = directory.join("config.json");
    let mut document = template()?;
    document["hostname"] = program().into();
    if cgroups::is_unified() {
        add_namespace(&mut document, "cgroup");
    }
    if args.rootless {
        make_rootless(&mut document, nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    }
    let text = serde_json::to_string_pretty(&document).map_err(|error| Error::invalid(error.to_string()))?;
    match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::new(Kind::AlreadyExists, "File config.json exists. Remove it first"))
        }
        opened => {
            opened.and_then(|mut file| file.write_all(text.as_bytes())).doing(|| format!("write {}", path.display()))
        }
    }
}

fn template() -> Result<Value> {
    serde_json::from_str(include_str!("spec_template.json")).map_err(|error| Error::invalid(error.to_string()))
}

fn add_namespace(document: &mut Value, kind: &str) {
    if let Some(namespaces) = document["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": kind}));
    }
}

/// What an unprivileged user can have: an own user namespace, the host's network, no group for terminals, and the
/// host's sysfs, because a new one needs an own network.
fn make_rootless(document: &mut Value, uid: u32, gid: u32) {
    let linux = &mut document["linux"];
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    add_namespace(document, "user");
    let linux = &mut document["linux"];
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let Some(mounts) = document["mounts"].as_array_mut() else { return };
    for mount in mounts {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]
            });
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| {
                !option.as_str().is_some_and(|text| text.starts_with("gid=") || text.starts_with("uid="))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_valid_configurations() {
        let mut document = template().expect("template");
        for _ in 0..2 {
            let text = document.to_string();
            let spec = rung_spec::config::parse(&text).expect("valid").value;
            assert!(spec.linux().is_some());
            make_rootless(&mut document, 1000, 1000);
        }
        assert!(!document.to_string().contains("gid=5") && !document.to_string().contains("null"));
    }
}
