//! Changing a container that is there: its limits, when it is started again, its name.

use gantry_proto::any;
use gantry_proto::gantry::engine::v1 as api;
use oci_spec::runtime::{LinuxResources, Spec};
use rung_spec::builder::{self, InvalidOptions};

use super::record::Limits;
use super::restart::Policy;
use super::{Engine, Known, Record, extras};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Doing, Error, Result};

impl Engine {
    /// Changes limits and restart policy. The limits of a running container change at once, and are recorded for later
    /// runs only if that succeeds.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a limit or policy that cannot be; what the runtime says.
    pub async fn update(&self, context: &Context, request: &api::UpdateRequest) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        // In turn with starts and other updates, because each builds on the result of the one before.
        let _turn = self.shared.turns.take((context.namespace.clone(), known.id.clone())).await;
        let known = self.known(&context.namespace, &known.id)?;
        let doing = || format!("update container {}", known.record.name);
        let policy = match request.restart.as_str() {
            "" => known.record.restart,
            text => Policy::parse(text)?,
        };
        if known.record.auto_remove && policy != Policy::No {
            return Err(Error::invalid("it is removed once it has ended, and so never restarted")).doing(doing);
        }
        let limits = known.record.limits.changed(&request.limits.unwrap_or_default());
        let malformed = |error: serde_json::Error| Error::internal(format!("limits: {error}"));
        let document = known.container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let mut spec: Spec = serde_json::from_slice(document).map_err(malformed)?;
        let old = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let new = resources(limits, request, &old).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
        if new != old
            && let Some(live) = self.running(&context.namespace, &known.id)
        {
            let mut changing = new.clone();
            changing.set_devices(None);
            let document = serde_json::to_vec(&changing).map_err(malformed)?;
            let resources = Some(any::json(any::LINUX_RESOURCES, document));
            live.task.update(resources, Default::default()).await.doing(doing)?;
        }
        if let Some(linux) = spec.linux_mut() {
            linux.set_resources(Some(new));
        }
        let spec = any::json(any::SPEC, serde_json::to_vec(&spec).map_err(malformed)?);
        let (engine, namespace, id) = (self.clone(), context.namespace.clone(), known.id.clone());
        let edit = move || {
            let edited = engine.parts().containers.edit(&namespace, &id, |container| {
                let mut record = Record::of(container)?.unwrap_or_default();
                (record.limits, record.restart) = (limits, policy);
                record.put(container)?;
                container.spec = Some(spec);
                Ok(())
            });
            edited.map(drop)
        };
        blocking(edit).await.doing(doing)?;
        self.note(&context.namespace, &known, "update", &[]);
        Ok(())
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a malformed name, `AlreadyExists` for one that is taken.
    pub async fn rename(&self, context: &Context, request: &api::RenameRequest) -> Result<()> {
        let id = self.find(context, &request.r#ref)?.id;
        // One after the other, so that the names that are known and those that are recorded are the same.
        let _turn = self.shared.turns.take((context.namespace.clone(), id.clone())).await;
        let known = self.known(&context.namespace, &id)?;
        let names = &self.shared.names;
        self.free_if_gone(&context.namespace, &request.name);
        let name = names.rename(&context.namespace, &known.id, &request.name)?;
        let (engine, namespace, id) = (self.clone(), context.namespace.clone(), known.id.clone());
        let new = name.clone();
        let recorded = blocking(move || engine.edit_record(&namespace, &id, |record| record.name = new)).await;
        if recorded.is_err()
            && let Err(error) = names.rename(&context.namespace, &known.id, &known.record.name)
        {
            tracing::error!(id = %known.id, %error, "give a container its name back");
        }
        recorded.doing(|| format!("rename container {}", known.record.name))?;
        let old = format!("/{}", known.record.name);
        let renamed = Known { record: Record { name, ..known.record }, ..known };
        self.shared.journal.learn(&context.namespace, &renamed);
        self.note(&context.namespace, &renamed, "rename", &[("oldName", &old)]);
        Ok(())
    }
}

/// The container's new limits: those of its record, those of the request that a record does not keep, and those of
/// `old` that the request does not change.
fn resources(
    limits: Limits,
    request: &api::UpdateRequest,
    old: &LinuxResources,
) -> Result<LinuxResources, InvalidOptions> {
    let wanted = request.limits.unwrap_or_default();
    let wrong = |error: Error| InvalidOptions::Extra(error.to_string());
    extras::check_processors(wanted.nano_cpus).map_err(wrong)?;
    extras::check_cpuset(&request.cpuset_cpus, &request.cpuset_mems).map_err(wrong)?;
    let weight = extras::blkio_weight(wanted.blkio_weight).map_err(wrong)?;
    let mut resources = beside(builder::limited(limits.into())?, old);
    builder::reserve(&mut resources, wanted.memory_reservation, wanted.cpu_shares)?;
    builder::weigh(&mut resources, weight);
    builder::confine(&mut resources, &request.cpuset_cpus, &request.cpuset_mems)?;
    Ok(resources)
}

/// The changed limits, completed by those of `old`.
fn beside(mut limited: LinuxResources, old: &LinuxResources) -> LinuxResources {
    limited.set_devices(old.devices().clone()).set_block_io(old.block_io().clone());
    if let Some(old) =
        old.memory().as_ref().filter(|memory| memory.reservation().is_some() || memory.swappiness().is_some())
    {
        let mut memory = limited.memory().unwrap_or_default();
        memory.set_reservation(old.reservation()).set_swappiness(old.swappiness());
        limited.set_memory(Some(memory));
    }
    if let Some(old) =
        old.cpu().as_ref().filter(|cpu| cpu.shares().is_some() || cpu.cpus().is_some() || cpu.mems().is_some())
    {
        let mut cpu = limited.cpu().clone().unwrap_or_default();
        cpu.set_shares(old.shares()).set_cpus(old.cpus().clone()).set_mems(old.mems().clone());
        limited.set_cpu(Some(cpu));
    }
    limited
}

impl Limits {
    /// These limits with those of `wanted` that are given.
    fn changed(self, wanted: &api::Limits) -> Self {
        let or = |new: i64, old: i64| if new == 0 { old } else { new };
        Self {
            memory: or(wanted.memory, self.memory),
            memory_swap: or(wanted.memory_swap, self.memory_swap),
            nano_cpus: or(wanted.nano_cpus, self.nano_cpus),
            pids: or(wanted.pids, self.pids),
            cpu_quota: or(wanted.cpu_quota, self.cpu_quota),
            cpu_period: or(wanted.cpu_period, self.cpu_period),
        }
    }
}

impl From<Limits> for builder::Limits {
    fn from(limits: Limits) -> Self {
        let Limits { memory, memory_swap, nano_cpus, pids, cpu_quota, cpu_period } = limits;
        Self { memory, memory_swap, nano_cpus, pids, cpu_quota, cpu_period }
    }
}
