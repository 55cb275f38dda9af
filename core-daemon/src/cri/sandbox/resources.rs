//! Changing what a pod may use, and pods in checkpoints.

use gantry_proto::runtime::v1;

use crate::cri::Cri;
use crate::error::{Error, Result};

impl Cri {
    /// The kubelet owns the pod's cgroup and has changed it; what is kept here is what is reported.
    pub(in crate::cri) async fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse> {
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        if sandbox.state() != v1::PodSandboxState::SandboxReady {
            return Err(Error::precondition(format!("pod sandbox {}: is not ready", sandbox.id())));
        }
        self.edit_sandbox(&sandbox, move |record| {
            if request.overhead.is_some() {
                record.overhead = request.overhead;
            }
            if request.resources.is_some() {
                record.resources = request.resources;
            }
        })
        .await?;
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }

    pub(in crate::cri) async fn checkpoint_pod(
        &self,
        request: v1::CheckpointPodRequest,
    ) -> Result<v1::CheckpointPodResponse> {
        let id = self.store().sandbox(&request.pod_sandbox_id)?.id().to_string();
        Err(Error::unimplemented(format!("checkpoint pod {id}: only single containers can be checkpointed")))
    }

    pub(in crate::cri) async fn restore_pod(&self, request: v1::RestorePodRequest) -> Result<v1::RestorePodResponse> {
        let path = request.checkpoint_path;
        Err(Error::unimplemented(format!("restore pod from {path}: only single containers can be restored")))
    }
}
