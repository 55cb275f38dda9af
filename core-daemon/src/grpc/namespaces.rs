//! `containerd.services.namespaces.v1.Namespaces`.

use gantry_proto::containerd::services::namespaces::v1::namespaces_server::Namespaces;
use gantry_proto::containerd::services::namespaces::v1::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest, GetNamespaceResponse,
    ListNamespacesRequest, ListNamespacesResponse, UpdateNamespaceRequest, UpdateNamespaceResponse,
};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::error::Error;
use crate::records;

/// The service.
pub struct NamespacesService {
    records: records::Namespaces,
}

impl NamespacesService {
    /// The service over these records.
    pub fn new(records: records::Namespaces) -> Self {
        Self { records }
    }
}

#[tonic::async_trait]
impl Namespaces for NamespacesService {
    async fn get(&self, request: Request<GetNamespaceRequest>) -> Result<Response<GetNamespaceResponse>, Status> {
        let namespace = Some(self.records.get(&request.get_ref().name)?);
        Ok(Response::new(GetNamespaceResponse { namespace }))
    }

    async fn list(&self, _: Request<ListNamespacesRequest>) -> Result<Response<ListNamespacesResponse>, Status> {
        Ok(Response::new(ListNamespacesResponse { namespaces: self.records.list()? }))
    }

    async fn create(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let record = request.into_inner().namespace.ok_or_else(|| Error::invalid("namespace is required"))?;
        let records = self.records.clone();
        let namespace = Some(blocking(move || records.create(record)).await?);
        Ok(Response::new(CreateNamespaceResponse { namespace }))
    }

    async fn update(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let UpdateNamespaceRequest { namespace, update_mask } = request.into_inner();
        let wanted = namespace.ok_or_else(|| Error::invalid("namespace is required"))?;
        let mask = update_mask.unwrap_or_default().paths;
        let records = self.records.clone();
        let namespace = Some(blocking(move || records.update(&wanted.name, &wanted.labels, &mask)).await?);
        Ok(Response::new(UpdateNamespaceResponse { namespace }))
    }

    async fn delete(&self, request: Request<DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let records = self.records.clone();
        blocking(move || records.delete(&request.get_ref().name)).await?;
        Ok(Response::new(()))
    }
}
