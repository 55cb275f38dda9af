//! Images: pulled, unpacked into snapshots, looked up to be run.
//!
//! `name → record → index → manifest → configuration and layers`, all in the content store; the layers once more as a
//! chain of snapshots. [`Images`] is the one entry.

pub mod layers;
pub mod walk;

use std::sync::Arc;

use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, ImageConfig, Manifest};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;

use crate::content::Content;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::records::{ImageRecords, Leases};
use crate::snapshots::Snapshotters;

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
}

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Which of an index's images; this machine's where nothing is said.
    pub platform: Option<Platform>,
    /// All of an index's images, none unpacked.
    pub all_platforms: bool,
    /// Speak HTTP without TLS to the registry, wherever it is.
    pub plain_http: bool,
    /// Do not check the registry's certificate.
    pub skip_verify: bool,
    /// Account at the registry.
    pub credentials: Option<Credentials>,
    /// Where layers are unpacked; the default snapshotter for an empty name.
    pub snapshotter: String,
    /// Fetch without unpacking.
    pub no_unpack: bool,
    /// Labels for the image's record.
    pub labels: crate::labels::Labels,
}

/// An account at a registry.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Name; empty: `secret` is an identity token.
    pub username: String,
    /// Password or identity token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
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
    /// It was here before.
    Exists,
}

/// Is told how a pull goes. Calls come from several threads, and often: an implementation returns at once.
pub trait Progress: Send + Sync {
    /// The full name, once known.
    fn resolving(&self, _reference: &str) {}
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
    /// How it runs.
    pub config: ImageConfig,
    /// The image's id: the digest of its configuration.
    pub config_digest: Digest,
    /// The name of its topmost snapshot; `None` for an image without layers.
    pub chain_id: Option<Digest>,
    /// Bytes of its configuration and layers as they are stored.
    pub size: u64,
}

impl Images {
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

    /// Pulls an image and unpacks it.
    ///
    /// # Errors
    /// One line that names what failed and what to do; nothing is recorded then.
    pub async fn pull(
        &self,
        _ctx: &Context,
        reference: &Reference,
        _options: PullOptions,
        _progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        Err(Error::unimplemented(format!("pull {reference}: not in this build yet")))
    }
}
