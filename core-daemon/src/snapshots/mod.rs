//! Snapshots: a tree of file systems, each made of its parent and changes.
//!
//! ```text
//!   prepare(key, parent) ─► active ── commit(name) ─► committed ◄── parent of further ones
//!   view(key, parent)    ─► view, never committed
//! ```
//!
//! A snapshotter never mounts anything: it answers with the mounts that show a snapshot, and whoever asked mounts them.
//! Names are per namespace. [`Local`] keeps the records, which all drivers share; a [`Driver`] keeps the files.
//! Calls block on the disk.

mod local;
pub mod overlay;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use gantry_proto::containerd::services::snapshots::v1::{Info, Kind};
pub use local::{Driver, Local};
pub use usage::{Usage, disk_usage};

use crate::context::Context;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::labels::Labels;

/// The snapshotter used where nothing else is said.
pub const DEFAULT: &str = "overlayfs";

/// One mount to make; several are made in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// File system type, or `bind`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, below the place of the whole; empty for that place itself.
    pub target: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

impl From<Mount> for gantry_proto::containerd::types::Mount {
    fn from(mount: Mount) -> Self {
        Self { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
    }
}

impl From<gantry_proto::containerd::types::Mount> for Mount {
    fn from(mount: gantry_proto::containerd::types::Mount) -> Self {
        Self { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
    }
}

/// An unpacked layer to be committed.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The name it gets.
    pub name: String,
    /// The writable snapshot it is in.
    pub key: String,
    /// The committed snapshot below it; empty for none.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
}

/// How a stack of layers gets into a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpacking {
    /// Each layer into a snapshot without parent, all at once; the parent is named at the commit.
    Apart,
    /// Each layer onto a snapshot of the one below.
    Stacked,
}

/// The contract that every snapshotter keeps.
pub trait Snapshotter: Send + Sync {
    /// What is known of a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    fn stat(&self, ctx: &Context, key: &str) -> Result<Info>;

    /// Makes a writable snapshot; `parent` may be empty.
    ///
    /// # Errors
    /// `AlreadyExists` for the key, or for the snapshot that the label `containerd.io/snapshot.ref` names; `NotFound`
    /// for the parent; `InvalidArgument` where the parent is not committed.
    fn prepare(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;

    /// Makes a read-only snapshot.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    fn view(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>>;

    /// The mounts of a writable or read-only snapshot, again.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed one.
    fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>>;

    /// Turns the writable snapshot `key` into the committed `name`, with just these labels. `parent` is given where the
    /// snapshot was made without one.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` for the name; `FailedPrecondition` where the key is not writable; `InvalidArgument`
    /// where it already has another parent.
    fn commit(&self, ctx: &Context, name: &str, key: &str, labels: Labels, parent: Option<&str>) -> Result<()>;

    /// Makes a writable snapshot for unpacking a layer, which means nothing after a crash.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    fn prepare_layer(&self, ctx: &Context, key: &str, parent: &str) -> Result<Vec<Mount>> {
        self.prepare(ctx, key, parent, Labels::new())
    }

    /// Commits several layers, whose files are flushed, lowest first; those whose name is there already are removed.
    ///
    /// # Errors
    /// As [`Snapshotter::commit`].
    fn commit_layers(&self, ctx: &Context, layers: &[Layer]) -> Result<()> {
        for layer in layers {
            match self.commit(ctx, &layer.name, &layer.key, layer.labels.clone(), Some(&layer.parent)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.remove(ctx, &layer.key)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it is a parent.
    fn remove(&self, ctx: &Context, key: &str) -> Result<()>;

    /// All snapshots of the namespace.
    ///
    /// # Errors
    /// When the records cannot be read.
    fn list(&self, ctx: &Context) -> Result<Vec<Info>>;

    /// What a snapshot takes on disk, without its parents.
    ///
    /// # Errors
    /// `NotFound`.
    fn usage(&self, ctx: &Context, key: &str) -> Result<Usage>;

    /// Changes labels as the mask says, and answers with the result.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    fn update(&self, ctx: &Context, info: Info, mask: &[String]) -> Result<Info>;

    /// Frees the space of what is removed and of what no record names, such as after a crash.
    ///
    /// # Errors
    /// When the files cannot be listed. One that cannot be removed does not keep the others.
    fn cleanup(&self) -> Result<()>;

    /// How [`Snapshotter::commit`] wants layers.
    fn unpacking(&self) -> Unpacking {
        Unpacking::Stacked
    }

    /// Where its files are, for those who look at the disk.
    fn root(&self) -> Option<PathBuf> {
        None
    }
}

/// The snapshotters of this daemon by name.
#[derive(Clone)]
pub struct Snapshotters {
    all: Arc<BTreeMap<String, Arc<dyn Snapshotter>>>,
    default: Arc<str>,
}

impl Snapshotters {
    /// Offers `all`, and `default` where a client names none.
    ///
    /// # Errors
    /// `InvalidArgument` where the default is not among them.
    pub fn new(all: BTreeMap<String, Arc<dyn Snapshotter>>, default: &str) -> Result<Self> {
        if !all.contains_key(default) {
            let names: Vec<&str> = all.keys().map(String::as_str).collect();
            return Err(Error::invalid(format!(
                "default snapshotter {default:?}: there are only {}",
                names.join(", ")
            )));
        }
        Ok(Self { all: Arc::new(all), default: default.into() })
    }

    /// The snapshotter of that name; the default for an empty one.
    ///
    /// # Errors
    /// `InvalidArgument`, as containerd answers, where there is none.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        let name = self.name_or_default(name);
        self.all.get(name).cloned().ok_or_else(|| Error::invalid(format!("snapshotter not loaded: {name}")))
    }

    /// `name`, or the default's where it is empty.
    pub fn name_or_default<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.default } else { name }
    }

    /// The name used where a client names none.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Snapshotter>)> {
        self.all.iter().map(|(name, snapshotter)| (name.as_str(), snapshotter))
    }
}
