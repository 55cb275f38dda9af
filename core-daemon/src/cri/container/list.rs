//! Which containers there are.

use gantry_proto::runtime::v1;

use crate::cri::runtime::{Answers, stream};
use crate::cri::{Container, Cri, selects};
use crate::error::Result;

impl Cri {
    pub(in crate::cri) async fn list_containers(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse> {
        self.encoded_containers(request.filter.as_ref()).decoded()
    }

    pub(in crate::cri) async fn stream_containers(
        &self,
        request: v1::StreamContainersRequest,
    ) -> Result<Answers<v1::StreamContainersResponse>> {
        let all: v1::ListContainersResponse = self.encoded_containers(request.filter.as_ref()).decoded()?;
        Ok(stream(all.containers, |containers| v1::StreamContainersResponse { containers }))
    }
}

impl Container {
    pub(in crate::cri) fn passes(&self, filter: &v1::ContainerFilter) -> bool {
        let record = self.record();
        let labels = record.config.as_ref().map(|config| &config.labels);
        self.id().as_str().starts_with(&filter.id)
            && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            && filter.state.as_ref().is_none_or(|state| state.state == i32::from(self.state()))
            && (filter.label_selector.is_empty()
                || labels.is_some_and(|labels| selects(&filter.label_selector, labels)))
    }
}
