//! `containerd.services.containers.v1.Containers`.

use std::sync::Arc;

use gantry_proto::containerd::services::containers::v1::containers_server::Containers;
use gantry_proto::containerd::services::containers::v1::{
    Container, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
    UpdateContainerResponse,
};
use gantry_proto::namespace::Namespace;
use tonic::{Request, Response, Status};

use super::Answers;
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::filter::Filter;
use crate::gc::Gc;
use crate::id::ContainerId;
use crate::labels;
use crate::records::containers::passes;
use crate::records::pods::refusal;
use crate::records::{self, Pods};

/// The service.
pub struct ContainersService {
    containers: records::Containers,
    pods: Arc<dyn Pods>,
    gc: Gc,
}

impl ContainersService {
    /// The service over these records, and over what follows from pods; what only a removed container used goes to `gc`.
    pub fn new(containers: records::Containers, pods: Arc<dyn Pods>, gc: Gc) -> Self {
        Self { containers, pods, gc }
    }

    async fn listed(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Container>> {
        let Context { namespace, .. } = Context::of(request.metadata())?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let mut containers = self.containers.list(&namespace, &filter)?;
        if !self.pods.are_in(&namespace) {
            return Ok(containers);
        }
        let pods = self.pods.clone();
        let of_pods = blocking(move || pods.containers(&namespace, &|container| passes(container, &filter))).await?;
        containers.extend(of_pods);
        containers.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(containers)
    }

    /// An error where the container is a pod.
    fn require_own(&self, namespace: &Namespace, id: &str) -> Result<()> {
        match ContainerId::known(id) {
            Ok(id) if self.pods.has(namespace, &id) => Err(refusal(&id)),
            _ => Ok(()),
        }
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
        let container = match self.containers.get(&context.namespace, &id) {
            Err(error) if error.kind() == Kind::NotFound && self.pods.has(&context.namespace, &id) => {
                let (pods, id) = (self.pods.clone(), id.clone());
                blocking(move || pods.container(&context.namespace, &id)).await?.ok_or(error)?
            }
            found => found?,
        };
        Ok(Response::new(GetContainerResponse { container: Some(container) }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Result<Response<ListContainersResponse>, Status> {
        Ok(Response::new(ListContainersResponse { containers: self.listed(&request).await? }))
    }

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let listed = self.listed(&request).await?;
        let answers = listed.into_iter().map(|container| Ok(ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let container = required(request.into_inner().container)?;
        if self.require_own(&context.namespace, &container.id).is_err() {
            return Err(Error::already_exists(format!("container {}: is a pod", container.id)).into());
        }
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
        self.require_own(&context.namespace, &wanted.id)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let containers = self.containers.clone();
        let container = blocking(move || containers.update(&context.namespace, &wanted, &mask)).await?;
        Ok(Response::new(UpdateContainerResponse { container: Some(container) }))
    }

    async fn delete(&self, request: Request<DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(request.metadata())?;
        let id = ContainerId::known(&request.get_ref().id)?;
        self.require_own(&context.namespace, id.as_str())?;
        let containers = self.containers.clone();
        blocking(move || containers.delete(&context.namespace, &id)).await?;
        self.gc.changed();
        Ok(Response::new(()))
    }
}
