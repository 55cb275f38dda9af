//! Exec, attach and port-forward: an URL each, and the server behind it.

use gantry_proto::runtime::v1;

use super::Cri;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn exec(&self, _request: v1::ExecRequest) -> Result<v1::ExecResponse> {
        Err(Error::unimplemented("exec: not built yet"))
    }

    pub(super) async fn attach(&self, _request: v1::AttachRequest) -> Result<v1::AttachResponse> {
        Err(Error::unimplemented("attach: not built yet"))
    }

    pub(super) async fn port_forward(&self, _request: v1::PortForwardRequest) -> Result<v1::PortForwardResponse> {
        Err(Error::unimplemented("port forward: not built yet"))
    }
}
