//! Limits of several plugins together.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Field;

use super::owners::Owners;
use crate::error::Result;

/// Everything that `wanted` names is the plugin's from now on.
pub(super) fn claim(owners: &mut Owners, container: &str, wanted: &api::LinuxResources, plugin: &str) -> Result<()> {
    let memory = wanted.memory.unwrap_or_default();
    let cpu = wanted.cpu.clone().unwrap_or_default();
    for (said, field) in [
        (memory.limit.is_some(), Field::MemLimit),
        (memory.reservation.is_some(), Field::MemReservation),
        (memory.swap.is_some(), Field::MemSwapLimit),
        (memory.kernel.is_some(), Field::MemKernelLimit),
        (memory.kernel_tcp.is_some(), Field::MemTcpLimit),
        (memory.swappiness.is_some(), Field::MemSwappiness),
        (memory.disable_oom_killer.is_some(), Field::MemDisableOomKiller),
        (memory.use_hierarchy.is_some(), Field::MemUseHierarchy),
        (cpu.shares.is_some(), Field::CpuShares),
        (cpu.quota.is_some(), Field::CpuQuota),
        (cpu.period.is_some(), Field::CpuPeriod),
        (cpu.realtime_runtime.is_some(), Field::CpuRealtimeRuntime),
        (cpu.realtime_period.is_some(), Field::CpuRealtimePeriod),
        (!cpu.cpus.is_empty(), Field::CpuSetCpUs),
        (!cpu.mems.is_empty(), Field::CpuSetMems),
        (wanted.blockio_class.is_some(), Field::BlockioClass),
        (wanted.rdt_class.is_some(), Field::RdtClass),
        (wanted.pids.is_some(), Field::PidsLimit),
    ] {
        if said {
            owners.claim(container, field, plugin)?;
        }
    }
    for limit in &wanted.hugepage_limits {
        owners.claim_entry(container, Field::HugepageLimits, &limit.page_size, plugin)?;
    }
    for file in wanted.unified.keys() {
        owners.claim_entry(container, Field::CgroupsUnified, file, plugin)?;
    }
    Ok(())
}

/// Puts what `wanted` names over what there is.
pub(super) fn lay_over(all: &mut api::LinuxResources, wanted: &api::LinuxResources) {
    if let Some(wanted) = &wanted.memory {
        let memory = all.memory.get_or_insert_default();
        set(&mut memory.limit, &wanted.limit);
        set(&mut memory.reservation, &wanted.reservation);
        set(&mut memory.swap, &wanted.swap);
        set(&mut memory.kernel, &wanted.kernel);
        set(&mut memory.kernel_tcp, &wanted.kernel_tcp);
        set(&mut memory.swappiness, &wanted.swappiness);
        set(&mut memory.disable_oom_killer, &wanted.disable_oom_killer);
        set(&mut memory.use_hierarchy, &wanted.use_hierarchy);
    }
    if let Some(wanted) = &wanted.cpu {
        let cpu = all.cpu.get_or_insert_default();
        set(&mut cpu.shares, &wanted.shares);
        set(&mut cpu.quota, &wanted.quota);
        set(&mut cpu.period, &wanted.period);
        set(&mut cpu.realtime_runtime, &wanted.realtime_runtime);
        set(&mut cpu.realtime_period, &wanted.realtime_period);
        for (place, text) in [(&mut cpu.cpus, &wanted.cpus), (&mut cpu.mems, &wanted.mems)] {
            if !text.is_empty() {
                place.clone_from(text);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        all.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        all.hugepage_limits.push(limit.clone());
    }
    set(&mut all.blockio_class, &wanted.blockio_class);
    set(&mut all.rdt_class, &wanted.rdt_class);
    set(&mut all.pids, &wanted.pids);
    all.unified.extend(wanted.unified.clone());
    all.devices.extend(wanted.devices.clone());
}

fn set<T: Clone>(place: &mut Option<T>, value: &Option<T>) {
    if value.is_some() {
        place.clone_from(value);
    }
}
