//! The process: its arguments, environment, limits and place among others, and the hooks around it.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use oci_spec::runtime::{
    Hook, Hooks, IOPriorityClass, LinuxIOPriority, LinuxIOPriorityBuilder, LinuxSchedulerFlag as Flag,
    LinuxSchedulerPolicy as Policy, PosixRlimitBuilder, PosixRlimitType, Scheduler, Spec,
};
use rung_spec::builder::merge_environment;

use super::{marked, path};
use crate::error::{Error, Result};

/// Flags of schedulers in the words of both.
pub(in crate::cri::nri) const FLAGS: [(api::LinuxSchedulerFlag, Flag); 7] = [
    (api::LinuxSchedulerFlag::SchedFlagResetOnFork, Flag::SchedResetOnFork),
    (api::LinuxSchedulerFlag::SchedFlagReclaim, Flag::SchedFlagReclaim),
    (api::LinuxSchedulerFlag::SchedFlagDlOverrun, Flag::SchedFlagDLOverrun),
    (api::LinuxSchedulerFlag::SchedFlagKeepPolicy, Flag::SchedFlagKeepPolicy),
    (api::LinuxSchedulerFlag::SchedFlagKeepParams, Flag::SchedFlagKeepParams),
    (api::LinuxSchedulerFlag::SchedFlagUtilClampMin, Flag::SchedFlagUtilClampMin),
    (api::LinuxSchedulerFlag::SchedFlagUtilClampMax, Flag::SchedFlagUtilClampMax),
];

pub(super) fn adjust(spec: &mut Spec, wanted: &api::ContainerAdjustment) -> Result<()> {
    let mut process = spec.process().clone().unwrap_or_default();
    if !wanted.env.is_empty() {
        process.set_env(Some(environment(process.env().as_deref().unwrap_or_default(), &wanted.env)?));
    }
    if !wanted.args.is_empty() {
        process.set_args(Some(wanted.args.clone()));
    }
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for wanted in &wanted.rlimits {
        let kind: PosixRlimitType = wanted
            .r#type
            .parse()
            .map_err(|_| Error::invalid(format!("rlimits.type: {:?} is unknown", wanted.r#type)))?;
        let limit = PosixRlimitBuilder::default().typ(kind).hard(wanted.hard).soft(wanted.soft).build();
        limits.retain(|old| old.typ() != kind);
        limits.push(limit.map_err(|error| Error::internal(error.to_string()))?);
    }
    process.set_rlimits((!limits.is_empty()).then_some(limits));
    if let Some(wanted) = &wanted.linux {
        if let Some(score) = &wanted.oom_score_adj {
            let value = i32::try_from(score.value).ok().filter(|value| (-1000..=1000).contains(value));
            let text = || Error::invalid(format!("linux.oom_score_adj: {} is not from -1000 to 1000", score.value));
            process.set_oom_score_adj(Some(value.ok_or_else(text)?));
        }
        if let Some(priority) = &wanted.io_priority {
            process.set_io_priority(io_priority(priority)?);
        }
        if let Some(wanted) = &wanted.scheduler {
            process.set_scheduler(scheduler(wanted)?);
        }
    }
    spec.set_process(Some(process));
    match &wanted.hooks {
        Some(wanted) => hooks(spec, wanted),
        None => Ok(()),
    }
}

fn environment(before: &[String], wanted: &[api::KeyValue]) -> Result<Vec<String>> {
    let mut kept = before.to_vec();
    for gone in wanted.iter().filter_map(|variable| marked(&variable.key)) {
        kept.retain(|variable| variable.split('=').next() != Some(gone));
    }
    let mut new = Vec::new();
    for variable in wanted.iter().filter(|variable| marked(&variable.key).is_none()) {
        let name = &variable.key;
        if name.is_empty() || name.contains(['=', '\0']) || variable.value.contains('\0') {
            return Err(Error::invalid(format!("env: {name:?} is not a variable")));
        }
        new.push(format!("{name}={}", variable.value));
    }
    Ok(merge_environment(&kept, &new))
}

/// None where nothing is to be said of it any more.
fn io_priority(wanted: &api::LinuxIoPriority) -> Result<Option<LinuxIOPriority>> {
    let class = match api::IoPrioClass::try_from(wanted.class) {
        Ok(api::IoPrioClass::IoprioClassNone) => return Ok(None),
        Ok(api::IoPrioClass::IoprioClassRt) => IOPriorityClass::IoprioClassRt,
        Ok(api::IoPrioClass::IoprioClassBe) => IOPriorityClass::IoprioClassBe,
        Ok(api::IoPrioClass::IoprioClassIdle) => IOPriorityClass::IoprioClassIdle,
        Err(_) => return Err(Error::invalid(format!("linux.io_priority.class: {} is unknown", wanted.class))),
    };
    let priority = LinuxIOPriorityBuilder::default().class(class).priority(i64::from(wanted.priority)).build();
    priority.map(Some).map_err(|error| Error::internal(error.to_string()))
}

/// The same of the scheduler.
fn scheduler(wanted: &api::LinuxScheduler) -> Result<Option<Scheduler>> {
    use api::LinuxSchedulerPolicy as Wanted;
    let policy = match Wanted::try_from(wanted.policy) {
        Ok(Wanted::SchedNone) => return Ok(None),
        Ok(Wanted::SchedOther) => Policy::SchedOther,
        Ok(Wanted::SchedFifo) => Policy::SchedFifo,
        Ok(Wanted::SchedRr) => Policy::SchedRr,
        Ok(Wanted::SchedBatch) => Policy::SchedBatch,
        Ok(Wanted::SchedIso) => Policy::SchedIso,
        Ok(Wanted::SchedIdle) => Policy::SchedIdle,
        Ok(Wanted::SchedDeadline) => Policy::SchedDeadline,
        Err(_) => return Err(Error::invalid(format!("linux.scheduler.policy: {} is unknown", wanted.policy))),
    };
    let flag = |number: &i32| {
        let flag = FLAGS.iter().find(|(flag, _)| i32::from(*flag) == *number);
        flag.map(|(_, flag)| *flag).ok_or_else(|| Error::invalid(format!("linux.scheduler.flags: {number} is unknown")))
    };
    let flags = wanted.flags.iter().map(flag).collect::<Result<Vec<_>>>()?;
    let said = |number: u64| Some(number).filter(|number| *number != 0);
    let mut scheduler = Scheduler::default();
    scheduler
        .set_policy(policy)
        .set_nice(Some(wanted.nice).filter(|nice| *nice != 0))
        .set_priority(Some(wanted.priority).filter(|priority| *priority != 0))
        .set_flags((!flags.is_empty()).then_some(flags))
        .set_runtime(said(wanted.runtime))
        .set_deadline(said(wanted.deadline))
        .set_period(said(wanted.period));
    Ok(Some(scheduler))
}

fn hooks(spec: &mut Spec, wanted: &api::Hooks) -> Result<()> {
    let mut all = spec.hooks().clone().unwrap_or_default();
    let add = |name: &str, list: &mut Option<Vec<Hook>>, wanted: &[api::Hook]| -> Result<()> {
        for one in wanted {
            let mut hook = Hook::default();
            hook.set_path(path(&format!("hooks.{name}.path"), &one.path)?)
                .set_args((!one.args.is_empty()).then(|| one.args.clone()))
                .set_env((!one.env.is_empty()).then(|| one.env.clone()))
                .set_timeout(one.timeout.as_ref().map(|timeout| timeout.value));
            list.get_or_insert_default().push(hook);
        }
        Ok(())
    };
    #[allow(deprecated, reason = "prestart hooks are still what tools for GPUs use")]
    add("prestart", Hooks::prestart_mut(&mut all), &wanted.prestart)?;
    add("create_runtime", all.create_runtime_mut(), &wanted.create_runtime)?;
    add("create_container", all.create_container_mut(), &wanted.create_container)?;
    add("start_container", all.start_container_mut(), &wanted.start_container)?;
    add("poststart", all.poststart_mut(), &wanted.poststart)?;
    add("poststop", all.poststop_mut(), &wanted.poststop)?;
    if all != Hooks::default() {
        spec.set_hooks(Some(all));
    }
    Ok(())
}
