//! A container's log.

use gantry_proto::runtime::v1;

use crate::cri::Cri;
use crate::error::{Doing as _, Result};

impl Cri {
    /// Has the shim open the log under its path again, after the kubelet renamed it.
    pub(in crate::cri) async fn reopen_container_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse> {
        let container = self.store().container(&request.container_id)?;
        let doing = || format!("reopen the log of container {}", container.id());
        container.task().doing(doing)?.reopen_log().await.doing(doing)?;
        Ok(v1::ReopenContainerLogResponse {})
    }
}
