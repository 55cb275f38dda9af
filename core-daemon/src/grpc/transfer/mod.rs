//! `containerd.services.transfer.v1.Transfer`: images between registries, the image store and archives.
//!
//! | from | to | |
//! |---|---|---|
//! | registry | store | pull |
//! | store | registry | push |
//! | archive | store | import |
//! | store | archive | export |
//! | store | store | another name |
//! | archive | archive | the bytes as they are |

mod accounts;
mod bytes;
mod objects;
mod progress;

use std::io::Write as _;
use std::sync::Arc;

use gantry_proto::containerd::services::transfer::v1::TransferRequest;
use gantry_proto::containerd::services::transfer::v1::transfer_server::Transfer as Service;
use gantry_proto::containerd::types::transfer as wire;
use rung_spec::image::Descriptor;
use tonic::{Request, Response, Status};

use super::streams::{Stream, Streams};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::image::archive::{ExportOptions, Exported, ImportOptions};
use crate::image::{Choice, Images, PullOptions, PushOptions, walk};
use objects::{Object, OciRegistry, choice, names, platform, unpacks};
use progress::{Reporter, reporter};

/// The service.
pub struct TransferService {
    images: Images,
    streams: Streams,
}

impl TransferService {
    /// The service over these images; calls name streams of `streams`.
    pub fn new(images: Images, streams: Streams) -> Self {
        Self { images, streams }
    }
}

#[tonic::async_trait]
impl Service for TransferService {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let TransferRequest { source, destination, options } = request.into_inner();
        let id = options.unwrap_or_default().progress_stream;
        let stream = (!id.is_empty()).then(|| self.streams.get(&ctx, &id)).transpose()?;
        let closing = Closing(stream.clone());
        let from = Object::of(&self.streams, &ctx, source.as_ref())?;
        let to = Object::of(&self.streams, &ctx, destination.as_ref())?;
        self.dispatch(&ctx, from, to, stream).await?;
        drop(closing);
        Ok(Response::new(()))
    }
}

/// Ends the stream of progress, however the call ends.
struct Closing(Option<Arc<Stream>>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.close();
        }
    }
}

impl TransferService {
    async fn dispatch(&self, ctx: &Context, from: Object, to: Object, stream: Option<Arc<Stream>>) -> Result<()> {
        let root = match (&from, &to) {
            (Object::Registry(registry), _) => registry.text.clone(),
            (Object::Store(store), _) => store.name.clone(),
            _ => String::new(),
        };
        let (report, telling) = reporter(stream, &root);
        let done = match (from, to) {
            (Object::Registry(registry), Object::Store(store)) => self.pull(ctx, &registry, &store, report).await,
            (Object::Store(store), Object::Registry(registry)) => self.push(ctx, &store, &registry, report).await,
            (Object::Import { from, media_type, compress }, Object::Store(store)) => {
                self.import(ctx, (from, &media_type, compress), &store, report).await
            }
            (Object::Store(store), Object::Export { to, message }) => {
                self.export(ctx, &store, to, &message, report).await
            }
            (Object::Store(store), Object::Store(other)) => self.tag(ctx, &store.name, &other).await,
            (Object::Import { from, .. }, Object::Export { to, .. }) => echo(from, to).await,
            (from, to) => {
                let pair = format!("from {} to {}", from.kind(), to.kind());
                Err(Error::unimplemented(format!("transfer {pair}: not offered")))
            }
        };
        telling.end().await;
        done
    }

    async fn pull(
        &self,
        ctx: &Context,
        registry: &OciRegistry,
        store: &wire::ImageStore,
        report: Reporter,
    ) -> Result<()> {
        report.say(format!("Resolving from {}", registry.shown()));
        let options = PullOptions {
            choice: choice(store),
            access: registry.access.clone(),
            unpacks: Some(unpacks(store, &self.images.snapshotters)?),
            names: Some(names(store)),
            ..PullOptions::default()
        };
        let progress = report.clone().beginning(format!("Pulling from {}", registry.shown()), "fetching image content");
        let pulled = self.images.pull(ctx, &registry.reference()?, options, Arc::new(progress)).await?;
        if pulled.names.is_empty() {
            return Err(Error::not_found("transfer: the image gets no name"));
        }
        for name in &pulled.names {
            report.named("saved", name, &pulled.target);
        }
        report.say(format!("Completed pull from {}", registry.shown()));
        Ok(())
    }

    async fn push(
        &self,
        ctx: &Context,
        store: &wire::ImageStore,
        registry: &OciRegistry,
        report: Reporter,
    ) -> Result<()> {
        let options = PushOptions {
            platforms: store.platforms.iter().map(platform).collect(),
            access: registry.access.clone(),
            ..PushOptions::default()
        };
        let progress = report.clone().beginning(format!("Pushing to {}", registry.shown()), "pushing content");
        let reference = registry.reference()?;
        let pushed = self.images.push(ctx, &store.name, &reference, options, Arc::new(progress)).await?;
        report.named("pushed content", &store.name, &pushed.target);
        report.say(format!("Completed push to {}", registry.shown()));
        Ok(())
    }

    async fn import(
        &self,
        ctx: &Context,
        (from, media_type, compress): (Arc<Stream>, &str, bool),
        store: &wire::ImageStore,
        report: Reporter,
    ) -> Result<()> {
        report.say("Importing");
        tracing::debug!(media_type, "import");
        let options = ImportOptions {
            choice: choice(store),
            names: names(store),
            unpacks: unpacks(store, &self.images.snapshotters)?,
            compress,
            nameless: None,
        };
        let reader = bytes::reader(from);
        let imported = self.images.import(ctx, reader, options, Arc::new(report.clone())).await?;
        for image in &imported {
            report.named("saved", &image.name, &image.target);
        }
        report.say("Completed import");
        Ok(())
    }

    async fn export(
        &self,
        ctx: &Context,
        store: &wire::ImageStore,
        to: Arc<Stream>,
        message: &wire::ImageExportStream,
        report: Reporter,
    ) -> Result<()> {
        report.say("Exporting");
        let images = self.look_up(ctx, store)?;
        let options = ExportOptions {
            choice: Choice {
                platforms: message.platforms.iter().map(platform).collect(),
                all: message.all_platforms,
                unplaced: true,
                ..Choice::default()
            },
            skip_docker: message.skip_compatibility_manifest,
            skip_foreign: message.skip_non_distributable,
            what_is_here: false,
        };
        let (writer, sent) = bytes::writer(to);
        let written = self.images.export(ctx, &images, &options, writer).await;
        // A client that is gone says more than the archive that could not be written for it.
        let sent = sent.await.map_err(|error| Error::internal(error.to_string()))?;
        written.and(sent)?;
        report.say("Completed export");
        Ok(())
    }

    /// The images that an image store names, for export.
    fn look_up(&self, ctx: &Context, store: &wire::ImageStore) -> Result<Vec<Exported>> {
        if store.extra_references.iter().any(|more| more.is_prefix) {
            return Err(Error::unimplemented("export: names that begin in some way"));
        }
        let own = Some(&store.name).filter(|name| !name.is_empty());
        let more = store.extra_references.iter().map(|more| &more.name);
        own.into_iter()
            .chain(more)
            .map(|name| Ok(Exported { name: Some(name.clone()), target: self.target(ctx, name)? }))
            .collect()
    }

    fn target(&self, ctx: &Context, name: &str) -> Result<Descriptor> {
        let image = self.images.records.get(ctx, name)?;
        let target = image.target.ok_or_else(|| Error::internal(format!("image {name:?}: has no target")))?;
        walk::descriptor(&target)
    }

    async fn tag(&self, ctx: &Context, name: &str, store: &wire::ImageStore) -> Result<()> {
        let target = self.target(ctx, name)?;
        let records = names(store).records(&target);
        if records.is_empty() {
            return Err(Error::not_found("transfer: the image gets no name"));
        }
        let (images, ctx) = (self.images.clone(), ctx.clone());
        blocking(move || records.into_iter().try_for_each(|record| images.records.replace(&ctx, record).map(drop)))
            .await
    }
}

/// Sends a client what it sends.
async fn echo(from: Arc<Stream>, to: Arc<Stream>) -> Result<()> {
    let mut reader = bytes::reader(from);
    let (mut writer, sent) = bytes::writer(to);
    let copied = blocking(move || {
        std::io::copy(&mut reader, &mut writer).and_then(|_| writer.flush()).doing(|| "copy")?;
        Ok(())
    });
    let copied = copied.await;
    let sent = sent.await.map_err(|error| Error::internal(error.to_string()))?;
    copied.and(sent)
}
