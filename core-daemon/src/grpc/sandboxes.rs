//! `containerd.services.sandbox.v1.Store`.

use gantry_proto::containerd::services::sandbox::v1::store_server::Store;
use gantry_proto::containerd::services::sandbox::v1::{
    StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest, StoreDeleteResponse, StoreGetRequest,
    StoreGetResponse, StoreListRequest, StoreListResponse, StoreUpdateRequest, StoreUpdateResponse,
};
use gantry_proto::containerd::types::Sandbox;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::records::Sandboxes;

/// The service.
pub struct SandboxStoreService {
    sandboxes: Sandboxes,
}

impl SandboxStoreService {
    /// The service over these records.
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }
}

fn required(sandbox: Option<Sandbox>) -> Result<Sandbox> {
    sandbox.ok_or_else(|| Error::invalid("sandbox is required"))
}

#[tonic::async_trait]
impl Store for SandboxStoreService {
    async fn create(&self, request: Request<StoreCreateRequest>) -> Result<Response<StoreCreateResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let sandbox = required(request.into_inner().sandbox)?;
        let sandboxes = self.sandboxes.clone();
        let sandbox = blocking(move || sandboxes.create(&context.namespace, sandbox)).await?;
        Ok(Response::new(StoreCreateResponse { sandbox: Some(sandbox) }))
    }

    async fn update(&self, request: Request<StoreUpdateRequest>) -> Result<Response<StoreUpdateResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let (sandbox, sandboxes) = (required(sandbox)?, self.sandboxes.clone());
        let sandbox = blocking(move || sandboxes.update(&context.namespace, &sandbox, &fields)).await?;
        Ok(Response::new(StoreUpdateResponse { sandbox: Some(sandbox) }))
    }

    async fn delete(&self, request: Request<StoreDeleteRequest>) -> Result<Response<StoreDeleteResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let (id, sandboxes) = (request.into_inner().sandbox_id, self.sandboxes.clone());
        blocking(move || sandboxes.delete(&context.namespace, &id)).await?;
        Ok(Response::new(StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<StoreListRequest>) -> Result<Response<StoreListResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let list = self.sandboxes.list(&context.namespace, &Filter::parse(&request.get_ref().filters)?)?;
        Ok(Response::new(StoreListResponse { list }))
    }

    async fn get(&self, request: Request<StoreGetRequest>) -> Result<Response<StoreGetResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let sandbox = Some(self.sandboxes.get(&context.namespace, &request.get_ref().sandbox_id)?);
        Ok(Response::new(StoreGetResponse { sandbox }))
    }
}
