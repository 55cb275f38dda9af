//! How a container is.

use std::collections::BTreeMap;

use gantry_proto::gantry::cri::v1::ContainerRecord;
use gantry_proto::runtime::v1;
use serde_json::{Value, json};

use crate::blocking::blocking;
use crate::cri::image::Catalog;
use crate::cri::sandbox::status::options_json;
use crate::cri::shown::shown;
use crate::cri::{Container, Cri};
use crate::error::{Error, Result};

impl Cri {
    pub(in crate::cri) async fn container_status(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse> {
        let container = self.store().container(&request.container_id)?;
        let mut info = BTreeMap::new();
        if request.verbose {
            let (cri, looked) = (self.clone(), container.clone());
            info.insert("info".to_owned(), blocking(move || cri.container_info(&looked)).await?);
        }
        let names = self.names_of_images().await;
        Ok(v1::ContainerStatusResponse { status: Some(status_of(&container, &names)), info })
    }

    fn container_info(&self, container: &Container) -> Result<String> {
        let record = container.record();
        let stored = self.parts().containers.get(&self.context().namespace, container.id())?;
        let spec = stored.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: Value =
            serde_json::from_slice(spec).map_err(|error| Error::internal(format!("configuration: {error}")))?;
        Ok(json!({
            "config": record.config.as_ref().map(shown),
            "sandboxID": record.sandbox_id,
            "pid": container.task().map_or(0, |task| task.pid()),
            "snapshotKey": stored.snapshot_key,
            "snapshotter": stored.snapshotter,
            "runtimeOptions": stored.runtime.as_ref().and_then(options_json),
            "runtimeType": stored.runtime.map(|runtime| runtime.name),
            "removing": false,
            "runtimeSpec": spec,
        })
        .to_string())
    }
}

/// How a container is, as this interface says it, where images are called `names`.
pub(in crate::cri) fn status_of(container: &Container, names: &Catalog) -> v1::ContainerStatus {
    let record = container.record();
    let config = record.config.clone().unwrap_or_default();
    let end = record.end.clone().unwrap_or_default();
    let stop_signal = match config.stop_signal() {
        v1::Signal::RuntimeDefault => signal(record.stop_signal),
        wished => wished,
    };
    v1::ContainerStatus {
        id: container.id().to_string(),
        metadata: config.metadata,
        state: container.state().into(),
        created_at: record.created_at,
        started_at: container.started_at(),
        finished_at: end.finished_at,
        exit_code: end.exit_code,
        image: config.image.map(|image| shown_image(image, names.tag(&record.image_id))),
        image_ref: names.digest(&record.image_id).unwrap_or(&record.image_id).clone(),
        reason: end.reason,
        message: end.message,
        labels: config.labels,
        annotations: config.annotations,
        mounts: record.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources { linux: Some(limits(&record)), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(v1::ContainerUser { linux: record.user.clone() }),
        stop_signal: stop_signal.into(),
    }
}

/// What the container may use: without a word on it, no more memory and swap together than memory.
fn limits(record: &ContainerRecord) -> v1::LinuxContainerResources {
    let mut limits = record.resources.clone().unwrap_or_default();
    if limits.memory_swap_limit_in_bytes == 0 {
        limits.memory_swap_limit_in_bytes = limits.memory_limit_in_bytes;
    }
    limits
}

/// A kubelet asks for an image by its id; people want to read its name.
fn shown_image(asked: v1::ImageSpec, tag: Option<&String>) -> v1::ImageSpec {
    let specified = Some(&asked.user_specified_image).filter(|name| !name.is_empty());
    let image = tag.or(specified).unwrap_or(&asked.image).clone();
    v1::ImageSpec { image, ..asked }
}

/// The interface's name of a signal.
fn signal(number: u32) -> v1::Signal {
    (1..=65)
        .filter_map(|candidate| v1::Signal::try_from(candidate).ok())
        .find(|candidate| {
            crate::signals::parse(&super::create::signal_name(*candidate)).is_ok_and(|found| found == number)
        })
        .unwrap_or(v1::Signal::RuntimeDefault)
}
