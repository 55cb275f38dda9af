//! Changing what a pod may use.

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
        let window = self.nri_window().await;
        self.nri_update_pod(&window, &sandbox, &request).await?;
        self.edit_sandbox(&sandbox, move |record| {
            if request.overhead.is_some() {
                record.overhead = request.overhead;
            }
            if request.resources.is_some() {
                record.resources = request.resources;
            }
        })
        .await?;
        self.nri_pod_updated(&window, &sandbox).await;
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}
