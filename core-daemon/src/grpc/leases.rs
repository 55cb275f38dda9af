//! `containerd.services.leases.v1.Leases`.

use gantry_proto::containerd::services::leases::v1::leases_server::Leases;
use gantry_proto::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, ListRequest,
    ListResourcesRequest, ListResourcesResponse, ListResponse,
};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::context::Context;
use crate::error::Error;
use crate::filter::Filter;
use crate::gc::Gc;
use crate::records;

/// The service.
pub struct LeasesService {
    records: records::Leases,
    gc: Gc,
}

impl LeasesService {
    /// The service over these records; what a deleted lease held goes to `gc`.
    pub fn new(records: records::Leases, gc: Gc) -> Self {
        Self { records, gc }
    }
}

#[tonic::async_trait]
impl Leases for LeasesService {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let CreateRequest { id, labels } = request.into_inner();
        let records = self.records.clone();
        let lease = blocking(move || records.create(&ctx, &id, labels)).await?;
        self.gc.made(&lease.labels);
        Ok(Response::new(CreateResponse { lease: Some(lease) }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let DeleteRequest { id, sync } = request.into_inner();
        let records = self.records.clone();
        blocking(move || records.delete(&ctx, &id)).await?;
        if sync {
            self.gc.collect().await?;
        } else {
            self.gc.changed();
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let leases = self.records.list(&ctx, &Filter::parse(&request.get_ref().filters)?)?;
        Ok(Response::new(ListResponse { leases }))
    }

    async fn add_resource(&self, request: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let AddResourceRequest { id, resource } = request.into_inner();
        let resource = resource.ok_or_else(|| Error::invalid("resource is required"))?;
        let records = self.records.clone();
        blocking(move || records.add(&ctx, &id, &resource)).await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let DeleteResourceRequest { id, resource } = request.into_inner();
        let resource = resource.ok_or_else(|| Error::invalid("resource is required"))?;
        let records = self.records.clone();
        blocking(move || records.remove(&ctx, &id, &resource)).await?;
        self.gc.changed();
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let resources = self.records.resources(&ctx, &request.get_ref().id)?;
        Ok(Response::new(ListResourcesResponse { resources }))
    }
}
