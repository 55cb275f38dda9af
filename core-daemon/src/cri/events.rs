//! What happens to containers, told to whoever subscribed.

use gantry_proto::runtime::v1;

use super::Cri;
use super::runtime::Answers;
use crate::error::{Error, Result};

impl Cri {
    pub(super) async fn get_container_events(
        &self,
        _request: v1::GetEventsRequest,
    ) -> Result<Answers<v1::ContainerEventResponse>> {
        Err(Error::unimplemented("get container events: not built yet"))
    }

    /// Tells whoever subscribed what happened to a container, or to a sandbox, which counts as one.
    pub(super) fn announce(&self, id: &str, kind: v1::ContainerEventType) {
        tracing::trace!(id, ?kind, "container event");
    }
}
