//! A runtime configuration that all containers of a handler begin with, as an administrator wrote it: what the kubelet
//! cannot say. Whatever it can say is not taken from there.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::Spec;
use rung_spec::builder;

use crate::error::{Doing as _, Error, Result};

/// Largest file that is read.
const MAX_BASE: u64 = 4 << 20;

/// Reads the file.
///
/// # Errors
/// `InvalidArgument` for one that is no runtime configuration.
pub(in crate::cri) fn read(path: &Path) -> Result<Spec> {
    use std::io::Read as _;
    let doing = || format!("base_runtime_spec {}", path.display());
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_BASE).read_to_string(&mut text)).doing(doing)?;
    serde_json::from_str(&text).map_err(|error| Error::invalid(error.to_string())).doing(doing)
}

/// Adds what the base has to what was made for a container: limits of its processes, variables, hooks, annotations, mounts
/// where there are none, and of Linux the settings, cache classes, and limits of processes, block devices and RDMA.
pub(super) fn add(mut base: Spec, spec: &mut Spec) {
    if let (Some(from), Some(process)) = (base.process(), spec.process_mut().as_mut()) {
        let env = builder::merge_environment(
            from.env().as_deref().unwrap_or_default(),
            process.env().as_deref().unwrap_or_default(),
        );
        process.set_env(Some(env));
        let wanted = from.rlimits().clone().unwrap_or_default();
        let mut limits = process.rlimits().clone().unwrap_or_default();
        limits.retain(|usual| !wanted.iter().any(|wanted| wanted.typ() == usual.typ()));
        limits.extend(wanted);
        process.set_rlimits(Some(limits));
    }
    spec.set_hooks(base.hooks().clone());
    let annotations: HashMap<_, _> = base
        .annotations()
        .iter()
        .chain(spec.annotations().iter())
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    spec.set_annotations(Some(annotations));
    let mut mounts = base.mounts().clone().unwrap_or_default();
    let made = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|mount| !made.iter().any(|made| made.destination() == mount.destination()));
    // Outer ones before inner ones; those of the same depth keep their order.
    mounts.splice(0..0, made);
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    let (Some(from), Some(linux)) = (base.linux_mut().take(), spec.linux_mut().as_mut()) else { return };
    linux.set_sysctl(from.sysctl().clone()).set_intel_rdt(from.intel_rdt().clone());
    if let (Some(from), Some(limits)) = (from.resources(), linux.resources_mut().as_mut()) {
        limits.set_pids(*from.pids()).set_block_io(from.block_io().clone()).set_rdma(from.rdma().clone());
        let unified = from.unified().iter().chain(limits.unified().iter()).flatten();
        let unified: HashMap<_, _> = unified.map(|(k, v)| (k.clone(), v.clone())).collect();
        limits.set_unified((!unified.is_empty()).then_some(unified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(document: serde_json::Value) -> Spec {
        serde_json::from_value(document).expect("configuration")
    }

    #[test]
    fn a_base_gives_what_nobody_else_says() {
        let base = spec(json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/base", "args": ["no"], "env": ["A=base", "B=base"], "user": {"uid": 7, "gid": 7},
                        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 5}]},
            "hooks": {"createRuntime": [{"path": "/bin/hook"}]},
            "annotations": {"x": "base", "y": "base"},
            "mounts": [{"destination": "/proc"}, {"destination": "/base", "source": "/b"}],
            "linux": {"sysctl": {"net.core.somaxconn": "7"}, "resources": {"pids": {"limit": 9}, "unified": {"io.weight": "5"}}},
        }));
        let mut made = spec(json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["yes"], "env": ["B=made"], "user": {"uid": 1, "gid": 1},
                        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}]},
            "annotations": {"x": "made"},
            "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/a/b/c"}],
            "linux": {"resources": {"unified": {"io.weight": "1"}}},
        }));
        add(base, &mut made);
        let made = serde_json::to_value(&made).expect("document");
        let process = &made["process"];
        assert_eq!(
            (&process["args"], &process["cwd"], &process["user"]["uid"]),
            (&json!(["yes"]), &json!("/"), &json!(1))
        );
        assert_eq!(process["env"], json!(["A=base", "B=made"]));
        assert_eq!(process["rlimits"], json!([{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 5}]));
        assert_eq!(made["hooks"]["createRuntime"][0]["path"], "/bin/hook");
        assert_eq!(made["annotations"], json!({"x": "made", "y": "base"}));
        let places: Vec<_> = made["mounts"].as_array().expect("mounts").iter().map(|one| &one["destination"]).collect();
        assert_eq!(places, ["/proc", "/base", "/a/b/c"]);
        assert_eq!(made["mounts"][0]["type"], "proc");
        assert_eq!(made["linux"]["sysctl"]["net.core.somaxconn"], "7");
        assert_eq!(made["linux"]["resources"]["pids"]["limit"], 9);
        assert_eq!(made["linux"]["resources"]["unified"]["io.weight"], "1");
    }
}
