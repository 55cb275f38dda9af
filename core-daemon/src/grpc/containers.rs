//! `containerd.services.containers.v1.Containers`.

use gantry_proto::containerd::services::containers::v1::containers_server::Containers;
use gantry_proto::containerd::services::containers::v1::{
    Container, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
    UpdateContainerResponse,
};
use tonic::{Request, Response, Status};

use super::Answers;
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::gc::Gc;
use crate::id::ContainerId;
use crate::labels;
use crate::records;

/// The service.
pub struct ContainersService {
    containers: records::Containers,
    gc: Gc,
}

impl ContainersService {
    /// The service over these records; what only a removed container used goes to `gc`.
    pub fn new(containers: records::Containers, gc: Gc) -> Self {
        Self { containers, gc }
    }

    fn listed(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Container>> {
        let context = Context::of(request.metadata())?;
        self.containers.list(&context.namespace, &Filter::parse(&request.get_ref().filters)?)
    }
}

fn required(container: Option<Container>) -> Result<Container> {
    let mut container = container.ok_or_else(|| Error::invalid("container is required"))?;
    labels::drop_empty(&mut container.labels);
    Ok(container)
}

#[tonic::async_trait]
impl Containers for ContainersService {
    type ListStreamStream = Answers<ListContainerMessage>;

    async fn get(&self, request: Request<GetContainerRequest>) -> Result<Response<GetContainerResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let id = ContainerId::known(&request.get_ref().id)?;
        let container = Some(self.containers.get(&context.namespace, &id)?);
        Ok(Response::new(GetContainerResponse { container }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Result<Response<ListContainersResponse>, Status> {
        Ok(Response::new(ListContainersResponse { containers: self.listed(&request)? }))
    }

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let listed = self.listed(&request)?;
        let answers = listed.into_iter().map(|container| Ok(ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let container = required(request.into_inner().container)?;
        let containers = self.containers.clone();
        let container = blocking(move || containers.create(&context.namespace, container)).await?;
        Ok(Response::new(CreateContainerResponse { container: Some(container) }))
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let request = request.into_inner();
        let wanted = required(request.container)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let containers = self.containers.clone();
        let container = blocking(move || containers.update(&context.namespace, &wanted, &mask)).await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(container) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(request.metadata())?;
        let id = ContainerId::known(&request.get_ref().id)?;
        let containers = self.containers.clone();
        blocking(move || containers.delete(&context.namespace, &id)).await?;
        self.gc.changed();
        Ok(Response::new(()))
    }
}
