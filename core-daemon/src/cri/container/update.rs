//! Changing a container's limits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_proto::any;
use gantry_proto::runtime::v1;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};

use crate::blocking::blocking;
use crate::cri::nri::Limits;
use crate::cri::{Container, Cri, spec};
use crate::error::{Doing as _, Error, Result};
use crate::failpoint;

impl Cri {
    pub(in crate::cri) async fn update_container_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse> {
        let container = self.store().container(&request.container_id)?;
        let doing = || format!("update container {}", container.id());
        let turn = container.turn.lock().await;
        can_change(&container).doing(doing)?;
        let Some(mut wanted) = request.linux else { return Ok(v1::UpdateContainerResourcesResponse {}) };
        spec::check_resources("linux", &wanted).doing(doing)?;
        self.updated_limits_of(&container, &mut wanted).doing(doing)?;
        let window = self.nri_window().await;
        let (limits, others) = self.nri_update(&window, &container, &mut wanted).await.doing(doing)?;
        self.change_limits(&container, &wanted, &limits, request.annotations).await.doing(doing)?;
        self.settle_interrupts_of(&container).await.doing(doing)?;
        self.nri_updated(&window, &container).await;
        drop(window);
        let pod = self.store().sandbox(&container.record().sandbox_id)?.record();
        // A container with as much time as it likes has no more than its pod.
        let unlimited = self.unlimit_pod(&container, &pod).await;
        drop(turn);
        self.nri_change_others(others).await;
        unlimited.doing(doing)?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    /// Changes limits to what `wanted` says, and to what plugins say beyond the words of the interface. Whoever calls this has
    /// the container's turn.
    pub(in crate::cri) async fn change_limits(
        &self,
        container: &Arc<Container>,
        wanted: &v1::LinuxContainerResources,
        limits: &Limits,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let state = can_change(container)?;
        let before = container.record().resources.clone().unwrap_or_default();
        let (after, mut told) = spec::updated_resources(&before, wanted)?;
        self.nri_limits(&mut told, limits)?;
        let encode = |error: serde_json::Error| Error::internal(format!("encode limits: {error}"));
        if state == v1::ContainerState::ContainerRunning {
            let document = serde_json::to_vec(&told).map_err(encode)?;
            let resources = Some(any::json(any::LINUX_RESOURCES, document));
            container.task()?.update(resources, annotations).await?;
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
                        keep(old, &mut told);
                    }
                    linux.set_resources(Some(told));
                }
                stored.spec = Some(any::json(any::SPEC, serde_json::to_vec(&spec).map_err(encode)?));
                Ok(())
            })
        };
        blocking(edit).await
    }
}

/// How a container is whose limits can be changed.
fn can_change(container: &Container) -> Result<v1::ContainerState> {
    match container.state() {
        state @ (v1::ContainerState::ContainerCreated | v1::ContainerState::ContainerRunning) => Ok(state),
        _ => Err(Error::precondition("is neither created nor running")),
    }
}

/// Keeps of the limits before what the new ones do not speak of: rules about devices, classes, and what the handler's base or
/// plugins say beyond the words of the interface.
fn keep(old: &LinuxResources, told: &mut LinuxResources) {
    let unified = old.unified().iter().chain(told.unified()).flatten();
    let unified: HashMap<_, _> = unified.map(|(k, v)| (k.clone(), v.clone())).collect();
    told.set_devices(old.devices().clone());
    if told.pids().is_none() {
        told.set_pids(*old.pids());
    }
    if told.block_io().is_none() {
        told.set_block_io(old.block_io().clone());
    }
    told.set_rdma(old.rdma().clone()).set_unified((!unified.is_empty()).then_some(unified));
    if let Some(before) = old.memory() {
        let new = (*told.memory()).unwrap_or_default();
        let mut memory = new;
        memory
            .set_reservation(new.reservation().or(before.reservation()))
            .set_swappiness(new.swappiness().or(before.swappiness()))
            .set_disable_oom_killer(new.disable_oom_killer().or(before.disable_oom_killer()));
        told.set_memory((memory != LinuxMemory::default()).then_some(memory));
    }
    if let Some(before) = old.cpu() {
        let new = told.cpu().clone().unwrap_or_default();
        let mut cpu = new.clone();
        cpu.set_realtime_runtime(new.realtime_runtime().or(before.realtime_runtime()))
            .set_realtime_period(new.realtime_period().or(before.realtime_period()));
        told.set_cpu((cpu != LinuxCpu::default()).then_some(cpu));
    }
}
