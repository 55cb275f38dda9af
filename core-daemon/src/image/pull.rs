//! The story of a pull: lease → resolve → fetch and unpack → publish → record.
//!
//! Nothing is recorded before everything is here and flushed; then the blobs are recorded in one transaction, the
//! snapshots in another and the name last, all under a lease, so that a crash in between leaves only what the
//! collection removes.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use gantry_proto::containerd::services::images::v1::Image;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Document, ImageConfig, Index, Manifest};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use tokio::sync::Semaphore;

use super::fetch::{Fetched, Fetcher, Job};
use super::unpack::{Stack, flush};
use super::walk::{self, MAX_DOCUMENT};
use super::{Images, Progress, PullOptions, Pulled};
use crate::blocking::blocking;
use crate::content::Sealed;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::labels::{self, Labels};
use crate::registry::Repository;

/// Layers that come in at once.
const AT_ONCE: usize = 6;
/// Hours after which an abandoned pull's lease ends.
const LEASE_HOURS: i64 = 24;
/// Deepest nesting of indexes, and most documents of one name.
const MAX_DEPTH: usize = 4;
const MAX_DOCUMENTS: usize = 256;

/// A document and what it leads to.
struct Doc {
    descriptor: Descriptor,
    bytes: Bytes,
    labels: Labels,
}

/// Everything small that a name leads to: the documents, and the images among them.
#[derive(Default)]
struct Tree {
    docs: Vec<Doc>,
    images: Vec<(Descriptor, Manifest)>,
}

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
        let lease = Lease::take(self, ctx).await?;
        let held = ctx.clone().with_lease(&lease.id);
        let repository = self.registry.repository(reference, &options.access())?;
        let pull = Pull { images: self, ctx: held, repository, options, progress };
        let resolved = pull.repository.resolve(reference.object()).await.doing(|| format!("pull {name}"))?;
        let flight = self.flight(ctx, &resolved.descriptor.digest);
        let _alone = flight.lock().await;
        pull.run(&name, resolved.descriptor, resolved.bytes).await.doing(|| format!("pull {name}"))
    }

    /// What pulls of the same image take turns with.
    fn flight(&self, ctx: &Context, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        flights.entry(format!("{} {digest}", ctx.namespace)).or_default().clone()
    }
}

struct Pull<'a> {
    images: &'a Images,
    ctx: Context,
    repository: Repository,
    options: PullOptions,
    progress: Arc<dyn Progress>,
}

impl Pull<'_> {
    async fn run(&self, name: &str, target: Descriptor, bytes: Option<Bytes>) -> Result<Pulled> {
        let mut tree = Tree::default();
        self.document(&target, bytes, MAX_DEPTH, &mut tree, &mut HashSet::new()).await?;
        let mut fetched: Vec<(Sealed, Labels)> = Vec::new();
        let mut stacks = Vec::new();
        let mut docs = std::mem::take(&mut tree.docs);
        for (_, manifest) in &tree.images {
            let outcome = self.image(manifest, &mut docs, &mut fetched).await;
            match outcome {
                Ok(stack) => stacks.extend(stack),
                Err(error) => {
                    discard(stacks).await;
                    return Err(error);
                }
            }
        }
        let up_to_date = self.finish(name, &target, docs, fetched, stacks).await?;
        Ok(Pulled { name: name.to_owned(), target, up_to_date })
    }

    /// Gets a document and those it leads to.
    async fn document(
        &self,
        descriptor: &Descriptor,
        bytes: Option<Bytes>,
        depth: usize,
        tree: &mut Tree,
        seen: &mut HashSet<Digest>,
    ) -> Result<()> {
        if depth == 0 || !seen.insert(descriptor.digest.clone()) || seen.len() > MAX_DOCUMENTS {
            return Err(Error::invalid("its index is nested too deep, contains itself, or is too large"));
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.small(descriptor, true).await?,
        };
        let parsed =
            Document::parse(&descriptor.media_type, &bytes).map_err(|error| Error::invalid(error.to_string()))?;
        let mut doc = Doc { descriptor: descriptor.clone(), bytes, labels: Labels::new() };
        match parsed {
            Document::Manifest(manifest) => {
                doc.labels = manifest_labels(&manifest);
                tree.docs.push(doc);
                tree.images.push((descriptor.clone(), *manifest));
            }
            Document::Index(index) => {
                let chosen = self.choose(&index)?;
                for (number, entry) in chosen.iter().enumerate() {
                    doc.labels.insert(format!("{}.m.{number}", labels::GC_REF_CONTENT), entry.digest.to_string());
                }
                tree.docs.push(doc);
                for entry in chosen {
                    Box::pin(self.document(entry, None, depth - 1, tree, seen)).await?;
                }
            }
        }
        Ok(())
    }

    /// The entries of an index that are wanted.
    fn choose<'i>(&self, index: &'i Index) -> Result<Vec<&'i Descriptor>> {
        use rung_spec::image::Kind as MediaKind;
        if self.options.all_platforms {
            let wanted = |entry: &&Descriptor| {
                let unknown = entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
                !unknown && matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index)
            };
            return Ok(index.manifests.iter().filter(wanted).collect());
        }
        let platform = self.options.platform.clone().unwrap_or_else(Platform::host);
        index.select(&platform).into_iter().next().map(|best| vec![best]).ok_or_else(|| {
            let there = index.platforms().join(", ");
            Error::not_found(format!("has no image for {platform}; there are: {there}"))
        })
    }

    /// A small blob: what the content store has, else what the registry sends.
    async fn small(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Bytes> {
        let (content, ctx, digest) = (self.images.content.clone(), self.ctx.clone(), descriptor.digest.clone());
        let stored = blocking(move || {
            if content.hold(&ctx, &digest)? { content.read(&ctx, &digest, MAX_DOCUMENT).map(Some) } else { Ok(None) }
        });
        match stored.await {
            Ok(Some(bytes)) => return Ok(bytes.into()),
            // A damaged copy is fetched again.
            Err(error) if error.kind() != Kind::DataLoss => return Err(error),
            _ => {}
        }
        if is_manifest {
            return self.repository.document(descriptor).await;
        }
        let limit = MAX_DOCUMENT.min(descriptor.size);
        let mut blob = self.repository.blob(descriptor, 0).await?;
        let mut bytes = bytes::BytesMut::new();
        while let Some(piece) = blob.next().await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                let text = format!("registry {}: sends more than {limit} bytes", self.repository.host());
                return Err(Error::new(Kind::DataLoss, format!("{text} of {}", descriptor.digest)));
            }
            bytes.extend_from_slice(&piece);
        }
        descriptor.digest.verify(&bytes).map_err(|error| {
            Error::new(Kind::DataLoss, format!("registry {}: sent a wrong document: {error}", self.repository.host()))
        })?;
        Ok(bytes.freeze())
    }

    /// Fetches one image's configuration and layers.
    async fn image(
        &self,
        manifest: &Manifest,
        docs: &mut Vec<Doc>,
        fetched: &mut Vec<(Sealed, Labels)>,
    ) -> Result<Option<Stack>> {
        let bytes = self.small(&manifest.config, false).await.doing(|| "configuration")?;
        let mut doc = Doc { descriptor: manifest.config.clone(), bytes, labels: Labels::new() };
        let stack = if self.options.no_unpack || self.options.all_platforms {
            None
        } else {
            let config = walk::parse_config(manifest, &doc.bytes)?;
            self.check_platform(&config)?;
            let (images, ctx, name) = (self.images.clone(), self.ctx.clone(), self.options.snapshotter.clone());
            let manifest = manifest.clone();
            Some(blocking(move || Stack::begin(&images, &ctx, &name, &manifest, &config)).await?)
        };
        if let Some(stack) = &stack
            && let Some(chain_id) = stack.chain_id()
        {
            let label = format!("{}{}", labels::GC_REF_SNAPSHOT, stack.snapshotter());
            doc.labels.insert(label, chain_id.to_string());
        }
        docs.push(doc);
        match self.layers(manifest, stack.as_ref(), fetched).await {
            Ok(()) => Ok(stack),
            Err(error) => {
                discard(stack.into_iter().collect()).await;
                Err(error)
            }
        }
    }

    /// A single image's own word on what it runs on, where no index has been asked.
    fn check_platform(&self, config: &ImageConfig) -> Result<()> {
        let wanted = self.options.platform.clone().unwrap_or_else(Platform::host);
        let offered = &config.platform;
        if offered.os.is_empty() || wanted.rank(offered).is_some() {
            return Ok(());
        }
        if self.options.platform.is_some() {
            return Err(Error::not_found(format!("is for {offered}, not for {wanted}")));
        }
        tracing::warn!(image = %offered, machine = %wanted, "image is for another platform");
        Ok(())
    }

    async fn layers(
        &self,
        manifest: &Manifest,
        stack: Option<&Stack>,
        fetched: &mut Vec<(Sealed, Labels)>,
    ) -> Result<()> {
        let fetcher = Fetcher {
            content: self.images.content.clone(),
            repository: self.repository.clone(),
            ctx: self.ctx.clone(),
            progress: self.progress.clone(),
        };
        let room = Arc::new(Semaphore::new(AT_ONCE));
        // Dropped, the set ends what is under way: a failed layer stops the others.
        let mut tasks = tokio::task::JoinSet::new();
        for (index, layer) in manifest.layers.iter().enumerate() {
            let job = Job { layer: layer.clone(), apply: stack.and_then(|stack| stack.place(index)) };
            let (fetcher, room) = (fetcher.clone(), room.clone());
            tasks.spawn(async move {
                let _room = room.acquire().await;
                fetcher.layer(job).await.map(|fetched| (index, fetched))
            });
        }
        let mut all: Vec<Option<Fetched>> = manifest.layers.iter().map(|_| None).collect();
        while let Some(done) = tasks.join_next().await {
            let (index, one) = done.map_err(|error| Error::internal(format!("layer: {error}")))??;
            all[index] = Some(one);
        }
        let mut applied = Vec::new();
        for one in all {
            let Some(Fetched { sealed, applied: how }) = one else { continue };
            if let Some(sealed) = sealed {
                let known = how.as_ref().map(|how| (labels::UNCOMPRESSED.to_owned(), how.digest.to_string()));
                fetched.push((sealed, known.into_iter().collect()));
            }
            applied.push(how);
        }
        stack.map_or(Ok(()), |stack| tokio::task::block_in_place(|| stack.settle(applied)))
    }

    /// Makes it all last: flushes, records blobs, snapshots and the name.
    async fn finish(
        &self,
        name: &str,
        target: &Descriptor,
        docs: Vec<Doc>,
        fetched: Vec<(Sealed, Labels)>,
        stacks: Vec<Stack>,
    ) -> Result<bool> {
        let (images, ctx, target, name) = (self.images.clone(), self.ctx.clone(), target.clone(), name.to_owned());
        let source = format!("{}{}", labels::DISTRIBUTION_SOURCE, self.repository.host());
        let (path, wanted) = (self.repository.path().to_owned(), self.options.labels.clone());
        let up_to_date = blocking(move || {
            let was_complete = fetched.is_empty() && stacks.iter().all(Stack::is_complete);
            let made = record_all(&images, &ctx, docs, fetched, &stacks, &(source, path));
            if made.is_err() {
                stacks.iter().for_each(Stack::discard);
            }
            made?;
            let image = Image { name, labels: wanted, target: Some(walk::to_wire(&target)), ..Image::default() };
            let digest = target.digest.to_string();
            let mut unleased = ctx;
            unleased.lease = None;
            let before = images.records.set(&unleased, image)?;
            let same = before.and_then(|before| before.target).is_some_and(|target| target.digest == digest);
            Ok(same && was_complete)
        });
        up_to_date.await
    }
}

fn record_all(
    images: &Images,
    ctx: &Context,
    docs: Vec<Doc>,
    mut fetched: Vec<(Sealed, Labels)>,
    stacks: &[Stack],
    (source, path): &(String, String),
) -> Result<()> {
    let mut relabelled = Vec::new();
    for Doc { descriptor, bytes, labels } in docs {
        match images.content.seal(ctx, &descriptor, &bytes)? {
            Some(sealed) => fetched.push((sealed, labels)),
            None => relabelled.push((descriptor.digest, labels)),
        }
    }
    for (_, labels) in &mut fetched {
        labels.insert(source.clone(), path.clone());
    }
    if !fetched.is_empty() || stacks.iter().any(|stack| !stack.is_complete()) {
        match stacks.first() {
            Some(stack) => stack.flush(&images.content)?,
            None => flush(&[images.content.root().to_owned()])?,
        }
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

async fn discard(stacks: Vec<Stack>) {
    let removed = blocking(move || {
        stacks.iter().for_each(Stack::discard);
        Ok(())
    });
    drop(removed.await);
}

fn manifest_labels(manifest: &Manifest) -> Labels {
    let label = |name: String, digest: &Digest| (format!("{}.{name}", labels::GC_REF_CONTENT), digest.to_string());
    let layers = manifest.layers.iter().enumerate().map(|(number, layer)| label(format!("l.{number}"), &layer.digest));
    layers.chain([label("config".to_owned(), &manifest.config.digest)]).collect()
}

/// The pull's lease, which ends with it however it ends.
struct Lease {
    images: Images,
    ctx: Context,
    id: String,
}

impl Lease {
    async fn take(images: &Images, ctx: &Context) -> Result<Self> {
        let (images, ctx) = (images.clone(), ctx.clone());
        blocking(move || {
            let id = images.leases.temporary(&ctx, "pull", LEASE_HOURS)?.id;
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
                tracing::warn!(lease = id, %error, "left a pull's lease, which will expire");
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
