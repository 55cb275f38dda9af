//! What containers and pods use.

use gantry_proto::runtime::v1;

use super::Cri;
use super::runtime::Answers;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn container_stats(
        &self,
        _request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse> {
        Err(Error::unimplemented("container stats: not built yet"))
    }

    pub(super) async fn list_container_stats(
        &self,
        _request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse> {
        Err(Error::unimplemented("list container stats: not built yet"))
    }

    pub(super) async fn pod_sandbox_stats(
        &self,
        _request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse> {
        Err(Error::unimplemented("pod sandbox stats: not built yet"))
    }

    pub(super) async fn list_pod_sandbox_stats(
        &self,
        _request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse> {
        Err(Error::unimplemented("list pod sandbox stats: not built yet"))
    }

    pub(super) async fn stream_container_stats(
        &self,
        _request: v1::StreamContainerStatsRequest,
    ) -> Result<Answers<v1::StreamContainerStatsResponse>> {
        Err(Error::unimplemented("stream container stats: not built yet"))
    }

    pub(super) async fn stream_pod_sandbox_stats(
        &self,
        _request: v1::StreamPodSandboxStatsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxStatsResponse>> {
        Err(Error::unimplemented("stream pod sandbox stats: not built yet"))
    }
}
