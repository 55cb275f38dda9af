//! Changing a container's limits.

use std::collections::HashMap;

use gantry_proto::any;
use gantry_proto::runtime::v1;
use oci_spec::runtime::Spec;

use crate::blocking::blocking;
use crate::cri::{Cri, spec};
use crate::error::{Doing as _, Error, Result};
use crate::failpoint;

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
            failpoint::hit("cri.limited");
        }
        let (cri, changed) = (self.clone(), container.clone());
        let edit = move || {
            cri.store().edit_container(&changed, |record, stored| {
                record.resources = Some(after);
                let document = stored.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
                let mut spec: Spec = serde_json::from_slice(document).map_err(encode)?;
                if let Some(linux) = spec.linux_mut() {
                    let mut told = told;
                    if let Some(old) = linux.resources() {
                        // What no update speaks of: rules about devices, classes, and what the handler's base says.
                        let unified = old.unified().iter().chain(told.unified()).flatten();
                        let unified: HashMap<_, _> = unified.map(|(k, v)| (k.clone(), v.clone())).collect();
                        told.set_devices(old.devices().clone())
                            .set_pids(*old.pids())
                            .set_block_io(old.block_io().clone())
                            .set_rdma(old.rdma().clone())
                            .set_unified((!unified.is_empty()).then_some(unified));
                    }
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
