//! Devices that vendors describe: the container device interface.
//!
//! A device is `vendor/class=name`; files in JSON or YAML say what a container needs to use it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::runtime::{Hook, Linux, LinuxDevice, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, Spec};
use rung_spec::builder::merge_environment;
use rung_spec::defaults::mounts::mount;
use serde::Deserialize;

use super::mounts::push_option;
use super::{Making, devices, hooks, invalid};
use crate::error::{Error, Result};

/// Annotations that name devices, for kubelets that do not send the field.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Largest description.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<WantedHook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    net_devices: Vec<NetDevice>,
    /// As the runtime's configuration has it.
    intel_rdt: Option<LinuxIntelRdt>,
    /// What else there is, none of which can be left out: a device without it may not work, or be less confined.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetDevice {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WantedHook {
    hook_name: String,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

/// Adds what the devices need that the kubelet names.
pub(super) fn apply(making: &Making<'_>, spec: &mut Spec) -> Result<()> {
    add(&names(making), &making.settings.cdi_dirs, spec)
}

/// Adds what the devices need whose names are given, each with the field that names it.
///
/// # Errors
/// `InvalidArgument` naming the field where the directories do not say what the device is.
pub(in crate::cri) fn add(names: &[(String, String)], dirs: &[PathBuf], spec: &mut Spec) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let known = read_all(dirs);
    let mut begun: Vec<&str> = Vec::new();
    for (field, name) in names {
        let unknown = || invalid(field, format!("{name}: no such device"));
        let (kind, device) =
            name.split_once('=').ok_or_else(|| invalid(field, format!("{name:?} is not vendor/class=name")))?;
        let description = match known.get(name.as_str()).ok_or_else(unknown)? {
            Known::Once(description) => description,
            Known::Twice(one, other) => {
                let (one, other) = (one.display(), other.display());
                return Err(invalid(field, format!("{name}: both {one} and {other} describe it")));
            }
        };
        if !begun.contains(&kind) {
            edit(&description.container_edits, spec)?;
            begun.push(kind);
        }
        let device = description.devices.iter().find(|known| known.name == device).ok_or_else(unknown)?;
        edit(&device.container_edits, spec)?;
    }
    Ok(())
}

/// The names of all devices that are wanted, each with the field that names it.
fn names(making: &Making<'_>) -> Vec<(String, String)> {
    let fields = making.config.cdi_devices.iter().map(|device| ("CDI_devices".to_owned(), device.name.clone()));
    let annotated = making.config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    let annotated = annotated.flat_map(|(key, value)| value.split(',').map(move |name| (key, name)));
    let annotated = annotated.filter(|(_, name)| !name.is_empty());
    let annotated = annotated.map(|(key, name)| (format!("annotations.{key}"), name.to_owned()));
    let mut seen = std::collections::BTreeSet::new();
    fields.chain(annotated).filter(|(_, name)| seen.insert(name.clone())).collect()
}

/// What is known of a device.
enum Known {
    Once(Rc<Description>),
    /// Two files of one directory describe it, and nothing says which of them counts.
    Twice(PathBuf, PathBuf),
}

/// The descriptions by the names of their devices; later directories count more.
fn read_all(dirs: &[PathBuf]) -> BTreeMap<String, Known> {
    let mut known = BTreeMap::new();
    for dir in dirs {
        let mut here: BTreeMap<String, (PathBuf, Known)> = BTreeMap::new();
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        paths.sort();
        for path in paths {
            let parse = match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => from_json,
                Some("yaml" | "yml") => from_yaml,
                _ => continue,
            };
            match read(&path, parse) {
                Ok(description) => {
                    let description = Rc::new(description);
                    for device in &description.devices {
                        let found = here.entry(format!("{}={}", description.kind, device.name));
                        found
                            .and_modify(|(first, known)| *known = Known::Twice(first.clone(), path.clone()))
                            .or_insert_with(|| (path.clone(), Known::Once(description.clone())));
                    }
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "device description cannot be used"),
            }
        }
        known.extend(here.into_iter().map(|(name, (_, described))| (name, described)));
    }
    known
}

fn read(path: &Path, parse: fn(&str) -> Result<Description>) -> Result<Description> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    parse(&text)
}

fn from_json(text: &str) -> Result<Description> {
    serde_json::from_str(text).map_err(|error| Error::invalid(error.to_string()))
}

fn from_yaml(text: &str) -> Result<Description> {
    // As the tools write numbers that make these files.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Error::invalid(error.to_string()))
}

fn edit(edits: &Edits, spec: &mut Spec) -> Result<()> {
    if let Some(other) = edits.others.keys().next() {
        return Err(invalid("CDI_devices", format!("a description asks for {other}, which is not supported")));
    }
    let mut process = spec.process().clone().unwrap_or_default();
    let env = merge_environment(process.env().as_deref().unwrap_or_default(), &edits.env);
    process.set_env(Some(env));
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    groups.extend(edits.additional_gids.iter().filter(|group| **group != 0));
    user.set_additional_gids(Some(groups));
    // A device that belongs to nobody in particular is for whom the container runs as.
    let owner = (Some(user.uid()).filter(|user| *user > 0), Some(user.gid()).filter(|group| *group > 0));
    process.set_user(user);
    spec.set_process(Some(process));
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for wanted in &edits.device_nodes {
        let mut node = node(wanted)?;
        node.set_uid(wanted.uid.or(owner.0)).set_gid(wanted.gid.or(owner.1));
        let access = if wanted.permissions.is_empty() { "rwm" } else { &wanted.permissions };
        // There is nothing to allow about a pipe.
        if node.typ() != LinuxDeviceType::P {
            rules.push(devices::allow(&node, access));
        }
        nodes.retain(|old| old.path() != node.path());
        nodes.push(node);
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(nodes)).set_resources(Some(resources));
    if let Some(class) = &edits.intel_rdt {
        linux.set_intel_rdt(Some(class.clone()));
    }
    add_interfaces(&edits.net_devices, &mut linux);
    let ids = linux.uid_mappings().clone().zip(linux.gid_mappings().clone());
    spec.set_linux(Some(linux));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for wanted in &edits.mounts {
        let kind = if wanted.kind.is_empty() { "bind" } else { &wanted.kind };
        let options =
            if wanted.options.is_empty() { vec!["rbind".to_owned(), "ro".to_owned()] } else { wanted.options.clone() };
        mounts.retain(|old| *old.destination() != Path::new(&wanted.container_path));
        let mut added = mount(&wanted.container_path, kind, &wanted.host_path, options);
        if let Some((users, groups)) = ids.as_ref().filter(|_| kind == "bind") {
            added.set_uid_mappings(Some(users.clone())).set_gid_mappings(Some(groups.clone()));
            push_option(&mut added, "idmap");
        }
        mounts.push(added);
    }
    // Outer ones before inner ones.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    for wanted in &edits.hooks {
        add_hook(wanted, spec)?;
    }
    Ok(())
}

fn add_interfaces(wanted: &[NetDevice], linux: &mut Linux) {
    if wanted.is_empty() {
        return;
    }
    let mut all = linux.net_devices().clone().unwrap_or_default();
    for one in wanted {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(one.name.clone()));
        all.insert(one.host_interface_name.clone(), device);
    }
    linux.set_net_devices(Some(all));
}

fn node(wanted: &Node) -> Result<LinuxDevice> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let host = if wanted.host_path.is_empty() { &wanted.path } else { &wanted.host_path };
    let problem = |what: String| invalid("CDI_devices", format!("{host}: {what}"));
    let mut node = LinuxDevice::default();
    node.set_path(PathBuf::from(&wanted.path));
    let found = std::fs::metadata(host);
    let kind = match (wanted.kind.as_str(), &found) {
        ("c" | "u", _) => LinuxDeviceType::C,
        ("b", _) => LinuxDeviceType::B,
        ("p", _) => LinuxDeviceType::P,
        ("", Ok(metadata)) if metadata.file_type().is_char_device() => LinuxDeviceType::C,
        ("", Ok(metadata)) if metadata.file_type().is_block_device() => LinuxDeviceType::B,
        ("", Ok(_)) => return Err(problem("is not a device".to_owned())),
        ("", Err(error)) => return Err(problem(error.to_string())),
        (other, _) => return Err(problem(format!("type {other:?} is unknown"))),
    };
    let number = found.as_ref().map_or(0, std::fs::Metadata::rdev);
    let part = |part: u64| i64::try_from(part).unwrap_or_default();
    let (major, minor) = match (wanted.major, wanted.minor, &found) {
        (Some(major), Some(minor), _) => (major, minor),
        _ if kind == LinuxDeviceType::P => (0, 0),
        (_, _, Ok(_)) => (part(nix::sys::stat::major(number)), part(nix::sys::stat::minor(number))),
        (_, _, Err(error)) => return Err(problem(error.to_string())),
    };
    let mode = found.as_ref().ok().map(|metadata| metadata.mode() & 0o7777);
    node.set_typ(kind).set_major(major).set_minor(minor).set_file_mode(wanted.file_mode.or(mode));
    Ok(node)
}

fn add_hook(wanted: &WantedHook, spec: &mut Spec) -> Result<()> {
    let mut hook = Hook::default();
    hook.set_path(wanted.path.clone())
        .set_args((!wanted.args.is_empty()).then(|| wanted.args.clone()))
        .set_env((!wanted.env.is_empty()).then(|| wanted.env.clone()))
        .set_timeout(wanted.timeout);
    hooks::add(&wanted.hook_name, &hook, spec)
        .ok_or_else(|| invalid("CDI_devices", format!("hook {:?} is unknown", wanted.hook_name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_refused() {
        let edits: Edits = serde_json::from_str(r#"{"env":["A=1"],"newest":{"a":"b"}}"#).expect("edits");
        let error = edit(&edits, &mut Spec::default()).expect_err("not supported");
        assert!(error.to_string().contains("newest"), "{error}");
    }

    #[test]
    fn descriptions_become_edits() {
        let dir = tempfile::tempdir().expect("directory");
        let text = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/net","devices":[{"name":"n0","containerEdits":
            {"env":["A=1"],"deviceNodes":[{"path":"/dev/mine","hostPath":"/dev/null"}],
            "mounts":[{"hostPath":"/lib","containerPath":"/mylib","options":["ro","bind"]}],
            "hooks":[{"hookName":"createContainer","path":"/bin/true"}],"additionalGids":[5]}}]}"#;
        std::fs::write(dir.path().join("vendor.json"), text).expect("write");
        std::fs::write(dir.path().join("broken.json"), "{").expect("write");
        let known = read_all(&[dir.path().to_owned()]);
        let Known::Once(description) = &known["vendor.com/net=n0"] else { panic!("described twice") };
        let device = &description.devices[0];
        let mut spec = Spec::default();
        edit(&device.container_edits, &mut spec).expect("edit");
        let nodes = spec.linux().as_ref().and_then(|linux| linux.devices().clone()).expect("devices");
        let node = nodes.iter().find(|node| node.path() == Path::new("/dev/mine")).expect("node");
        assert_eq!((node.major(), node.minor()), (1, 3));
        assert!(spec.process().as_ref().is_some_and(|p| p.env().iter().flatten().any(|entry| entry == "A=1")));
        assert!(spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/mylib")));
        assert_eq!(spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref()).map(Vec::len), Some(1));
    }

    #[test]
    fn descriptions_in_yaml_are_the_same() {
        let dir = tempfile::tempdir().expect("directory");
        let text = concat!(
            "---\ncdiVersion: 0.5.0\nkind: vendor.com/gpu\n",
            "containerEdits:\n  env:\n  - VISIBLE=void\n  intelRdt: {closID: gold}\n",
            "  netDevices:\n  - hostInterfaceName: ib0\n    name: net1\n",
            "devices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/mine\n      hostPath: /dev/null\n",
            "      fileMode: 0640\n    hooks:\n    - hookName: prestart\n      path: /bin/true\n      args: [a, b]\n",
            "      timeout: 3\n",
        );
        std::fs::write(dir.path().join("vendor.yaml"), text).expect("write");
        std::fs::write(dir.path().join("broken.yaml"), "a: [").expect("write");
        let known = read_all(&[dir.path().to_owned()]);
        let Known::Once(description) = &known["vendor.com/gpu=0"] else { panic!("described twice") };
        let mut spec = Spec::default();
        edit(&description.container_edits, &mut spec).expect("edit of all");
        edit(&description.devices[0].container_edits, &mut spec).expect("edit of one");
        let linux = spec.linux().clone().expect("linux");
        let nodes = linux.devices().clone().expect("devices");
        let node = nodes.iter().find(|node| node.path() == Path::new("/dev/mine")).expect("node");
        assert_eq!(node.file_mode(), Some(0o640));
        assert_eq!(linux.intel_rdt().as_ref().and_then(|class| class.clos_id().as_deref()), Some("gold"));
        let interface = linux.net_devices().as_ref().and_then(|all| all.get("ib0")).expect("interface");
        assert_eq!(interface.name().as_deref(), Some("net1"));
        assert!(spec.hooks().is_some());
    }

    #[test]
    fn two_files_of_one_directory_are_one_too_many() {
        let (low, high) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let text =
            |env: &str| format!(r#"{{"kind":"v/c","devices":[{{"name":"d","containerEdits":{{"env":["{env}"]}}}}]}}"#);
        std::fs::write(low.path().join("a.json"), text("A=1")).expect("write");
        std::fs::write(low.path().join("b.json"), text("A=2")).expect("write");
        assert!(matches!(&read_all(&[low.path().to_owned()])["v/c=d"], Known::Twice(a, b) if a != b));
        std::fs::write(high.path().join("c.json"), text("A=3")).expect("write");
        let known = read_all(&[low.path().to_owned(), high.path().to_owned()]);
        assert!(matches!(&known["v/c=d"], Known::Once(one) if one.devices[0].container_edits.env == ["A=3"]));
    }

    #[test]
    fn devices_are_for_whom_the_container_runs_as() {
        let edits = r#"{"deviceNodes":[{"path":"/dev/null"},{"path":"/dev/mine","hostPath":"/dev/null","uid":0,"gid":7},
            {"path":"/dev/pipe","type":"p"}]}"#;
        let edits: Edits = serde_json::from_str(edits).expect("edits");
        let owners = |user: u32, group: u32| {
            let mut spec = Spec::default();
            let mut process = spec.process().clone().expect("process");
            let mut of = process.user().clone();
            of.set_uid(user).set_gid(group);
            process.set_user(of);
            spec.set_process(Some(process));
            edit(&edits, &mut spec).expect("edit");
            let linux = spec.linux().clone().expect("linux");
            let nodes = linux.devices().clone().expect("devices");
            let count = linux.resources().as_ref().and_then(|all| all.devices().as_ref()).map_or(0, Vec::len);
            let last = &nodes[nodes.len() - 3..];
            (last.iter().map(|node| (node.uid(), node.gid())).collect::<Vec<_>>(), count, last[2].typ())
        };
        let (of_user, rules, kind) = owners(1000, 1001);
        assert_eq!(of_user, [(Some(1000), Some(1001)), (Some(0), Some(7)), (Some(1000), Some(1001))]);
        assert_eq!(kind, LinuxDeviceType::P);
        let (of_root, same, _) = owners(0, 0);
        assert_eq!((of_root[0], of_root[1]), ((None, None), (Some(0), Some(7))));
        assert_eq!(rules, same);
        let none = Spec::default().linux().as_ref().and_then(|linux| linux.resources().clone());
        assert_eq!(rules, none.and_then(|all| all.devices().clone()).map_or(0, |rules| rules.len()) + 2, "no pipe");
    }
}
