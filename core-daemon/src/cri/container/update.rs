//! Changing a container's limits.

use gantry_proto::any;
use gantry_proto::runtime::v1;
use oci_spec::runtime::Spec;

use crate::blocking::blocking;
use crate::cri::{Cri, spec};
use crate::error::{Doing as _, Error, Result};

impl Cri {
    pub(in crate::cri) async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse> {
        let container = self.store().container(&request.container_id)?;
        let doing = || format!("update container {}", container.id());
        let _turn = container.turn.lock().await;
        let state = container.state();
        if !matches!(state, v1::ContainerState::ContainerCreated | v1::ContainerState::ContainerRunning) {
            return Err(Error::precondition("is neither created nor running")).doing(doing);
        }
        let Some(wanted) = request.linux else { return Ok(v1::UpdateContainerResourcesResponse {}) };
        let before = container.record().resources.clone().unwrap_or_default();
        let (after, told) = spec::updated_resources(&before, &wanted).doing(doing)?;
        let encode = |error: serde_json::Error| Error::internal(format!("encode limits: {error}"));
        if state == v1::ContainerState::ContainerRunning {
            let document = serde_json::to_vec(&told).map_err(encode)?;
            let resources = Some(any::json(any::LINUX_RESOURCES, document));
            container.task()?.update(resources, request.annotations).await.doing(doing)?;
        }
        let (cri, changed) = (self.clone(), container.clone());
        let edit = move || {
            cri.store().edit_container(&changed, |record, stored| {
                record.resources = Some(after);
                let document = stored.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
                let mut spec: Spec = serde_json::from_slice(document).map_err(encode)?;
                if let Some(linux) = spec.linux_mut() {
                    let mut told = told;
                    // The rules about devices are no limits.
                    told.set_devices(linux.resources().as_ref().and_then(|old| old.devices().clone()));
                    linux.set_resources(Some(told));
                }
                stored.spec = Some(any::json(any::SPEC, serde_json::to_vec(&spec).map_err(encode)?));
                Ok(())
            })
        };
        blocking(edit).await.doing(doing)?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }
}
