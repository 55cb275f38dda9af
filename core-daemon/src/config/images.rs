//! Content and images: who may have what is here, and who may be pulled from.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContentStore {
    /// How a namespace gets a blob that another one has.
    pub sharing_policy: SharingPolicy,
    /// MiB a second of blobs that are read again in the background, to find damaged ones; 0: none are.
    pub verify_rate: u64,
    /// Seconds from one such look at a blob to the next.
    pub verify_interval: u64,
}

impl Default for ContentStore {
    fn default() -> Self {
        Self { sharing_policy: SharingPolicy::Shared, verify_rate: 8, verify_interval: 30 * 24 * 60 * 60 }
    }
}

/// How a namespace gets a blob that another one has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SharingPolicy {
    /// By asking for its digest.
    #[default]
    Shared,
    /// By writing all of its bytes, unless the other one has the label `containerd.io/namespace.shareable`.
    Isolated,
}

/// Registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Directory of `HOST/hosts.toml` and certificates.
    pub config_path: PathBuf,
    /// A file such as `/etc/containers/registries.conf`, with the directory of that name and `.d`, as registries.conf(5) describes
    /// them: mirrors, blocked registries, and what short names of kubelets stand for; empty: none.
    pub registries_conf: PathBuf,
    /// The daemon's own accounts, as docker's `config.json` has them; empty: none.
    pub auth_file: PathBuf,
    /// Layers of one image that come in at once, and connections that they come over.
    pub max_downloads: usize,
    /// Connections that one large layer comes over while its registry is slower than this machine; 1: only one.
    pub max_layer_connections: usize,
    /// MiB from which on a layer is large.
    pub large_layer: u64,
    /// Blobs of one image that go out at once.
    pub max_uploads: usize,
    /// Seconds for which a registry may send nothing; then it is asked again, and in the end given up.
    pub timeout: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            config_path: PathBuf::from("/etc/gantry/certs.d"),
            registries_conf: PathBuf::new(),
            auth_file: PathBuf::new(),
            max_downloads: 6,
            max_layer_connections: 4,
            large_layer: 32,
            max_uploads: 4,
            timeout: 60,
        }
    }
}

impl Registry {
    pub(super) fn check(&self) -> Result<()> {
        let names = &self.registries_conf;
        if !names.as_os_str().is_empty() && !names.is_absolute() {
            return Err(Error::invalid(format!(
                "registry.registries_conf: {}: path must be absolute",
                names.display()
            )));
        }
        if [self.max_downloads, self.max_layer_connections, self.max_uploads].contains(&0) {
            let keys = "registry.max_downloads, registry.max_layer_connections, registry.max_uploads";
            return Err(Error::invalid(format!("{keys}: must be at least 1")));
        }
        Ok(())
    }
}

/// A program that makes a layer of one of another media type, as containerd configures it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamProcessor {
    /// Media types that it takes.
    pub accepts: Vec<String>,
    /// The media type that it gives.
    pub returns: String,
    /// Path or name of the program.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables of its environment beside the daemon's, as `NAME=value`.
    pub env: Vec<String>,
}

impl StreamProcessor {
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let empty = match self {
            Self { accepts, .. } if accepts.is_empty() => "accepts",
            Self { returns, .. } if returns.is_empty() => "returns",
            Self { path, .. } if path.as_os_str().is_empty() => "path",
            _ => return Ok(()),
        };
        Err(Error::invalid(format!("stream_processors.{name}.{empty}: must not be empty")))
    }
}

/// Whose images may be pulled: files as containers-policy.json(5) describes them, which podman and CRI-O have too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImagePolicy {
    /// What goes for every image; empty: everything may be pulled.
    pub file: PathBuf,
    /// Directory of a `NAMESPACE.json` for each namespace of Kubernetes that has a policy of its own, which then goes in place
    /// of the other.
    pub namespaces_dir: PathBuf,
}

impl ImagePolicy {
    pub(super) fn check(&self) -> Result<()> {
        for (key, path) in [("file", &self.file), ("namespaces_dir", &self.namespaces_dir)] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Err(Error::invalid(format!("image_policy.{key}: {}: path must be absolute", path.display())));
            }
        }
        Ok(())
    }
}

/// Programs that are asked whether an image may be pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageVerifier {
    /// Directory of the programs, all of which must agree; empty, or not there: nobody is asked.
    pub bin_dir: PathBuf,
    /// How many of them are asked, in the order of their names; -1: all.
    pub max_verifiers: i64,
    /// Seconds that each may take.
    pub per_verifier_timeout: u64,
}

impl Default for ImageVerifier {
    fn default() -> Self {
        Self { bin_dir: PathBuf::new(), max_verifiers: 10, per_verifier_timeout: 10 }
    }
}
