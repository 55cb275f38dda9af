//! The runtime itself: version, readiness, configuration.

use gantry_proto::runtime::v1;

use super::Cri;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn version(&self, _request: v1::VersionRequest) -> Result<v1::VersionResponse> {
        Err(Error::unimplemented("version: not built yet"))
    }

    pub(super) async fn status(&self, _request: v1::StatusRequest) -> Result<v1::StatusResponse> {
        Err(Error::unimplemented("status: not built yet"))
    }

    pub(super) async fn runtime_config(&self, _request: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse> {
        Err(Error::unimplemented("runtime config: not built yet"))
    }

    pub(super) async fn update_runtime_config(
        &self,
        _request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse> {
        Err(Error::unimplemented("update runtime config: not built yet"))
    }
}
