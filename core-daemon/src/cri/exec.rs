//! `ExecSync`: one more process in a container, with its output in the answer.

use gantry_proto::runtime::v1;

use super::Cri;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn exec_sync(&self, _request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
        Err(Error::unimplemented("exec sync: not built yet"))
    }
}
