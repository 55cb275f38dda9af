//! `containerd.services.images.v1.Images`.

use gantry_proto::containerd::services::images::v1::images_server::Images;
use gantry_proto::containerd::services::images::v1::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse, Image,
    ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::gc::Gc;
use crate::records::ImageRecords;

/// The service.
pub struct ImagesService {
    records: ImageRecords,
    gc: Gc,
}

impl ImagesService {
    /// The service over these records; what only a deleted image kept goes to `gc`.
    pub fn new(records: ImageRecords, gc: Gc) -> Self {
        Self { records, gc }
    }
}

fn required(image: Option<Image>) -> Result<Image> {
    image.ok_or_else(|| Error::invalid("image is required"))
}

#[tonic::async_trait]
impl Images for ImagesService {
    async fn get(&self, request: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let image = Some(self.records.get(&ctx, &request.get_ref().name)?);
        Ok(Response::new(GetImageResponse { image }))
    }

    async fn list(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let images = self.records.list(&ctx, &Filter::parse(&request.get_ref().filters)?)?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn create(&self, request: Request<CreateImageRequest>) -> Result<Response<CreateImageResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let CreateImageRequest { image, source_date_epoch } = request.into_inner();
        let mut image = required(image)?;
        // Times are the daemon's to set, unless the caller wants them reproducible.
        (image.created_at, image.updated_at) = (source_date_epoch, source_date_epoch);
        let records = self.records.clone();
        let image = blocking(move || records.create(&ctx, image)).await?;
        self.gc.made(&image.labels);
        Ok(Response::new(CreateImageResponse { image: Some(image) }))
    }

    async fn update(&self, request: Request<UpdateImageRequest>) -> Result<Response<UpdateImageResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let UpdateImageRequest { image, update_mask, source_date_epoch } = request.into_inner();
        let mut wanted = required(image)?;
        wanted.updated_at = source_date_epoch;
        let mask = update_mask.unwrap_or_default().paths;
        let records = self.records.clone();
        let image = Some(blocking(move || records.update(&ctx, &wanted, &mask)).await?);
        self.gc.changed();
        Ok(Response::new(UpdateImageResponse { image }))
    }

    async fn delete(&self, request: Request<DeleteImageRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let DeleteImageRequest { name, sync, target } = request.into_inner();
        let records = self.records.clone();
        // A target without a digest wants none in particular.
        let target = target.filter(|target| !target.digest.is_empty());
        blocking(move || records.delete(&ctx, &name, target.as_ref())).await?;
        if sync {
            self.gc.collect().await?;
        } else {
            self.gc.changed();
        }
        Ok(Response::new(()))
    }
}
