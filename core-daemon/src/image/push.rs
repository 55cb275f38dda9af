//! The story of a push: what the registry does not have goes there, blobs first, then manifests, then indexes.
//!
//! A blob that a repository of the same registry is known to have is taken from there, so that its bytes need not even be
//! here. Layers that registries may not hand on stay away unless they are asked for.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, Kind as MediaKind};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::tree::{Documents, Found, Tree, manifest_children};
use super::walk::{self, MAX_DOCUMENT};
use super::{Access, Choice, Images, Progress, Step};
use crate::blocking::blocking;
use crate::content::Content;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::labels;
use crate::registry::{Pusher, Room};

/// Repositories that are tried for one blob.
const MAX_SOURCES: usize = 2;

/// How to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Only the images for these platforms; the whole index where none is named.
    pub platforms: Vec<Platform>,
    /// Where the index is not complete here, the image of this machine's platform in its place.
    pub what_is_here: bool,
    /// Layers that registries may not hand on, too.
    pub foreign: bool,
    /// How to speak to the registry.
    pub access: Access,
}

/// What a push came to.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// What the name stands for now.
    pub target: Descriptor,
    /// It is one image of an index that is not complete here.
    pub is_part: bool,
}

/// Where documents come from: the content store alone.
pub(super) struct Stored<'a> {
    pub(super) content: &'a Content,
    pub(super) ctx: &'a Context,
    pub(super) progress: &'a dyn Progress,
}

#[tonic::async_trait]
impl Documents for Stored<'_> {
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let (content, ctx, digest) = (self.content.clone(), self.ctx.clone(), descriptor.digest.clone());
        blocking(move || content.read(&ctx, &digest, MAX_DOCUMENT)).await.map(Bytes::from)
    }

    fn children(&self, parent: &Descriptor, children: &[Descriptor]) {
        self.progress.children(parent, children);
    }
}

impl Images {
    /// Pushes the image recorded as `name` to where `to` says.
    ///
    /// # Errors
    /// `NotFound` for the image, or for content that is neither here nor there; what the registry says against it.
    pub async fn push(
        &self,
        ctx: &Context,
        name: &str,
        to: &Reference,
        options: PushOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed> {
        let doing = || format!("push {to}");
        progress.resolving(&to.to_string());
        let image = self.records.get(ctx, name)?;
        let target = image.target.ok_or_else(|| Error::internal(format!("image {name:?}: has no target")))?;
        let target = walk::descriptor(&target)?;
        let plan = self.plan(ctx, target, &options, progress.as_ref()).await.doing(doing)?;
        progress.resolved(&plan.target);
        let pusher = self.registry.repository(to, &options.access)?.pusher().await.doing(doing)?;
        let (content, at_once) = (self.content.clone(), self.at_once.uploads);
        let sender = Sender { content, ctx: ctx.clone(), pusher, progress, at_once };
        let sent = plan.blobs.iter().map(|blob| blob.descriptor.digest.clone()).collect();
        sender.blobs(plan.blobs).await.doing(doing)?;
        if let Err(error) = sender.remember(sent).await {
            tracing::debug!(%error, "the next push of the same will not know of this one");
        }
        sender.documents(plan.documents, &plan.target, to).await.doing(doing)?;
        Ok(Pushed { target: plan.target, is_part: plan.is_part })
    }

    /// What belongs to a push.
    async fn plan(
        &self,
        ctx: &Context,
        target: Descriptor,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Plan> {
        let stored = Stored { content: &self.content, ctx, progress };
        if !options.platforms.is_empty() && target.kind() == MediaKind::Index {
            let choice = Choice { platforms: options.platforms.clone(), ..Choice::default() };
            let tree = Tree::read(&stored, &target, None, &choice).await?;
            // One image is pushed as itself; several need the index.
            return Ok(match &tree.images[..] {
                [only] => {
                    let (target, choice) = (only.descriptor.clone(), Choice::everything());
                    let only = Tree::read(&stored, &target, None, &choice).await?;
                    Plan { is_part: true, ..Plan::of(only, target, options) }
                }
                _ => Plan::of(tree, target, options),
            });
        }
        let whole = Tree::read(&stored, &target, None, &Choice::everything()).await;
        if !options.what_is_here || target.kind() != MediaKind::Index {
            return whole.map(|tree| Plan::of(tree, target, options));
        }
        if let Ok(tree) = whole {
            let plan = Plan::of(tree, target.clone(), options);
            if self.has_all(ctx, &plan).await? {
                return Ok(plan);
            }
        }
        self.part(ctx, &stored, &target, options).await
    }

    /// Of an index that is not complete here, one image that is: this machine's before any other.
    async fn part(
        &self,
        ctx: &Context,
        stored: &Stored<'_>,
        target: &Descriptor,
        options: &PushOptions,
    ) -> Result<Plan> {
        let best = Tree::read(stored, target, None, &self.choice(None)).await.map(|tree| tree.images);
        let others = Tree::read_present(stored, target).await?.images;
        let is_image = |found: &Found| found.descriptor.platform.as_ref().is_none_or(|it| it.os != "unknown");
        let mut first = None;
        for Found { descriptor, .. } in best.unwrap_or_default().into_iter().chain(others).filter(is_image) {
            let tree = Tree::read(stored, &descriptor, None, &Choice::everything()).await?;
            let plan = Plan { is_part: true, ..Plan::of(tree, descriptor, options) };
            if self.has_all(ctx, &plan).await? {
                return Ok(plan);
            }
            first.get_or_insert(plan);
        }
        // The registry may have what is not here.
        first.ok_or_else(|| Error::not_found("none of its images is here; pull it again"))
    }

    async fn has_all(&self, ctx: &Context, plan: &Plan) -> Result<bool> {
        let (content, ctx) = (self.content.clone(), ctx.clone());
        let digests: Vec<Digest> = plan.blobs.iter().map(|blob| blob.descriptor.digest.clone()).collect();
        blocking(move || {
            for digest in digests {
                if !content.has(&ctx, &digest)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }
}

/// What is pushed, in order.
struct Plan {
    target: Descriptor,
    is_part: bool,
    blobs: Vec<Blob>,
    /// Each before what leads to it.
    documents: Vec<(Descriptor, Bytes)>,
}

/// A configuration or layer, and the documents that lead to it: where they come from, it comes from too.
struct Blob {
    descriptor: Descriptor,
    parents: Vec<Digest>,
}

impl Plan {
    fn of(tree: Tree, target: Descriptor, options: &PushOptions) -> Self {
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        for found in &tree.images {
            for child in manifest_children(&found.manifest) {
                let stays = matches!(child.kind(), MediaKind::Layer(layer) if layer.foreign) && !options.foreign;
                if !stays && seen.insert(child.digest.clone()) {
                    let parents = vec![found.descriptor.digest.clone(), target.digest.clone()];
                    blobs.push(Blob { descriptor: child, parents });
                }
            }
        }
        let documents = tree.docs.into_iter().map(|doc| (doc.descriptor, doc.bytes)).collect();
        Self { target, is_part: false, blobs, documents }
    }
}

/// What a push sends with.
#[derive(Clone)]
struct Sender {
    content: Content,
    ctx: Context,
    pusher: Pusher,
    progress: Arc<dyn Progress>,
    at_once: usize,
}

impl Sender {
    async fn blobs(&self, blobs: Vec<Blob>) -> Result<()> {
        let room = Arc::new(Semaphore::new(self.at_once));
        let mut tasks = JoinSet::new();
        for blob in blobs {
            let (sender, room) = (self.clone(), room.clone());
            tasks.spawn(async move {
                let _room = room.acquire().await;
                sender.blob(&blob).await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| Error::internal(format!("blob: {error}")))??;
        }
        Ok(())
    }

    async fn blob(&self, blob: &Blob) -> Result<()> {
        let Blob { descriptor, parents } = blob;
        let (digest, size) = (&descriptor.digest, descriptor.size);
        self.progress.layer(digest, Step::Waiting, 0, size);
        if self.pusher.has(digest).await? {
            self.progress.layer(digest, Step::Exists, size, size);
            return Ok(());
        }
        let mut at = None;
        for source in self.sources(digest, parents).await?.into_iter().take(MAX_SOURCES) {
            match self.pusher.room(digest, Some(&source)).await? {
                Room::Mounted => {
                    self.progress.layer(digest, Step::Mounted, size, size);
                    return Ok(());
                }
                Room::At(upload) => at = Some(upload),
            }
        }
        let (content, ctx, wanted) = (self.content.clone(), self.ctx.clone(), digest.clone());
        let stored = blocking(move || content.reader(&ctx, &wanted)).await?;
        if stored.size != size {
            let problem = format!("content {digest}: has {} bytes, its manifest says {size}", stored.size);
            return Err(Error::new(Kind::DataLoss, problem));
        }
        let at = match at {
            Some(upload) => upload,
            None => match self.pusher.room(digest, None).await? {
                Room::At(upload) => upload,
                Room::Mounted => return Err(Error::internal("mounted from nowhere")),
            },
        };
        let (progress, shown) = (self.progress.clone(), digest.clone());
        let sent = Arc::new(move |offset| progress.layer(&shown, Step::Uploading, offset, size));
        self.pusher.upload(at, descriptor, &Arc::new(stored.file), &(sent as _)).await?;
        self.progress.layer(digest, Step::Complete, size, size);
        Ok(())
    }

    /// Other repositories of the same registry that are known to have a blob.
    async fn sources(&self, digest: &Digest, parents: &[Digest]) -> Result<Vec<String>> {
        let (content, ctx) = (self.content.clone(), self.ctx.clone());
        let digests: Vec<Digest> = std::iter::once(digest).chain(parents).cloned().collect();
        let label = labels::distribution_source(self.pusher.registry());
        let own = self.pusher.path().to_owned();
        blocking(move || {
            let mut found: Vec<String> = Vec::new();
            for digest in digests {
                let info = match content.info(&ctx, &digest) {
                    Err(error) if error.kind() == Kind::NotFound => continue,
                    other => other?,
                };
                let named = info.labels.get(&label).map(String::as_str).unwrap_or_default();
                for repository in named.split(',').filter(|name| !name.is_empty() && *name != own) {
                    if !found.iter().any(|known| known == repository) {
                        found.push(repository.to_owned());
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// Notes that the repository has the blobs: another one of its registry can take them from there.
    async fn remember(&self, blobs: Vec<Digest>) -> Result<()> {
        let (content, ctx, own) = (self.content.clone(), self.ctx.clone(), self.pusher.path().to_owned());
        let label = labels::distribution_source(self.pusher.registry());
        blocking(move || {
            let known = labels::Labels::from([(label, own)]);
            let noted: Vec<_> = blobs.into_iter().map(|digest| (digest, known.clone())).collect();
            content.add_labels(&ctx, &noted)
        })
        .await
    }

    async fn documents(&self, documents: Vec<(Descriptor, Bytes)>, target: &Descriptor, to: &Reference) -> Result<()> {
        for (descriptor, bytes) in documents {
            let is_target = descriptor.digest == target.digest;
            let tag =
                to.tag.as_deref().filter(|_| is_target && to.digest.as_ref().is_none_or(|it| *it == target.digest));
            let object = tag.unwrap_or(descriptor.digest.as_str());
            if self.pusher.stands_for(object, &descriptor).await? {
                self.progress.document(&descriptor, Step::Exists);
                continue;
            }
            let subject = super::referrers::subject_of(&descriptor, &bytes);
            let is_kept = self.pusher.put(object, &descriptor, bytes).await?;
            if let Some((subject, entry)) = subject.filter(|_| !is_kept) {
                self.pusher.refer(&subject, &entry).await?;
            }
            self.progress.document(&descriptor, Step::Complete);
        }
        Ok(())
    }
}
