//! `runtime.v1.ImageService`: images as a kubelet knows them, by the digest of their configuration.
//!
//! A pulled image has a record for its tag, one for its digest and one for its id, as containerd writes them; whatever
//! name another client gave an image in this namespace is one of it as well.

mod adopt;
mod auth;
mod known;
mod policy;

use std::sync::Arc;

use gantry_proto::containerd::services::images::v1::Image as Record;
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::image_service_server::ImageService as Service;
use rung_spec::reference::Reference;
use tonic::{Request, Response, Status};

pub(super) use known::{Catalog, Known};

use super::Cri;
use super::runtime::{Answers, stream};
use crate::blocking::blocking;
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::image::{Access, PullOptions, Quiet, Resolved, walk};

/// The service.
pub struct ImageService {
    cri: Cri,
}

impl ImageService {
    /// The service over `cri`.
    pub fn new(cri: Cri) -> Self {
        Self { cri }
    }
}

/// One method each.
macro_rules! service {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Service for ImageService {
            type StreamImagesStream = Answers<v1::StreamImagesResponse>;

            async fn stream_images(
                &self,
                request: Request<v1::StreamImagesRequest>,
            ) -> Result<Response<Self::StreamImagesStream>, Status> {
                Ok(Response::new(self.cri.stream_images(request.into_inner()).await?))
            }

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Ok(Response::new(self.cri.$method(request.into_inner()).await?))
            })*
        }
    };
}

service! {
    list_images(ListImagesRequest) -> ListImagesResponse;
    image_status(ImageStatusRequest) -> ImageStatusResponse;
    pull_image(PullImageRequest) -> PullImageResponse;
    remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

impl Cri {
    async fn list_images(&self, request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse> {
        let images = self.images_passing(request.filter).await?;
        Ok(v1::ListImagesResponse { images })
    }

    async fn stream_images(&self, request: v1::StreamImagesRequest) -> Result<Answers<v1::StreamImagesResponse>> {
        let images = self.images_passing(request.filter).await?;
        Ok(stream(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn images_passing(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let catalog = self.catalog().await?;
        if wanted.is_empty() {
            return Ok(catalog.images().map(|image| image.wire.clone()).collect());
        }
        let names = self.names(&catalog, &wanted).await?;
        Ok(catalog.find(&wanted, &names)?.map(|image| image.wire.clone()).into_iter().collect())
    }

    async fn image_status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse> {
        let wanted = named(request.image)?;
        let catalog = self.catalog().await?;
        let names = self.names(&catalog, &wanted).await?;
        let Some(image) = catalog.find(&wanted, &names)? else { return Ok(v1::ImageStatusResponse::default()) };
        let info = match image.records.first().filter(|_| request.verbose).cloned() {
            Some(name) => {
                let cri = self.clone();
                [("info".to_owned(), blocking(move || cri.image_info(&name)).await?)].into()
            }
            None => Default::default(),
        };
        Ok(v1::ImageStatusResponse { image: Some(image.wire.clone()), info })
    }

    fn image_info(&self, record: &str) -> Result<String> {
        let image = self.parts().images.resolve(self.context(), record, None)?;
        if image.manifest.is_artifact() {
            let (kind, layers) = (image.manifest.kind_of_artifact(), &image.manifest.layers);
            return Ok(serde_json::json!({ "artifactType": kind, "layers": layers }).to_string());
        }
        let chain_id = image.chain_id.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(serde_json::json!({ "chainID": chain_id, "imageSpec": image.config }).to_string())
    }

    /// All images now, which may take a look at the disk.
    fn catalog_now(&self) -> Result<Arc<Catalog>> {
        let (known, images) = (self.known_images(), &self.parts().images);
        known.current(images).map_or_else(|| known.read(images, self.context()), Ok)
    }

    /// The same for who must not wait for the disk.
    async fn catalog(&self) -> Result<Arc<Catalog>> {
        if let Some(catalog) = self.known_images().current(&self.parts().images) {
            return Ok(catalog);
        }
        let cri = self.clone();
        blocking(move || cri.catalog_now()).await
    }

    /// What images are called, for statuses of others: these are answered without it where it cannot be read. It may wait
    /// for the disk.
    pub(super) fn image_names(&self) -> Arc<Catalog> {
        self.catalog_now().unwrap_or_else(without_names)
    }

    /// The same for who must not wait for the disk.
    pub(super) async fn names_of_images(&self) -> Arc<Catalog> {
        self.catalog().await.unwrap_or_else(without_names)
    }

    /// The image that `text` names, with everything needed to make a container of it. It waits for the disk.
    ///
    /// # Errors
    /// `NotFound` without such an image.
    pub(super) fn find_image(&self, text: &str) -> Result<Resolved> {
        let catalog = self.catalog_now()?;
        let name = catalog.find(text, &self.names_now(&catalog, text)?)?.and_then(|image| image.records.first());
        let name = name.ok_or_else(|| Error::not_found(format!("image {text:?}: not found; pull it first")))?;
        self.parts().images.resolve(self.context(), name, None)
    }

    /// What an image of which `text` is typed may be called here. It may wait for the disk.
    fn names_now(&self, catalog: &Catalog, text: &str) -> Result<Vec<Reference>> {
        match catalog.has(text) {
            true => Ok(Vec::new()),
            false => Ok(self.parts().images.names_here(text)?.into_iter().map(by_digest).collect()),
        }
    }

    /// The same for who must not wait for the disk.
    async fn names(&self, catalog: &Arc<Catalog>, text: &str) -> Result<Vec<Reference>> {
        if !self.parts().images.has_short_names() {
            return self.names_now(catalog, text);
        }
        let (cri, catalog, text) = (self.clone(), catalog.clone(), text.to_owned());
        blocking(move || cri.names_now(&catalog, &text)).await
    }

    async fn pull_image(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse> {
        let handler = request.image.as_ref().map_or("", |image| image.runtime_handler.as_str()).to_owned();
        let wanted = named(request.image)?;
        let tenant = request.sandbox_config.and_then(|config| config.metadata).map(|pod| pod.namespace);
        let tenant = tenant.unwrap_or_default();
        Ok(v1::PullImageResponse { image_ref: self.pull_as(&wanted, request.auth.as_ref(), &handler, tenant).await? })
    }

    /// Pulls an image for pods of a handler in the namespace `tenant`, and answers with its id.
    pub(super) async fn pull_as(
        &self,
        wanted: &str,
        auth: Option<&v1::AuthConfig>,
        handler: &str,
        tenant: String,
    ) -> Result<String> {
        let asked = parse(wanted).map_err(|error| error.context("image"))?;
        let snapshotter = self.config().handler(handler).map_err(|error| error.context("image"))?.snapshotter.clone();
        let (images, text) = (self.parts().images.clone(), wanted.to_owned());
        let names = blocking(move || images.names_to_pull(&text)).await?;
        let mut failures: Vec<Error> = Vec::new();
        for reference in names.into_iter().map(by_digest) {
            let credentials = auth::credentials(auth, &asked, &reference)?;
            let options = PullOptions {
                access: Access { credentials, ..Access::default() },
                tenant: tenant.clone(),
                snapshotter: snapshotter.clone(),
                ..PullOptions::default()
            };
            match self.pull_named(reference, options).await {
                Err(error) if leads_on(&error) => failures.push(error),
                pulled => return pulled.map_err(for_kubelets),
            }
        }
        Err(for_kubelets(all_failed(failures)))
    }

    /// Pulls an image by its full name.
    async fn pull_named(&self, reference: Reference, options: PullOptions) -> Result<String> {
        let labels = self.known_images().labels_for(&reference.to_string());
        let options = PullOptions { labels: labels.clone(), ..options };
        let (images, context) = (&self.parts().images, self.context());
        let name = reference.to_string();
        let pulled = images.pull(context, &reference, options, Arc::new(Quiet)).await?;
        failpoint::hit("cri.pulled");
        let cri = self.clone();
        let id = blocking(move || {
            let (images, context) = (&cri.parts().images, cri.context());
            let image = images.resolve_target(context, &pulled.name, pulled.target.clone(), None)?;
            let id = image.config_digest.to_string();
            for name in [reference.at(pulled.target.digest.clone()).to_string(), id.clone()] {
                let target = Some(walk::to_wire(&pulled.target));
                images.records.set(context, Record { name, labels: labels.clone(), target, ..Record::default() })?;
            }
            Ok(id)
        });
        let image_ref = id.await.doing(|| format!("pull {name}"))?;
        self.space_changed().await;
        Ok(image_ref)
    }

    async fn remove_image(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse> {
        let wanted = named(request.image)?;
        let cri = self.clone();
        blocking(move || {
            let (images, context) = (&cri.parts().images, cri.context());
            let catalog = cri.catalog_now()?;
            let names = cri.names_now(&catalog, &wanted)?;
            let records = catalog.find(&wanted, &names)?.map(|image| image.records.clone());
            // A name whose content is gone is no image, and still a name.
            let named = || [wanted.clone()].into_iter().chain(names.iter().map(ToString::to_string));
            for name in records.unwrap_or_else(|| named().collect()) {
                match images.records.delete(context, &name, None) {
                    // Somebody else removed it at the same time.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    deleted => deleted.doing(|| format!("remove image {wanted}"))?,
                }
                failpoint::hit("cri.image.removing");
            }
            cri.parts().gc.changed();
            Ok(())
        })
        .await?;
        self.space_changed().await;
        Ok(v1::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: v1::ImageFsInfoRequest) -> Result<v1::ImageFsInfoResponse> {
        let usage = vec![self.file_system_usage().await?];
        Ok(v1::ImageFsInfoResponse { image_filesystems: usage.clone(), container_filesystems: usage })
    }
}

fn without_names(error: Error) -> Arc<Catalog> {
    tracing::warn!(%error, "read the names of images");
    Arc::default()
}

/// Kubelets look for the first word of an error whose kind is unknown.
fn for_kubelets(error: Error) -> Error {
    match error.kind() {
        Kind::Unavailable => Error::new(Kind::Unknown, format!("RegistryUnavailable: {error}")),
        _ if error.is_refusal() => Error::new(Kind::Unknown, format!("SignatureValidationFailed: {error}")),
        _ => error,
    }
}

fn named(image: Option<v1::ImageSpec>) -> Result<String> {
    let name = image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() { Err(Error::invalid("image: a name or an id is required")) } else { Ok(name) }
}

/// A full name, as a kubelet reads it.
fn parse(text: &str) -> Result<Reference> {
    Reference::parse(text).map(by_digest).map_err(|error| Error::invalid(error.to_string()))
}

/// Of a name with a tag and a digest, the digest decides and the tag is no name of what comes.
fn by_digest(reference: Reference) -> Reference {
    let tag = reference.tag.filter(|_| reference.digest.is_none());
    Reference { tag, ..reference }
}

/// Whether another registry may have what this one does not give. What is here and may not be used is no reason to take another's.
fn leads_on(error: &Error) -> bool {
    let kinds =
        [Kind::NotFound, Kind::Unavailable, Kind::DeadlineExceeded, Kind::Unauthenticated, Kind::PermissionDenied];
    kinds.contains(&error.kind()) && !error.is_refusal()
}

/// What several registries said, of the kind of the last one.
fn all_failed(mut failures: Vec<Error>) -> Error {
    let Some(last) = failures.pop() else { return Error::not_found("no registry is named for it") };
    let before: Vec<String> = failures.iter().map(ToString::to_string).collect();
    if before.is_empty() { last } else { last.context(before.join("; ")) }
}
