//! Which pods there are.

use gantry_proto::runtime::v1;

use crate::cri::runtime::{Answers, stream};
use crate::cri::{Cri, Sandbox, selects};
use crate::error::Result;

impl Cri {
    pub(in crate::cri) async fn list_pod_sandbox(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse> {
        self.encoded_sandboxes(request.filter.as_ref()).decoded()
    }

    pub(in crate::cri) async fn stream_pod_sandboxes(
        &self,
        request: v1::StreamPodSandboxesRequest,
    ) -> Result<Answers<v1::StreamPodSandboxesResponse>> {
        let all: v1::ListPodSandboxResponse = self.encoded_sandboxes(request.filter.as_ref()).decoded()?;
        Ok(stream(all.items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }
}

impl Sandbox {
    pub(in crate::cri) fn passes(&self, filter: &v1::PodSandboxFilter) -> bool {
        let record = self.record();
        let labels = record.config.as_ref().map(|config| &config.labels);
        self.id().as_str().starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|state| state.state == i32::from(self.state()))
            && (filter.label_selector.is_empty()
                || labels.is_some_and(|labels| selects(&filter.label_selector, labels)))
    }
}
