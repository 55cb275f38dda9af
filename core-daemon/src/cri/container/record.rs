//! The last steps of a container's making: plugins are asked, and the record is stored.

use std::sync::Arc;

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::Container as Stored;
use gantry_proto::gantry::cri::v1::ContainerRecord;
use oci_spec::runtime::Spec;

use super::create::Draft;
use crate::cri::nri::MakingContainer;
use crate::cri::{Container, Cri, labels};
use crate::error::{Error, Result};
use crate::failpoint;

impl Cri {
    /// Stores a container, as plugins want it.
    pub(super) async fn store_made(&self, draft: &Draft, mut spec: Spec, mut record: ContainerRecord) -> Result<()> {
        let making = MakingContainer { id: &draft.id, sandbox: &draft.sandbox, image: &draft.image };
        let window = self.nri_window().await;
        let others = self.nri_create(&window, &making, &mut record, &mut spec).await?;
        let container = match self.store_now(draft, &spec, record.clone()) {
            Ok(container) => container,
            Err(error) => {
                self.nri_forget(&window, &making, &record, &spec).await;
                return Err(error);
            }
        };
        self.nri_created(window, &container, others).await;
        Ok(())
    }

    fn store_now(&self, draft: &Draft, spec: &Spec, record: ContainerRecord) -> Result<Arc<Container>> {
        let document =
            serde_json::to_vec(spec).map_err(|error| Error::internal(format!("encode the configuration: {error}")))?;
        let settings = self.config();
        let handler = settings.handler(&draft.record.runtime_handler)?;
        let mut labels = labels::of(&draft.config.labels, labels::CONTAINER);
        labels.extend(self.artifact_labels(&draft.config.mounts)?);
        let stored = Stored {
            id: draft.id.clone(),
            labels,
            image: draft.image.name.clone(),
            runtime: Some(self.runtime(handler, draft.namespaces.user.as_ref())),
            spec: Some(any::json(any::SPEC, document)),
            snapshotter: match handler.snapshotter.as_str() {
                "" => self.parts().snapshotters.default_name().to_owned(),
                name => name.to_owned(),
            },
            snapshot_key: draft.id.clone(),
            sandbox: draft.sandbox.id().to_string(),
            ..Stored::default()
        };
        let container = self.store().add_container(stored, record)?;
        failpoint::hit("cri.container");
        Ok(container)
    }
}
