//! What is kept of a container between two runs of the program: `state.json`, with runc's key names, because other
//! programs (cAdvisor, checkpoint tools) read that file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hooks, Spec};
use rung_spec::config;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::{Doing as _, Error, Result};

/// The persisted record of one container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The container's name.
    pub id: String,
    /// Its first process, in the namespace of the runtime; 0 while it is being made.
    pub init_process_pid: i32,
    /// When that process started, in ticks from boot: tells it from a later one with the same number.
    pub init_process_start: u64,
    /// When the container was created (RFC 3339, UTC).
    pub created: String,
    /// What it was made from.
    pub config: Config,
    /// Made without root.
    #[serde(default)]
    pub rootless: bool,
    /// Where its cgroups are: one entry a v1 controller, or one with an empty key for v2.
    #[serde(default)]
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    /// `NEWPID` → `/proc/<pid>/ns/pid`, and so on.
    #[serde(default)]
    pub namespace_paths: BTreeMap<String, PathBuf>,
    /// Where stdin, stdout and stderr pointed, for checkpoints.
    #[serde(default)]
    pub external_descriptors: Vec<String>,
    /// Its resource control directory, when it has one.
    #[serde(default)]
    pub intel_rdt_path: String,
    /// Whether that directory is the container's own, to be removed with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub intel_rdt_owned: bool,
    /// Without a mount namespace of its own: the mount that its root was mounted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mount: Option<u64>,
}

/// The part of the record that does not change.
#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    /// The root file system as the runtime sees it.
    pub rootfs: PathBuf,
    /// `bundle=<path>` and the annotations, as `key=value`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The specification version of the bundle.
    #[serde(default)]
    pub version: String,
    /// Which driver made the cgroups, and its path.
    #[serde(default)]
    pub cgroups: CgroupConfig,
    /// The keyring of the runtime was kept.
    #[serde(default)]
    pub no_new_keyring: bool,
    /// The bundle's configuration as it was at `create`, byte for byte.
    pub spec: Json,
}

/// A JSON text that was read before, byte for byte. [`Record::to_json`] puts it in its place without reading it again.
#[derive(Debug, Deserialize)]
#[serde(from = "Box<RawValue>")]
pub struct Json(String);

impl Json {
    /// `text` must be JSON.
    pub fn new(text: &str) -> Self {
        Self(text.trim_ascii().to_owned())
    }

    /// The text.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl From<Box<RawValue>> for Json {
    fn from(value: Box<RawValue>) -> Self {
        Self(Box::<str>::from(value).into_string())
    }
}

/// Only where it will be put.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// The cgroup part of the record.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CgroupConfig {
    /// The path that was asked for.
    #[serde(default)]
    pub path: PathBuf,
    /// The systemd driver made it.
    #[serde(default)]
    pub systemd: bool,
    /// Made without root.
    #[serde(default)]
    pub rootless: bool,
}

impl Record {
    /// The record as it is kept.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        /// No string has this in it: its quotes would not be bare.
        const PLACE: &str = r#""spec":null"#;
        let text = serde_json::to_string(self)?;
        let found =
            text.split_once(PLACE).ok_or_else(|| serde::ser::Error::custom("the configuration has no place"))?;
        Ok([found.0, r#""spec":"#, self.config.spec.get(), found.1].concat().into_bytes())
    }

    /// The bundle directory.
    pub fn bundle(&self) -> &Path {
        // The last one: an annotation may have that name too.
        let bundle = self.config.labels.iter().rev().find_map(|label| label.strip_prefix("bundle="));
        Path::new(bundle.unwrap_or_default())
    }

    /// The annotations of the configuration.
    pub fn annotations(&self) -> BTreeMap<&str, &str> {
        let pairs = self.config.labels.iter().filter_map(|label| label.split_once('='));
        pairs.filter(|(key, _)| *key != "bundle").collect()
    }

    /// The configuration the container was created from.
    pub fn spec(&self) -> Result<Spec> {
        let parsed = config::parse(self.config.spec.get());
        let parsed = parsed.map_err(|error| Error::invalid(error.to_string()));
        Ok(parsed.doing(|| "read the recorded configuration")?.value)
    }

    /// Its hooks; the rest of the configuration is not looked at, which is most of what reading it costs. Most have none,
    /// and then the word is not there, in letters or escaped.
    pub fn hooks(&self) -> Result<Hooks> {
        let text = self.config.spec.get();
        if !text.contains("\"hooks\"") && !text.contains('\\') {
            return Ok(Hooks::default());
        }
        #[derive(Deserialize)]
        struct Hooked {
            hooks: Option<Hooks>,
        }
        let read = serde_json::from_str::<Hooked>(text);
        let read = read.map_err(|error| Error::invalid(error.to_string()));
        Ok(read.doing(|| "read the recorded configuration")?.hooks.unwrap_or_default())
    }
}
