//! Which containers there are.

use futures_util::stream;
use gantry_proto::runtime::v1;

use crate::cri::runtime::Answers;
use crate::cri::{Container, Cri, selects};
use crate::error::Result;

/// Containers in one message of a stream: far below what a message may hold.
const BATCH: usize = 64;

impl Cri {
    pub(in crate::cri) async fn list_containers(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse> {
        Ok(v1::ListContainersResponse { containers: self.listed_containers(request.filter.as_ref()) })
    }

    pub(in crate::cri) async fn stream_containers(
        &self,
        request: v1::StreamContainersRequest,
    ) -> Result<Answers<v1::StreamContainersResponse>> {
        let items = self.listed_containers(request.filter.as_ref());
        let batches: Vec<_> =
            items.chunks(BATCH).map(|batch| Ok(v1::StreamContainersResponse { containers: batch.to_vec() })).collect();
        Ok(Box::pin(stream::iter(batches)))
    }

    fn listed_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let containers = self.store().containers();
        let mut listed: Vec<v1::Container> =
            containers.iter().map(|container| listed(container)).filter(|item| passes(item, filter)).collect();
        listed.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        listed
    }
}

fn listed(container: &Container) -> v1::Container {
    let record = container.record();
    // A configuration is far larger than what is told of it here.
    let config = record.config.as_ref();
    v1::Container {
        id: container.id().to_string(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: config.and_then(|config| config.metadata.clone()),
        image: config.and_then(|config| config.image.clone()),
        image_ref: record.image_id.clone(),
        state: container.state().into(),
        created_at: record.created_at,
        labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
        annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
        image_id: record.image_id.clone(),
    }
}

fn passes(item: &v1::Container, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    item.id.starts_with(&filter.id)
        && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|state| state.state == item.state)
        && selects(&filter.label_selector, &item.labels)
}
