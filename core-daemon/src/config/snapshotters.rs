//! Snapshotters: settings of those that are part of the daemon, and those that are other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Snapshotters that are part of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshotters {
    /// The one that stacks directories.
    pub overlayfs: Overlayfs,
    /// The one that stacks EROFS images.
    pub erofs: Erofs,
}

/// The EROFS snapshotter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Erofs {
    /// Take layers that are EROFS images as they are. The kernel reads them as file systems, which it does not expect a
    /// stranger to have made: only where who makes the images is trusted like who is root here.
    pub trust_images: bool,
}

/// The overlay snapshotter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overlayfs {
    /// Which writable layers are never flushed, and lost with the machine's crash.
    pub volatile: Volatile,
    /// Tell clients where a writable layer's changes are, in the label `containerd.io/snapshot/overlay.upperdir`.
    pub upperdir_label: bool,
}

/// Which writable layers are mounted volatile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Volatile {
    /// None.
    Never,
    /// Those of containers that are removed when they end.
    ShortLived,
    /// All.
    Always,
}

/// A program that is a plugin, reached over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyPlugin {
    /// What it is; `snapshot` is the only kind there is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of its socket.
    pub address: PathBuf,
    /// The platform it is for; empty: this machine's.
    #[serde(default)]
    pub platform: String,
    /// What it can do beyond the contract.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// What clients are told of it.
    #[serde(default)]
    pub exports: BTreeMap<String, String>,
}

impl Default for Overlayfs {
    fn default() -> Self {
        Self { volatile: Volatile::ShortLived, upperdir_label: false }
    }
}
