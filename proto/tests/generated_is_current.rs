//! The checked-in code of `src/generated` is what `protos` compile to.
//!
//! `GANTRY_REGENERATE=1 cargo test -p gantry-proto --test generated_is_current` rewrites it after a change of `protos`.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn generated_is_current() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = crate_dir.join("src/generated");
    let fresh = tempfile::tempdir().expect("temporary directory");
    generate(&crate_dir.join("protos"), fresh.path());
    let want = read_all(fresh.path());
    if std::env::var_os("GANTRY_REGENERATE").is_some() {
        let _ = fs::remove_dir_all(&checked_in);
        fs::create_dir_all(&checked_in).expect("create src/generated");
        for (name, text) in &want {
            fs::write(checked_in.join(name), text).expect("write generated file");
        }
    }
    let have = read_all(&checked_in);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&have), names(&want), "files of src/generated; regenerate as the head of this test says");
    for (name, text) in &want {
        assert!(
            have[name] == *text,
            "src/generated/{name} is not what protos compile to; regenerate as the head of this test says"
        );
    }
}

/// Messages of `runtime.v1` that are shown to people as JSON, in which the others lie.
const SHOWN: &[&str] = &[
    "CDIDevice",
    "Capability",
    "ContainerConfig",
    "ContainerMetadata",
    "DNSConfig",
    "Device",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "Int64Value",
    "KeyValue",
    "LinuxContainerConfig",
    "LinuxContainerResources",
    "LinuxContainerSecurityContext",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "Mount",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "SELinuxOption",
    "SecurityProfile",
    "UserNamespace",
    "WindowsContainerConfig",
    "WindowsContainerResources",
    "WindowsContainerSecurityContext",
    "WindowsCpuGroupAffinity",
    "WindowsNamespaceOption",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
];

fn generate(protos: &Path, out: &Path) {
    let mut files = Vec::new();
    collect(protos, &mut files);
    files.sort();
    let descriptors = protox::compile(&files, [protos]).expect("compile protos");
    fs::write(out.join("streaming.rs"), streaming(&descriptors)).expect("write streaming.rs");
    let mut config = tonic_prost_build::Config::new();
    config.out_dir(out).include_file("mod.rs").enable_type_names().btree_map(["."]).bytes([
        ".containerd.services.content.v1",
        ".gantry.engine.v1",
        ".containerd.types.transfer",
    ]);
    for message in SHOWN {
        config.message_attribute(format!(".runtime.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    // Where the interface's names are not those of fields in Rust.
    for (field, attribute) in [
        ("KeyValue.value", "#[serde(serialize_with = \"crate::json::base64\")]"),
        ("Mount.uidMappings", "#[serde(rename = \"uidMappings\")]"),
        ("Mount.gidMappings", "#[serde(rename = \"gidMappings\")]"),
        ("ContainerConfig.CDI_devices", "#[serde(rename = \"CDI_devices\")]"),
    ] {
        config.field_attribute(format!(".runtime.v1.{field}"), attribute);
    }
    tonic_prost_build::configure()
        .out_dir(out)
        .include_file("mod.rs")
        .build_transport(false)
        .compile_fds_with_config(descriptors, config)
        .expect("generate code");
}

/// The methods with a stream in either direction, by path and in their order, with the name that metrics have for each kind.
fn streaming(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut kinds = BTreeMap::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => continue,
                    (false, true) => "server_stream",
                    (true, false) => "client_stream",
                    (true, true) => "bidi_stream",
                };
                kinds.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()), kind);
            }
        }
    }
    let lines = kinds.iter().map(|(path, kind)| format!("    ({path:?}, {kind:?}),\n"));
    format!("&[\n{}]\n", lines.collect::<String>())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("read protos") {
        let path = entry.expect("read protos").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            files.push(path);
        }
    }
}

fn read_all(dir: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    entries
        .map(|entry| {
            let path = entry.expect("read directory").path();
            let name = path.file_name().expect("file name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("read generated file"))
        })
        .collect()
}
