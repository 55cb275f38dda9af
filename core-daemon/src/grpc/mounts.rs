//! `containerd.services.mounts.v1.Mounts`.

use futures_util::stream;
use gantry_proto::containerd::services::mounts::v1::mounts_server::Mounts as Service;
use gantry_proto::containerd::services::mounts::v1::{
    ActivateRequest, ActivateResponse, DeactivateRequest, InfoRequest, InfoResponse, ListMessage, ListRequest,
    UpdateRequest, UpdateResponse,
};
use tonic::{Request, Response, Status};

use super::Answers;
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::Error;
use crate::filter::{Filter, label};
use crate::labels::drop_empty;
use crate::mounts::{Mounts, Wish};

/// The service.
pub struct MountsService {
    mounts: Mounts,
}

impl MountsService {
    /// The service over these activations.
    pub fn new(mounts: Mounts) -> Self {
        Self { mounts }
    }
}

#[tonic::async_trait]
impl Service for MountsService {
    async fn activate(&self, request: Request<ActivateRequest>) -> Result<Response<ActivateResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let ActivateRequest { name, mounts, mut labels, temporary } = request.into_inner();
        drop_empty(&mut labels);
        let wish = Wish { name, mounts, labels, temporary, allowed: Vec::new() };
        let all = self.mounts.clone();
        let info = blocking(move || all.activate(&context, wish)).await?;
        Ok(Response::new(ActivateResponse { info: Some(info) }))
    }

    async fn deactivate(&self, request: Request<DeactivateRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(request.metadata())?;
        let (all, name) = (self.mounts.clone(), request.into_inner().name);
        blocking(move || all.deactivate(&context.namespace, &name)).await?;
        Ok(Response::new(()))
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let info = self.mounts.info(&context.namespace, &request.get_ref().name)?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let wanted = info.ok_or_else(|| Error::invalid("info is required"))?;
        let paths = update_mask.unwrap_or_default().paths;
        let all = self.mounts.clone();
        let info = blocking(move || all.update(&context.namespace, &wanted, &paths)).await?;
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    type ListStream = Answers<ListMessage>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let context = Context::of(request.metadata())?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let mut all = self.mounts.list(&context.namespace)?;
        all.retain(|info| {
            filter.matches(|path| match path {
                [name] if name == "name" => Some(info.name.clone()),
                [name, rest @ ..] if name == "labels" => label(&info.labels, rest),
                _ => None,
            })
        });
        let messages = all.into_iter().map(|info| Ok(ListMessage { info: Some(info) }));
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }
}
