//! What a client may choose about the runtime, from the `Any` that comes with Create.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use gantry_proto::any;
use gantry_proto::containerd::runc::v1 as runc;
use gantry_proto::runtimeoptions::v1 as generic;
use prost_types::Any;
use serde::{Deserialize, Serialize};

use crate::rung::flag;
use crate::{Doing, Error, Result, arguments};

/// Where state is kept unless the client says otherwise: containerd's place, one directory for each namespace below.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// The runtime's log, in the bundle.
pub const LOG: &str = "log.json";
/// The runtime's program unless the client names one.
const DEFAULT_BINARY: &str = "rung";
/// What containerd's configurations have besides in a section of options.
const IGNORED: [&str; 6] = ["TypeUrl", "ConfigPath", "ConfigBody", "CriuPath", "TaskApiAddress", "TaskApiVersion"];

/// The runtime options in effect for a container; kept in the bundle for `delete`. The other names are those of
/// containerd's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Use `MS_MOVE` instead of `pivot_root`.
    #[serde(alias = "NoPivotRoot")]
    pub no_pivot_root: bool,
    /// Keep the session keyring.
    #[serde(alias = "NoNewKeyring")]
    pub no_new_keyring: bool,
    /// Cgroup for the shim itself.
    #[serde(alias = "ShimCgroup")]
    pub shim_cgroup: String,
    /// Owner of the stdio pipes.
    #[serde(alias = "IoUid")]
    pub io_uid: u32,
    /// Group of the stdio pipes.
    #[serde(alias = "IoGid")]
    pub io_gid: u32,
    /// Runtime program.
    #[serde(alias = "BinaryName")]
    pub binary_name: String,
    /// Runtime state directory, without the namespace.
    #[serde(alias = "Root")]
    pub root: String,
    /// Cgroups are systemd's.
    #[serde(alias = "SystemdCgroup")]
    pub systemd_cgroup: bool,
    /// Where checkpoints go that name no directory of their own.
    #[serde(alias = "CriuImagePath")]
    pub criu_image_path: String,
    /// criu's work directory.
    #[serde(alias = "CriuWorkPath")]
    pub criu_work_path: String,
}

/// The option message of containerd's first shims, which `ctr` before 2.0 sends to every runtime but runc.
#[derive(Clone, PartialEq, prost::Message)]
struct Earlier {
    #[prost(bool, tag = "1")]
    no_pivot_root: bool,
    #[prost(bool, tag = "8")]
    no_new_keyring: bool,
    #[prost(string, tag = "9")]
    shim_cgroup: String,
    #[prost(uint32, tag = "10")]
    io_uid: u32,
    #[prost(uint32, tag = "11")]
    io_gid: u32,
    #[prost(string, tag = "12")]
    criu_work_path: String,
    #[prost(string, tag = "13")]
    criu_image_path: String,
}

impl prost::Name for Earlier {
    const PACKAGE: &'static str = "containerd.linux.runc";
    const NAME: &'static str = "CreateOptions";
}

impl From<Earlier> for Options {
    fn from(message: Earlier) -> Self {
        Self {
            no_pivot_root: message.no_pivot_root,
            no_new_keyring: message.no_new_keyring,
            shim_cgroup: message.shim_cgroup,
            io_uid: message.io_uid,
            io_gid: message.io_gid,
            criu_image_path: message.criu_image_path,
            criu_work_path: message.criu_work_path,
            ..Self::default()
        }
    }
}

impl Options {
    /// Reads the options of a request; none means the defaults.
    ///
    /// # Errors
    /// Where the value is none of the option messages.
    pub fn from_any(value: Option<&Any>) -> Result<Self> {
        let Some(value) = value.filter(|value| !value.type_url.is_empty()) else { return Ok(Self::default()) };
        let unreadable = |error: any::Mismatch| Error::invalid(format!("runtime options: {error}"));
        if any::is::<generic::Options>(value) {
            let options: generic::Options = any::unpack(value).map_err(unreadable)?;
            return Self::from_generic(&options);
        }
        if any::is::<Earlier>(value) {
            return any::unpack::<Earlier>(value).map(Self::from).map_err(unreadable);
        }
        Ok(Self::from_message(any::unpack(value).map_err(unreadable)?))
    }

    /// Whether the value is one of the option messages.
    pub fn understands(value: &Any) -> bool {
        any::is::<generic::Options>(value) || any::is::<runc::Options>(value) || any::is::<Earlier>(value)
    }

    fn from_message(message: runc::Options) -> Self {
        Self {
            no_pivot_root: message.no_pivot_root,
            no_new_keyring: message.no_new_keyring,
            shim_cgroup: message.shim_cgroup,
            io_uid: message.io_uid,
            io_gid: message.io_gid,
            binary_name: message.binary_name,
            root: message.root,
            systemd_cgroup: message.systemd_cgroup,
            criu_image_path: message.criu_image_path,
            criu_work_path: message.criu_work_path,
        }
    }

    /// The generic message carries a document, in its body or in a file: JSON, or TOML, in which containerd 1.7 and later
    /// pass on the options that their configuration has for a runtime handler.
    fn from_generic(options: &generic::Options) -> Result<Self> {
        let body = if options.config_body.is_empty() && !options.config_path.is_empty() {
            std::fs::read(&options.config_path).doing(|| format!("read runtime options {}", options.config_path))?
        } else {
            options.config_body.clone()
        };
        if body.is_empty() {
            return Ok(Self::default());
        }
        let unreadable = |error: &dyn std::fmt::Display| Error::invalid(format!("runtime options: {error}"));
        let text = std::str::from_utf8(&body).map_err(|error| unreadable(&error))?;
        let mut fields: serde_json::Map<String, serde_json::Value> = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| unreadable(&error))?
        } else {
            toml::from_str(text).map_err(|error| unreadable(&error))?
        };
        // The section is passed on whole, with the fields of the message itself and what runc's shim does not use either.
        fields.retain(|name, _| !IGNORED.contains(&name.as_str()));
        serde_json::from_value(fields.into()).map_err(|error| unreadable(&error))
    }

    /// The options Create left in `bundle`; the defaults where it left none. Another version of this program may have left
    /// more of them.
    pub fn load(bundle: &Path) -> Self {
        let read = || {
            let text = std::fs::read(bundle.join("options.json")).ok()?;
            let mut left: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text).ok()?;
            let known = serde_json::to_value(Self::default()).ok()?;
            left.retain(|name, _| known.get(name).is_some());
            serde_json::from_value(left.into()).ok()
        };
        read().unwrap_or_default()
    }

    /// Leaves the options in `bundle` for `delete`, which starts without a request. The defaults need no file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let text = serde_json::to_vec(self).map_err(|error| Error::internal(error.to_string()))?;
        crate::bundle::write(&bundle.join("options.json"), &text)
    }

    /// The runtime's program. Ours is looked for beside the shim before `PATH` is searched.
    pub fn program(&self) -> PathBuf {
        if !self.binary_name.is_empty() {
            return PathBuf::from(&self.binary_name);
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(DEFAULT_BINARY)));
        beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(DEFAULT_BINARY))
    }

    /// The runtime's global flags, which come before its command, for the container in `bundle`. Its log goes there too.
    pub fn global_flags(&self, namespace: &str, bundle: &Path) -> Vec<OsString> {
        let (root, log) = (self.root(namespace), bundle.join(LOG));
        let mut flags = arguments!["--root", root, "--log", log, "--log-format", "json"];
        flag(&mut flags, self.systemd_cgroup, "--systemd-cgroup");
        flags
    }

    /// The runtime's state directory for `namespace`.
    pub fn root(&self, namespace: &str) -> PathBuf {
        let root = if self.root.is_empty() { DEFAULT_ROOT } else { &self.root };
        Path::new(root).join(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message() {
        let message = runc::Options { binary_name: "crun".into(), systemd_cgroup: true, ..runc::Options::default() };
        let options = Options::from_any(Some(&any::pack(&message))).expect("runc options");
        assert_eq!((options.program(), options.systemd_cgroup), (PathBuf::from("crun"), true));
        assert_eq!(options.root("ns"), PathBuf::from("/run/containerd/runc/ns"));
        let message = generic::Options { config_body: br#"{"root":"/r"}"#.to_vec(), ..generic::Options::default() };
        let options = Options::from_any(Some(&any::pack(&message))).expect("generic options");
        assert_eq!(options.root("ns"), PathBuf::from("/r/ns"));
        let section = |text: &str| {
            let config_body = text.as_bytes().to_vec();
            Options::from_any(Some(&any::pack(&generic::Options { config_body, ..generic::Options::default() })))
        };
        let options = section("BinaryName = '/opt/rung'\nCriuPath = ''\nSystemdCgroup = true\n").expect("TOML");
        assert_eq!((options.program(), options.systemd_cgroup), (PathBuf::from("/opt/rung"), true));
        for (wrong, named) in [("SystemdCgroups = true", "SystemdCgroups"), ("Root = 1", "integer"), ("Root", "line 1")]
        {
            let error = section(wrong).expect_err(wrong).to_string();
            assert!(error.starts_with("runtime options: ") && error.contains(named), "{error}");
        }
        let bundle = tempfile::tempdir().expect("temporary directory");
        options.save(bundle.path()).expect("save");
        assert_eq!(Options::load(bundle.path()), options);
        std::fs::write(bundle.path().join("options.json"), r#"{"root":"/r","later":1}"#).expect("write");
        assert_eq!(Options::load(bundle.path()).root("ns"), PathBuf::from("/r/ns"));
        let earlier = Options::from_any(Some(&any::pack(&Earlier { no_pivot_root: true, ..Earlier::default() })));
        assert!(earlier.expect("earlier options").no_pivot_root);
        assert_eq!(Options::from_any(None).expect("none"), Options::default());
        let other = Any { type_url: "example.Other".into(), value: Vec::new() };
        assert!(Options::from_any(Some(&other)).is_err());
    }
}
