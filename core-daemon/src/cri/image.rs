//! `runtime.v1.ImageService`: images as a kubelet knows them.

use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::image_service_server::ImageService as Service;
use tonic::{Request, Response, Status};

use super::Cri;
use super::runtime::Answers;
use crate::error::{Error, Result};

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
    async fn list_images(&self, _request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse> {
        Err(Error::unimplemented("list images: not built yet"))
    }

    async fn stream_images(&self, _request: v1::StreamImagesRequest) -> Result<Answers<v1::StreamImagesResponse>> {
        Err(Error::unimplemented("stream images: not built yet"))
    }

    async fn image_status(&self, _request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse> {
        Err(Error::unimplemented("image status: not built yet"))
    }

    async fn pull_image(&self, _request: v1::PullImageRequest) -> Result<v1::PullImageResponse> {
        Err(Error::unimplemented("pull image: not built yet"))
    }

    async fn remove_image(&self, _request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse> {
        Err(Error::unimplemented("remove image: not built yet"))
    }

    async fn image_fs_info(&self, _request: v1::ImageFsInfoRequest) -> Result<v1::ImageFsInfoResponse> {
        Err(Error::unimplemented("image file systems: not built yet"))
    }
}
