//! Images: pulled, unpacked into snapshots, looked up to be run, pushed, put into archives and taken from them.
//!
//! `name → record → index → manifest → configuration and layers`, all in the content store; the layers once more as a
//! chain of snapshots. [`Images`] is the one entry.

pub mod archive;
pub mod choice;
mod disks;
mod fetch;
mod flights;
mod haul;
pub mod layers;
pub mod naming;
mod origin;
mod policy;
mod pull;
mod push;
mod receive;
mod referrers;
mod room;
mod tree;
mod unpack;
pub mod users;
mod verify;
pub mod walk;

use std::sync::{Arc, PoisonError, RwLock};

use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, ImageConfig, Manifest};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use tokio::sync::Notify;

use crate::content::Content;
use crate::context::Context;
use crate::diff::Processors;
use crate::error::{Error, Result};
use crate::records::{ImageRecords, Leases};
use crate::registry::Registry;
pub use crate::registry::{Access, Credentials};
use crate::snapshots::Snapshotters;
pub use choice::Choice;
use flights::Flights;
pub use naming::Names;
pub use policy::{Ask, Policies};
pub use push::{PushOptions, Pushed};
use room::{House, Room};
pub use tree::manifest_labels;
pub use verify::Verifiers;

/// The images of all namespaces.
#[derive(Clone)]
pub struct Images {
    /// Names.
    pub records: ImageRecords,
    /// Bytes.
    pub content: Content,
    /// Unpacked layers.
    pub snapshotters: Snapshotters,
    /// What keeps a pull's parts until its record is written.
    pub leases: Leases,
    registry: Registry,
    at_once: AtOnce,
    policies: Policies,
    verifiers: Verifiers,
    processors: Processors,
    features: Arc<RwLock<Vec<String>>>,
    /// Told when something may be collected.
    wake: Arc<Notify>,
    /// What is being pulled.
    flights: Flights,
    /// Room for what comes in, of all images together.
    house: House,
}

/// What an image needs of a machine, by the word of its platform, whose layers are EROFS images.
pub const EROFS: &str = "erofs";

/// What [`Images`] is made of.
pub struct Parts {
    /// Names.
    pub records: ImageRecords,
    /// Bytes.
    pub content: Content,
    /// Unpacked layers.
    pub snapshotters: Snapshotters,
    /// Leases.
    pub leases: Leases,
    /// The way to registries.
    pub registry: Registry,
    /// How much goes that way at once.
    pub at_once: AtOnce,
    /// Whose images may be pulled.
    pub policies: Policies,
    /// Who is asked about an image.
    pub verifiers: Verifiers,
    /// What layers go through before they are unpacked.
    pub processors: Processors,
    /// What images may need of this machine, whichever of its snapshotters they are for (`os.features`).
    pub features: Vec<String>,
    /// Told when something may be collected.
    pub wake: Arc<Notify>,
}

/// How much goes to and from a registry at once, for one image.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce {
    /// Layers that come in, and connections that they come over.
    pub downloads: usize,
    /// Blobs that go out.
    pub uploads: usize,
    /// Connections that one layer comes over.
    pub slices: usize,
    /// Bytes from which on a layer comes over more than one.
    pub large: u64,
}

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Which of an index's images.
    pub choice: Choice,
    /// How to speak to the registry.
    pub access: Access,
    /// Whose policy decides: a namespace of Kubernetes; empty: everybody's.
    pub tenant: String,
    /// Where layers are unpacked; the default snapshotter for an empty name.
    pub snapshotter: String,
    /// Fetch without unpacking.
    pub no_unpack: bool,
    /// Where the layers of which platform are unpacked, in place of the two above. An image for another platform is
    /// fetched and not unpacked.
    pub unpacks: Option<Vec<Unpack>>,
    /// Labels for the image's record.
    pub labels: crate::labels::Labels,
    /// The names of the image, whose records are written anew, in place of the one it is pulled by.
    pub names: Option<Names>,
}

/// A snapshotter for the images of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpack {
    /// The platform.
    pub platform: Platform,
    /// The snapshotter's name; empty for the default.
    pub snapshotter: String,
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It waits for its turn.
    Waiting,
    /// Its bytes come in, and are unpacked as they come.
    Downloading,
    /// Its bytes are here and are unpacked.
    Extracting,
    /// It is done.
    Complete,
    /// It was here before; or there, when it is pushed.
    Exists,
    /// Its bytes go out.
    Uploading,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// Is told how a pull or push goes. Calls come from several threads, and often: an implementation returns at once.
pub trait Progress: Send + Sync {
    /// The full name, once known.
    fn resolving(&self, _reference: &str) {}
    /// What the name stands for.
    fn resolved(&self, _target: &Descriptor) {}
    /// What the registry wants people to know.
    fn warning(&self, _text: &str) {}
    /// A document leads to these.
    fn children(&self, _parent: &Descriptor, _children: &[Descriptor]) {}
    /// A manifest, index or configuration is here, or there when it is pushed.
    fn document(&self, _document: &Descriptor, _step: Step) {}
    /// A layer went on: `current` of `total` bytes in this step.
    fn layer(&self, _digest: &Digest, _step: Step, _current: u64, _total: u64) {}
}

/// Tells nobody.
pub struct Quiet;

impl Progress for Quiet {}

/// What a pull came to.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The full name.
    pub name: String,
    /// All names that were written.
    pub names: Vec<String>,
    /// What it stands for.
    pub target: Descriptor,
    /// It stood for that before.
    pub up_to_date: bool,
}

/// An image, looked up for one platform.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The full name.
    pub name: String,
    /// What the name stands for: an index or a manifest.
    pub target: Descriptor,
    /// The platform's manifest.
    pub manifest: Manifest,
    /// The manifest's own descriptor.
    pub manifest_descriptor: Descriptor,
    /// How it runs; of an artifact, nothing.
    pub config: ImageConfig,
    /// The image's id: the digest of its configuration. Of an artifact that of its manifest, since most artifacts have one
    /// and the same empty configuration.
    pub config_digest: Digest,
    /// The name of its topmost snapshot; `None` for an image without layers.
    pub chain_id: Option<Digest>,
    /// Bytes of its configuration and layers as they are stored.
    pub size: u64,
}

impl Resolved {
    /// An error for an artifact: it is files, and no root file system of a container.
    ///
    /// # Errors
    /// `InvalidArgument`, with what it is.
    pub fn check_root(&self) -> Result<()> {
        if !self.manifest.is_artifact() {
            return Ok(());
        }
        let (name, kind) = (&self.name, self.manifest.kind_of_artifact());
        Err(Error::invalid(format!("image {name}: is an artifact ({kind}), which has no root file system")))
    }
}

impl Images {
    /// The images of these stores.
    pub fn new(parts: Parts) -> Self {
        let Parts { records, content, snapshotters, leases, registry, at_once, .. } = parts;
        let Parts { policies, verifiers, processors, features, wake, .. } = parts;
        let (flights, house) = (Flights::default(), House::default());
        Self {
            records,
            content,
            snapshotters,
            leases,
            registry,
            at_once,
            policies,
            verifiers,
            processors,
            features: Arc::new(RwLock::new(features)),
            wake,
            flights,
            house,
        }
    }

    /// Whether a name without a registry may have another meaning than docker's.
    pub fn has_short_names(&self) -> bool {
        self.registry.has_short_names()
    }

    /// The full names of what to pull for a name as people type it: the first that there is. It waits for the disk.
    ///
    /// # Errors
    /// As [`Registry::names_to_pull`].
    pub fn names_to_pull(&self, text: &str) -> Result<Vec<Reference>> {
        self.registry.names_to_pull(text)
    }

    /// The full names that an image may have here of which `text` is typed. It waits for the disk.
    ///
    /// # Errors
    /// As [`Registry::names_here`].
    pub fn names_here(&self, text: &str) -> Result<Vec<Reference>> {
        self.registry.names_here(text)
    }

    /// The choice of the best image for one platform, or for this machine.
    pub fn choice(&self, platform: Option<Platform>) -> Choice {
        self.here(Choice::platform(platform))
    }

    /// A choice with what this machine has, should it be for this machine.
    fn here(&self, choice: Choice) -> Choice {
        Choice { features: self.features(), ..choice }
    }

    fn features(&self) -> Vec<String> {
        self.features.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has other features from now on; images that are here stay what they are.
    pub fn set_features(&self, features: Vec<String>) {
        *self.features.write().unwrap_or_else(PoisonError::into_inner) = features;
    }

    /// Room for what one image's pull brings.
    fn room(&self) -> Room {
        Room::new(&self.house, self.at_once)
    }

    /// Looks an image up by its exact record name, for a platform or for this machine.
    ///
    /// # Errors
    /// `NotFound` for the name, for the platform, or for content that is not here: the message says which.
    pub fn resolve(&self, ctx: &Context, name: &str, platform: Option<&Platform>) -> Result<Resolved> {
        let image = self.records.get(ctx, name)?;
        let target = image.target.as_ref().ok_or_else(|| Error::internal(format!("image {name:?}: has no target")))?;
        let target = walk::descriptor(target)?;
        self.resolve_target(ctx, name, target, platform)
    }
}

#[cfg(test)]
mod tests;
