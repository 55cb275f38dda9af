//! Which pods there are.

use futures_util::stream;
use gantry_proto::runtime::v1;

use crate::cri::runtime::Answers;
use crate::cri::{Cri, Sandbox, selects};
use crate::error::Result;

/// Pods in one message of a stream: far below what a message may hold.
const BATCH: usize = 64;

impl Cri {
    pub(in crate::cri) async fn list_pod_sandbox(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse> {
        Ok(v1::ListPodSandboxResponse { items: self.listed_sandboxes(request.filter.as_ref()) })
    }

    pub(in crate::cri) async fn stream_pod_sandboxes(
        &self,
        request: v1::StreamPodSandboxesRequest,
    ) -> Result<Answers<v1::StreamPodSandboxesResponse>> {
        let items = self.listed_sandboxes(request.filter.as_ref());
        let batches: Vec<_> = items
            .chunks(BATCH)
            .map(|batch| Ok(v1::StreamPodSandboxesResponse { pod_sandboxes: batch.to_vec() }))
            .collect();
        Ok(Box::pin(stream::iter(batches)))
    }

    fn listed_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let sandboxes = self.store().sandboxes();
        let mut listed: Vec<v1::PodSandbox> =
            sandboxes.iter().map(|sandbox| listed(sandbox)).filter(|item| passes(item, filter)).collect();
        listed.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        listed
    }
}

fn listed(sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record();
    // A configuration is far larger than what is told of it here.
    let config = record.config.as_ref();
    v1::PodSandbox {
        id: sandbox.id().to_string(),
        metadata: config.and_then(|config| config.metadata.clone()),
        state: sandbox.state().into(),
        created_at: record.created_at,
        labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
        annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

fn passes(item: &v1::PodSandbox, filter: Option<&v1::PodSandboxFilter>) -> bool {
    let Some(filter) = filter else { return true };
    item.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|state| state.state == item.state)
        && selects(&filter.label_selector, &item.labels)
}
