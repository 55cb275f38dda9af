//! Containers.

use gantry_proto::runtime::v1;

use super::Cri;
use super::runtime::Answers;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn create_container(
        &self,
        _request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse> {
        Err(Error::unimplemented("create container: not built yet"))
    }

    pub(super) async fn start_container(
        &self,
        _request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse> {
        Err(Error::unimplemented("start container: not built yet"))
    }

    pub(super) async fn stop_container(&self, _request: v1::StopContainerRequest) -> Result<v1::StopContainerResponse> {
        Err(Error::unimplemented("stop container: not built yet"))
    }

    pub(super) async fn remove_container(
        &self,
        _request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse> {
        Err(Error::unimplemented("remove container: not built yet"))
    }

    pub(super) async fn list_containers(
        &self,
        _request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse> {
        Err(Error::unimplemented("list containers: not built yet"))
    }

    pub(super) async fn container_status(
        &self,
        _request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse> {
        Err(Error::unimplemented("container status: not built yet"))
    }

    pub(super) async fn update_container_resources(
        &self,
        _request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse> {
        Err(Error::unimplemented("update container resources: not built yet"))
    }

    pub(super) async fn reopen_container_log(
        &self,
        _request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse> {
        Err(Error::unimplemented("reopen container log: not built yet"))
    }

    pub(super) async fn checkpoint_container(
        &self,
        _request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse> {
        Err(Error::unimplemented("checkpoint container: not built yet"))
    }

    pub(super) async fn stream_containers(
        &self,
        _request: v1::StreamContainersRequest,
    ) -> Result<Answers<v1::StreamContainersResponse>> {
        Err(Error::unimplemented("stream containers: not built yet"))
    }

    pub(super) async fn stop_now(&self, _container: &std::sync::Arc<super::Container>, _timeout: i64) -> Result<()> {
        Err(Error::unimplemented("stop container: not built yet"))
    }

    pub(super) async fn remove_now(&self, _container: &std::sync::Arc<super::Container>) -> Result<()> {
        Err(Error::unimplemented("remove container: not built yet"))
    }

    pub(super) fn status_of(&self, _container: &super::Container) -> v1::ContainerStatus {
        v1::ContainerStatus::default()
    }
}
