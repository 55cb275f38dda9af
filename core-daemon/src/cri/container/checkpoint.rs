//! Checkpoints of containers.

use gantry_proto::runtime::v1;

use crate::cri::Cri;
use crate::error::{Error, Result};

impl Cri {
    pub(in crate::cri) async fn checkpoint_container(
        &self,
        request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse> {
        let container = self.store().container(&request.container_id)?;
        Err(Error::unimplemented(format!("checkpoint container {}: not built yet", container.id())))
    }
}
