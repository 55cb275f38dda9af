//! The story of a pull: lease → resolve → fetch and unpack → publish → record.
//!
//! Nothing is recorded before everything is here and flushed; then the blobs are recorded in one transaction, the
//! snapshots in another and the name last, all under a lease, so that a crash in between leaves only what the
//! collection removes.

use std::sync::Arc;

use bytes::Bytes;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, ImageConfig, Kind as MediaKind, Manifest};
use rung_spec::reference::Reference;

use super::choice::Want;
use super::fetch::Fetcher;
use super::haul::{Gear, Haul, Later};
use super::origin::Origin;
use super::tree::{Doc, Documents, Found, Tree, check_total};
use super::unpack::Stack;
use super::walk::{self, MAX_DOCUMENT};
use super::{Ask, Images, Names, Progress, PullOptions, Pulled, Step, Unpack};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::labels::{self, Labels};
use crate::registry::{Access, Repository};

/// Hours after which an abandoned pull's lease ends.
const LEASE_HOURS: i64 = 24;

impl Images {
    /// Pulls an image and unpacks it. Two pulls of one image at the same time are one.
    ///
    /// # Errors
    /// One line that names what failed and what to do; nothing is recorded then, and what was fetched is kept for a
    /// day, for the next try to go on from.
    pub async fn pull(
        &self,
        ctx: &Context,
        reference: &Reference,
        options: PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        let name = reference.to_string();
        progress.resolving(&name);
        let options = PullOptions { choice: self.here(options.choice), ..options };
        let (held, lease) = Lease::of(self, ctx, "pull").await?;
        let repository = self.registry.repository(reference, &options.access)?;
        let pull = Pull { images: self, ctx: held, lease, repository, options, progress };
        let resolved = pull.repository.resolve(reference.object()).await.doing(|| format!("pull {name}"))?;
        pull.progress.resolved(&resolved.descriptor);
        let (tenant, digest) = (&pull.options.tenant, &resolved.descriptor.digest);
        let allowed = self.policies.check(tenant, reference, digest, &pull.repository, Ask::Anew).await;
        allowed.doing(|| format!("pull {name}"))?;
        self.verifiers.ask(&name, &resolved.descriptor).await.doing(|| format!("pull {name}"))?;
        let _turn = self.flights.take(&format!("{} {}", ctx.namespace, resolved.descriptor.digest)).await;
        let pulled = pull.run(&name, resolved.descriptor, resolved.bytes).await.doing(|| format!("pull {name}"));
        pull.repository.warnings().iter().for_each(|warning| pull.progress.warning(warning));
        pulled
    }

    /// Whether anybody may have a policy of its own about images.
    pub fn has_tenants(&self) -> bool {
        self.policies.has_tenants()
    }

    /// Whether `tenant` has a policy of its own about images. It waits for the disk.
    ///
    /// # Errors
    /// As [`Policies::has_own`](super::Policies::has_own).
    pub fn has_policy(&self, tenant: &str) -> Result<bool> {
        self.policies.has_own(tenant)
    }

    /// Finds out whether `tenant` may have an image that is here, as somebody else may have pulled it. An earlier decision
    /// counts.
    ///
    /// # Errors
    /// As [`Policies::check`](super::Policies::check).
    pub async fn check_policy(&self, tenant: &str, reference: &Reference, digest: &Digest) -> Result<()> {
        let repository = self.registry.repository(reference, &Access::default())?;
        self.policies.check(tenant, reference, digest, &repository, Ask::Once).await
    }
}

struct Pull<'a> {
    images: &'a Images,
    ctx: Context,
    lease: Option<Arc<Lease>>,
    repository: Repository,
    options: PullOptions,
    progress: Arc<dyn Progress>,
}

#[tonic::async_trait]
impl Documents for Pull<'_> {
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.small(descriptor, true).await
    }

    fn children(&self, parent: &Descriptor, children: &[Descriptor]) {
        self.progress.children(parent, children);
    }
}

impl Pull<'_> {
    async fn run(&self, name: &str, target: Descriptor, bytes: Option<Bytes>) -> Result<Pulled> {
        let tree = Tree::read(self, &target, bytes, &self.options.choice).await?;
        let (mut docs, mut haul) = (tree.docs, Haul::new(self.images.disks()?));
        for found in &tree.images {
            if let Err(error) = self.image(name, found, &mut docs, &mut haul).await {
                haul.discard().await;
                return Err(error);
            }
        }
        let names = self.options.names.clone();
        let (names, replaces) = match names {
            Some(names) => (names, true),
            None => (Names::one(name, self.options.labels.clone()), false),
        };
        let (names, up_to_date) = self.finish(names, replaces, &target, docs, haul).await?;
        Ok(Pulled { name: name.to_owned(), names, target, up_to_date })
    }

    /// A small blob: what the content store has, else what the registry sends.
    async fn small(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Bytes> {
        let (content, ctx, digest) = (self.images.content.clone(), self.ctx.clone(), descriptor.digest.clone());
        let stored = blocking(move || {
            if content.hold(&ctx, &digest)? { content.read(&ctx, &digest, MAX_DOCUMENT).map(Some) } else { Ok(None) }
        });
        match stored.await {
            Ok(Some(bytes)) => {
                walk::check_size(descriptor, &bytes)?;
                self.progress.document(descriptor, Step::Exists);
                return Ok(bytes.into());
            }
            // A damaged copy is fetched again, and takes the place of the damaged one.
            Err(error) if error.kind() == Kind::DataLoss => {
                let (content, digest) = (self.images.content.clone(), descriptor.digest.clone());
                blocking(move || content.drop_damaged(&digest).map(drop)).await?;
            }
            Err(error) => return Err(error),
            Ok(None) => {}
        }
        let bytes = self.fetch_small(descriptor, is_manifest).await?;
        self.progress.document(descriptor, Step::Complete);
        Ok(bytes)
    }

    async fn fetch_small(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Bytes> {
        if is_manifest {
            return self.repository.document(descriptor).await;
        }
        let bytes = self.repository.small(descriptor, MAX_DOCUMENT.min(descriptor.size)).await?;
        descriptor.digest.verify(&bytes).map_err(|error| {
            Error::new(Kind::DataLoss, format!("registry {}: sent a wrong document: {error}", self.repository.host()))
        })?;
        walk::check_size(descriptor, &bytes)?;
        Ok(bytes)
    }

    /// Fetches one image's configuration and layers.
    async fn image(&self, name: &str, found: &Found, docs: &mut Vec<Doc>, haul: &mut Haul) -> Result<()> {
        let manifest = &found.manifest;
        let origin = Origin::of(name, &found.descriptor.digest);
        walk::check_layers(manifest)?;
        let held: u64 = docs.iter().map(|doc| doc.bytes.len() as u64).sum();
        check_total(held, &manifest.config)?;
        let bytes = match self.small(&manifest.config, false).await {
            Err(error) if found.want == Want::Documents && error.kind() == Kind::NotFound => return Ok(()),
            other => other.doing(|| "configuration")?,
        };
        let mut doc = Doc { descriptor: manifest.config.clone(), bytes, labels: Labels::new() };
        if found.want == Want::Documents {
            docs.push(doc);
            return Ok(());
        }
        let (config, mut snapshotters) = self.unpacked_by(found, &doc.bytes)?;
        let stack = match (&config, snapshotters.is_empty()) {
            (Some(config), false) => {
                Some(self.begin(haul, manifest, config, (snapshotters.remove(0), origin.clone())).await?)
            }
            _ => None,
        };
        if let Some(config) = config {
            haul.later.extend(snapshotters.into_iter().map(|snapshotter| Later {
                manifest: manifest.clone(),
                config: config.clone(),
                snapshotter,
                origin: origin.clone(),
            }));
        }
        for (snapshotter, chain_id) in stack.iter().filter_map(|stack| Some((stack.snapshotter(), stack.chain_id()?))) {
            doc.labels.insert(format!("{}{snapshotter}", labels::GC_REF_SNAPSHOT), chain_id.to_string());
        }
        docs.push(doc);
        let fetcher = Fetcher {
            content: self.images.content.clone(),
            repository: self.repository.clone(),
            ctx: self.ctx.clone(),
            progress: self.progress.clone(),
            processors: self.images.processors.clone(),
            room: self.images.room(),
        };
        let gear = Gear {
            fetcher: &fetcher,
            flights: &self.images.flights,
            source: self.source(),
            // Another snapshotter needs them.
            spares: haul.later.is_empty(),
        };
        let fetched = haul.layers(&gear, manifest, stack.as_ref()).await;
        haul.stacks.extend(stack);
        let absent = fetched?;
        // What is not to be here is missed by nobody.
        for doc in docs.iter_mut().filter(|doc| doc.descriptor.digest == found.descriptor.digest) {
            doc.labels.retain(|_, to| absent.iter().all(|digest| digest.as_str() != to));
        }
        Ok(())
    }

    /// The label that says where blobs come from.
    fn source(&self) -> (String, String) {
        (labels::distribution_source(self.repository.host()), self.repository.path().to_owned())
    }

    /// The configuration of an image that is to be unpacked, and into which snapshotters. What is no image is not.
    fn unpacked_by(&self, found: &Found, bytes: &[u8]) -> Result<(Option<ImageConfig>, Vec<String>)> {
        let kind = found.manifest.config.kind();
        let is_image = kind == MediaKind::Config || found.manifest.config.media_type == "application/octet-stream";
        let unpacks = match &self.options.unpacks {
            None if self.options.no_unpack || self.options.choice.all => return Ok((None, Vec::new())),
            _ if !is_image || found.manifest.is_artifact() => return Ok((None, Vec::new())),
            unpacks => unpacks,
        };
        let config = walk::parse_config(&found.manifest, bytes)?;
        let Some(unpacks) = unpacks else {
            self.check_platform(&config)?;
            return Ok((Some(config), vec![self.options.snapshotter.clone()]));
        };
        // Who may have chosen an image for another architecture has done so by now: it may well be emulated. Files of another
        // system are not.
        let offered = found.descriptor.platform.as_ref().unwrap_or(&config.platform);
        let runs = |unpack: &&Unpack| unpack.platform.rank(offered).is_some();
        let any = unpacks.iter().any(|unpack| runs(&unpack));
        let fits = |unpack: &&Unpack| match any {
            true => runs(unpack),
            false => offered.os.is_empty() || unpack.platform.os == offered.os,
        };
        let mut snapshotters: Vec<String> =
            unpacks.iter().filter(fits).map(|unpack| unpack.snapshotter.clone()).collect();
        snapshotters.sort_unstable();
        snapshotters.dedup();
        Ok((Some(config), snapshotters))
    }

    /// A single image's own word on what it runs on, where no index has been asked.
    fn check_platform(&self, config: &ImageConfig) -> Result<()> {
        let (choice, offered) = (&self.options.choice, &config.platform);
        if offered.os.is_empty() || choice.takes(offered) {
            return Ok(());
        }
        let wanted = choice.platforms().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !choice.platforms.is_empty() {
            return Err(Error::not_found(format!("is for {offered}, not for {wanted}")));
        }
        tracing::warn!(image = %offered, machine = %wanted, "image is for another platform");
        Ok(())
    }

    /// Makes room for an image's layers. Who unpacks the same ones is waited for, unless somebody may wait for us.
    async fn begin(
        &self,
        haul: &mut Haul,
        manifest: &Manifest,
        config: &ImageConfig,
        (snapshotter, origin): (String, Option<Origin>),
    ) -> Result<Stack> {
        let top = rung_spec::image::chain_ids(&config.rootfs.diff_ids).pop();
        if let Some(top) = top {
            let key = format!("{} {snapshotter} {top}", self.ctx.namespace);
            let turn = match haul.is_waited_for() {
                true => self.images.flights.try_take(&key),
                false => Some(self.images.flights.take(&key).await),
            };
            turn.into_iter().for_each(|turn| haul.keep(turn));
        }
        let (images, ctx) = (self.images.clone(), self.ctx.clone());
        let (manifest, config) = (manifest.clone(), config.clone());
        blocking(move || Stack::begin(&images, &ctx, &snapshotter, &manifest, &config, origin)).await
    }

    /// Makes it all last: flushes, records blobs, snapshots and the names. Answers with the names, and whether nothing
    /// has changed.
    async fn finish(
        &self,
        names: Names,
        replaces: bool,
        target: &Descriptor,
        docs: Vec<Doc>,
        mut haul: Haul,
    ) -> Result<(Vec<String>, bool)> {
        let (images, ctx, target) = (self.images.clone(), self.ctx.clone(), target.clone());
        let (source, lease) = (self.source(), self.lease.clone());
        blocking(move || {
            // A client that goes away now must not have what is recorded here collected before it has a name.
            let _lease = lease;
            let was_complete = !haul.is_new && haul.stacks.iter().all(Stack::is_complete);
            let later = std::mem::take(&mut haul.later);
            let made = record_all(&images, &ctx, docs, &mut haul, &source);
            if made.is_err() {
                haul.stacks.iter().for_each(Stack::discard);
            }
            made?;
            for Later { manifest, config, snapshotter, origin } in later {
                images.unpack_held(&ctx, &manifest, &config, &snapshotter, origin)?;
            }
            let mut unleased = ctx;
            unleased.lease = None;
            let (mut written, mut same) = (Vec::new(), was_complete);
            for image in names.records(&target) {
                written.push(image.name.clone());
                let before = if replaces {
                    images.records.replace(&unleased, image)?
                } else {
                    images.records.set(&unleased, image)?
                };
                let digest = before.and_then(|before| before.target).map(|target| target.digest);
                same &= digest.as_deref() == Some(target.digest.as_str());
            }
            Ok((written, same))
        })
        .await
    }
}

fn record_all(
    images: &Images,
    ctx: &Context,
    docs: Vec<Doc>,
    haul: &mut Haul,
    (source, path): &(String, String),
) -> Result<()> {
    let mut fetched = std::mem::take(&mut haul.fetched);
    let stacks = &haul.stacks;
    let mut relabelled = Vec::new();
    for Doc { descriptor, bytes, mut labels } in docs {
        match images.content.seal(ctx, &descriptor, &bytes)? {
            Some(sealed) => {
                labels.insert(source.clone(), path.clone());
                fetched.push((sealed, labels));
            }
            None => relabelled.push((descriptor.digest, labels)),
        }
    }
    if !fetched.is_empty() || stacks.iter().any(|stack| !stack.is_complete()) {
        haul.flush()?;
    }
    if !fetched.is_empty() {
        images.content.publish(ctx, fetched)?;
    }
    relabelled.retain(|(_, labels)| !labels.is_empty());
    if !relabelled.is_empty() {
        images.content.add_labels(ctx, &relabelled)?;
    }
    for stack in stacks {
        stack.apply_stacked(images)?;
        stack.commit()?;
    }
    Ok(())
}

/// A lease for one piece of work, which ends with the last part of it, however that ends.
pub(super) struct Lease {
    images: Images,
    ctx: Context,
    id: String,
}

impl Lease {
    /// The call under the lease it has, or under a new one.
    pub(super) async fn of(
        images: &Images,
        ctx: &Context,
        purpose: &'static str,
    ) -> Result<(Context, Option<Arc<Self>>)> {
        if ctx.lease.is_some() {
            return Ok((ctx.clone(), None));
        }
        let lease = Self::take(images, ctx, purpose).await?;
        Ok((ctx.clone().with_lease(&lease.id), Some(Arc::new(lease))))
    }

    async fn take(images: &Images, ctx: &Context, purpose: &'static str) -> Result<Self> {
        let (images, ctx) = (images.clone(), ctx.clone());
        blocking(move || {
            let id = images.leases.temporary(&ctx, purpose, LEASE_HOURS)?.id;
            Ok(Self { images, ctx, id })
        })
        .await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (images, ctx, id) = (self.images.clone(), self.ctx.clone(), std::mem::take(&mut self.id));
        let end = move || {
            if let Err(error) = images.leases.end(&ctx, &id) {
                tracing::warn!(lease = id, %error, "left a lease, which will expire");
            }
            images.wake.notify_one();
        };
        // A cancelled pull is dropped on a thread that must not wait for the disk.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}
