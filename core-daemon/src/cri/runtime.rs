//! `runtime.v1.RuntimeService`: decode, call, encode. Every method is one of [`Cri`], in the file of its family.

use std::pin::Pin;

use futures_util::Stream;
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::runtime_service_server::RuntimeService as Service;
use tonic::{Request, Response, Status};

use super::Cri;

/// What a streaming call answers with.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message of a stream: far below what a message may hold.
const BATCH: usize = 64;

/// Items in messages of a stream, each item once.
pub(super) fn stream<T: Send + 'static, M: Send + 'static>(items: Vec<T>, message: fn(Vec<T>) -> M) -> Answers<M> {
    let mut items = items.into_iter();
    let batches = std::iter::from_fn(move || {
        let batch: Vec<T> = items.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    Box::pin(futures_util::stream::iter(batches))
}

/// The service.
pub(super) struct RuntimeService {
    cri: Cri,
}

impl RuntimeService {
    /// The service over `cri`.
    pub(super) fn new(cri: Cri) -> Self {
        Self { cri }
    }
}

/// One method each, and one with a stream for an answer each.
macro_rules! service {
    (calls { $($method:ident($request:ident) -> $response:ident;)* } streams { $($stream:ident($asked:ident) -> $name:ident of $item:ident;)* }) => {
        #[tonic::async_trait]
        impl Service for RuntimeService {
            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Ok(Response::new(self.cri.$method(request.into_inner()).await?))
            })*
            $(type $name = Answers<v1::$item>;
            async fn $stream(&self, request: Request<v1::$asked>) -> Result<Response<Self::$name>, Status> {
                Ok(Response::new(self.cri.$stream(request.into_inner()).await?))
            })*
        }
    };
}

service! {
    calls {
    version(VersionRequest) -> VersionResponse;
    status(StatusRequest) -> StatusResponse;
    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
    restore_pod(RestorePodRequest) -> RestorePodResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    }
    streams {
    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
    stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsStream of StreamContainerStatsResponse;
    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
    get_container_events(GetEventsRequest) -> GetContainerEventsStream of ContainerEventResponse;
    }
}
