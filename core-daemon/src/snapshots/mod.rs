//! Snapshots: a tree of file systems, each made of its parent and changes.
//!
//! ```text
//!   prepare(key, parent) ─► active ── commit(name) ─► committed ◄── parent of further ones
//!   view(key, parent)    ─► view, never committed
//! ```
//!
//! A snapshotter answers with the mounts that show a snapshot, and whoever asked mounts them. Words:
//!
//! - *Key* and *name* are one space: a key names what is being worked on, a name what is committed. Both are per
//!   namespace; nobody sees another namespace's.
//! - A *parent* is always committed, and stays as long as it has children. What is committed never changes again, but
//!   for its labels.
//! - *Labels* of an active snapshot end with it: a commit keeps only those that it is given. Those under
//!   `containerd.io/snapshot/` are for the snapshotter itself.
//! - The label `containerd.io/snapshot.ref` on a prepare names what the snapshot is to become. Where that is there
//!   already, the answer is `AlreadyExists` and the caller looks at it instead of making it again.
//! - *Usage* of an active snapshot is measured when asked, of a committed one when it was committed; parents and second
//!   names of a file do not count.
//! - A snapshotter that can *rebase* takes the parent at the commit, so that all layers of an image can be unpacked at
//!   once; one that can *remap ids* answers to id maps in labels.
//!
//! Three keep their files on this machine: `overlayfs` stacks directories, `native` copies them, `erofs` stacks images
//! that a layer is converted to once. [`Local`] keeps the records, which they share; a [`Driver`] keeps the files.
//! [`proxy`] asks another program over gRPC. `tests` has the rules as tests, which all of them pass. Calls block on
//! the disk.

mod busy;
mod commit;
mod copy;
mod create;
mod driver;
pub mod erofs;
mod fresh;
mod local;
mod mounted;
pub mod native;
pub mod overlay;
pub mod proxy;
mod quota;
#[cfg(test)]
mod tests;
mod unpacks;
mod usage;
mod uses;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_proto::namespace::Namespace;

pub use copy::copy_tree;
pub use driver::{Driver, Made};
pub use gantry_proto::containerd::services::snapshots::v1::{Info, Kind};
pub use local::Local;
pub use unpacks::{Applying, Unpacks};
pub use usage::{Usage, disk_usage};
pub use uses::{InUse, Use};

use uses::Uses;

use crate::context::Context;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::labels::Labels;
use crate::metadata::WriteTx;

/// The snapshotter used where nothing else is said.
pub const DEFAULT: &str = "overlayfs";
/// A capability: the parent may be named at the commit.
pub const REBASE: &str = "rebase";
/// A capability: id maps in labels are obeyed.
pub const REMAP_IDS: &str = "remap-ids";

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
    /// The same, but each layer becomes an EROFS image: the source of the one mount that [`Snapshotter::prepare_layer`]
    /// answers with is the file to be made.
    Converted,
    /// Each layer onto a snapshot of the one below.
    Stacked,
    /// The same, by another program: it is told where a layer comes from, and may have it from there by itself.
    Foreign,
}

impl Unpacking {
    /// Whether a layer is applied onto those below it.
    pub fn is_stacked(self) -> bool {
        matches!(self, Self::Stacked | Self::Foreign)
    }
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
    fn remove(&self, ctx: &Context, key: &str) -> Result<()> {
        self.remove_with(ctx, key, false, &mut |_| Ok(()))
    }

    /// Removes a snapshot in one transaction with what `also` does. Where `soon`, that is flushed before its files go, and
    /// not before this returns: a failure of the machine may undo it as a whole.
    ///
    /// # Errors
    /// As [`Snapshotter::remove`], and what `also` fails with; the snapshot is still there then.
    fn remove_with(
        &self,
        ctx: &Context,
        key: &str,
        soon: bool,
        also: &mut dyn FnMut(&WriteTx) -> Result<()>,
    ) -> Result<()>;

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

    /// Frees the space of what is removed and of what no record names, such as after a crash. Answers with how many of them
    /// could not be removed, which does not keep the others.
    ///
    /// # Errors
    /// When the files cannot be listed.
    fn cleanup(&self) -> Result<usize>;

    /// The numbers whose files no record names and nobody is at.
    ///
    /// # Errors
    /// When files or records cannot be read.
    fn orphans(&self) -> Result<Vec<u64>>;

    /// What the files of a number lack, where they lack something.
    fn damage(&self, number: u64, kind: Kind) -> Option<String>;

    /// Whether a committed snapshot is there, with its files. One without gets those of the layer that is committed as it.
    ///
    /// # Errors
    /// When it cannot be known.
    fn is_whole(&self, ctx: &Context, name: &str) -> Result<bool>;

    /// Puts a committed snapshot under the call's lease, which keeps those below it too; false where it is gone.
    ///
    /// # Errors
    /// When the records cannot be written.
    fn hold(&self, ctx: &Context, name: &str) -> Result<bool>;

    /// How [`Snapshotter::commit`] wants layers.
    fn unpacking(&self) -> Unpacking {
        Unpacking::Stacked
    }

    /// Takes down what only a running daemon needs, when it ends.
    fn close(&self) {}

    /// Where its files are, for those who look at the disk.
    fn root(&self) -> Option<PathBuf> {
        None
    }

    /// What it can do beyond the contract, as clients of containerd know it.
    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    /// What it tells clients of itself, by name.
    fn exports(&self) -> BTreeMap<String, String> {
        let root = self.root().map(|root| ("root".to_owned(), root.to_string_lossy().into_owned()));
        root.into_iter().collect()
    }
}

/// The snapshotters of this daemon by name.
#[derive(Clone)]
pub struct Snapshotters {
    all: Arc<BTreeMap<String, Arc<dyn Snapshotter>>>,
    /// Those that this machine cannot have, and why.
    failed: Arc<BTreeMap<String, String>>,
    default: Arc<str>,
    uses: Uses,
    unpacks: Unpacks,
}

impl Snapshotters {
    /// Offers `all`, and `default` where a client names none.
    ///
    /// # Errors
    /// `InvalidArgument` where the default is not among them.
    pub fn new(all: BTreeMap<String, Arc<dyn Snapshotter>>, default: &str) -> Result<Self> {
        Self::with_failed(all, BTreeMap::new(), default)
    }

    /// The same, remembering those that could not be opened, so that whoever asks for one is told why.
    ///
    /// # Errors
    /// As [`Snapshotters::new`].
    pub fn with_failed(
        all: BTreeMap<String, Arc<dyn Snapshotter>>,
        failed: BTreeMap<String, String>,
        default: &str,
    ) -> Result<Self> {
        if let Some(why) = failed.get(default) {
            return Err(Error::invalid(format!("default snapshotter {default:?}: {why}")));
        }
        if !all.contains_key(default) {
            let names: Vec<&str> = all.keys().map(String::as_str).collect();
            return Err(Error::invalid(format!(
                "default snapshotter {default:?}: there are only {}",
                names.join(", ")
            )));
        }
        Ok(Self {
            all: Arc::new(all),
            failed: Arc::new(failed),
            default: default.into(),
            uses: Uses::default(),
            unpacks: Unpacks::default(),
        })
    }

    /// The snapshotter of that name; the default for an empty one.
    ///
    /// # Errors
    /// `InvalidArgument`, as containerd answers, where there is none; with the reason where it could not be opened.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        let name = self.name_or_default(name);
        self.all.get(name).cloned().ok_or_else(|| {
            let why = self.failed.get(name).map(|why| format!(": {why}")).unwrap_or_default();
            Error::invalid(format!("snapshotter not loaded: {name}{why}"))
        })
    }

    /// Keeps a snapshot from being collected while somebody runs on it.
    pub fn in_use(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> InUse {
        self.uses.begin(namespace, self.name_or_default(snapshotter), key)
    }

    /// What is unpacked into them.
    pub fn unpacks(&self) -> &Unpacks {
        &self.unpacks
    }

    /// Namespace, snapshotter and key of every snapshot in use.
    pub fn used(&self) -> Vec<Use> {
        self.uses.all()
    }

    /// Those that could not be opened, and why.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.failed.iter().map(|(name, why)| (name.as_str(), why.as_str()))
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
