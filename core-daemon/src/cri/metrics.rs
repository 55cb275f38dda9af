//! The metrics that cAdvisor has names for.

use gantry_proto::runtime::v1;

use super::Cri;
use super::runtime::Answers;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn list_metric_descriptors(
        &self,
        _request: v1::ListMetricDescriptorsRequest,
    ) -> Result<v1::ListMetricDescriptorsResponse> {
        Err(Error::unimplemented("list metric descriptors: not built yet"))
    }

    pub(super) async fn list_pod_sandbox_metrics(
        &self,
        _request: v1::ListPodSandboxMetricsRequest,
    ) -> Result<v1::ListPodSandboxMetricsResponse> {
        Err(Error::unimplemented("list pod sandbox metrics: not built yet"))
    }

    pub(super) async fn stream_pod_sandbox_metrics(
        &self,
        _request: v1::StreamPodSandboxMetricsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxMetricsResponse>> {
        Err(Error::unimplemented("stream pod sandbox metrics: not built yet"))
    }
}
