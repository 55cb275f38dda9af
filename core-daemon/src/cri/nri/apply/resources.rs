//! Limits.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use oci_spec::runtime::{LinuxCpu, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};
use rung_spec::defaults::devices::rule;

use crate::config;
use crate::cri::spec as specs;
use crate::error::{Doing as _, Error, Result};

/// Puts the limits that a plugin names over those there are.
///
/// # Errors
/// `InvalidArgument` naming the one that cannot be.
pub(in crate::cri::nri) fn lay_over(
    all: &mut LinuxResources,
    wanted: &api::LinuxResources,
    settings: &config::Cri,
) -> Result<()> {
    if let Some(wanted) = &wanted.memory {
        let mut limits = (*all.memory()).unwrap_or_default();
        memory(&mut limits, wanted);
        all.set_memory((limits != LinuxMemory::default()).then_some(limits));
    }
    if let Some(wanted) = &wanted.cpu {
        let mut limits = all.cpu().clone().unwrap_or_default();
        cpu(&mut limits, wanted);
        all.set_cpu((limits != LinuxCpu::default()).then_some(limits));
    }
    let mut pages = all.hugepage_limits().clone().unwrap_or_default();
    for wanted in &wanted.hugepage_limits {
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(wanted.page_size.clone()).set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
        pages.retain(|old| old.page_size() != limit.page_size());
        pages.push(limit);
    }
    all.set_hugepage_limits((!pages.is_empty()).then_some(pages));
    if !wanted.unified.is_empty() {
        let mut files = all.unified().clone().unwrap_or_default();
        files.extend(wanted.unified.iter().map(|(name, value)| (name.clone(), value.clone())));
        all.set_unified(Some(files));
    }
    if let Some(wanted) = &wanted.pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(if wanted.limit < 0 { -1 } else { wanted.limit });
        all.set_pids(Some(pids));
    }
    let mut rules = all.devices().clone().unwrap_or_default();
    for wanted in &wanted.devices {
        let kind = match wanted.r#type.as_str() {
            "" | "a" => LinuxDeviceType::A,
            "b" => LinuxDeviceType::B,
            "c" => LinuxDeviceType::C,
            other => {
                return Err(Error::invalid(format!("linux.resources.devices.type: {other:?} is not a, b or c")));
            }
        };
        if wanted.access.is_empty() || !wanted.access.bytes().all(|byte| b"rwm".contains(&byte)) {
            let text = format!("linux.resources.devices.access: {:?} is not made of r, w and m", wanted.access);
            return Err(Error::invalid(text));
        }
        let number = |number: &Option<api::OptionalInt64>| number.as_ref().map(|number| number.value);
        rules.push(rule(wanted.allow, Some(kind), number(&wanted.major), number(&wanted.minor), &wanted.access));
    }
    all.set_devices((!rules.is_empty()).then_some(rules));
    if let Some(class) = &wanted.blockio_class {
        let io = match class.value.as_str() {
            "" => None,
            name => Some(
                specs::block_io(&settings.blockio_config, name)
                    .doing(|| format!("linux.resources.blockio_class: {name:?}"))?,
            ),
        };
        all.set_block_io(io);
    }
    Ok(())
}

fn memory(limits: &mut LinuxMemory, wanted: &api::LinuxMemory) {
    // 0 says nothing, here and below.
    if let Some(limit) = wanted.limit.as_ref().filter(|limit| limit.value != 0) {
        limits.set_limit(Some(limit.value));
        // As much of memory and swap together where nothing is said of that: no swap.
        if wanted.swap.is_none() {
            limits.set_swap(limits.limit().filter(|_| specs::counts_swap()));
        }
    }
    if let Some(value) = &wanted.reservation {
        limits.set_reservation(Some(value.value));
    }
    if let Some(value) = wanted.swap.as_ref().filter(|value| value.value != 0) {
        limits.set_swap(Some(value.value).filter(|_| specs::counts_swap()));
    }
    if let Some(value) = &wanted.kernel {
        #[allow(deprecated, reason = "plugins for old kernels have it")]
        limits.set_kernel(Some(value.value));
    }
    if let Some(value) = &wanted.kernel_tcp {
        limits.set_kernel_tcp(Some(value.value));
    }
    if let Some(value) = &wanted.swappiness {
        limits.set_swappiness(Some(value.value));
    }
    if let Some(value) = &wanted.disable_oom_killer {
        limits.set_disable_oom_killer(Some(value.value));
    }
    if let Some(value) = &wanted.use_hierarchy {
        limits.set_use_hierarchy(Some(value.value));
    }
}

fn cpu(limits: &mut LinuxCpu, wanted: &api::LinuxCpu) {
    if let Some(value) = wanted.shares.as_ref().filter(|value| value.value != 0) {
        limits.set_shares(Some(value.value));
    }
    if let Some(value) = wanted.quota.as_ref().filter(|value| value.value != 0) {
        limits.set_quota(Some(value.value));
    }
    if let Some(value) = wanted.period.as_ref().filter(|value| value.value != 0) {
        limits.set_period(Some(value.value));
    }
    if let Some(value) = &wanted.realtime_runtime {
        limits.set_realtime_runtime(Some(value.value));
    }
    if let Some(value) = &wanted.realtime_period {
        limits.set_realtime_period(Some(value.value));
    }
    if !wanted.cpus.is_empty() {
        limits.set_cpus(Some(wanted.cpus.clone()));
    }
    if !wanted.mems.is_empty() {
        limits.set_mems(Some(wanted.mems.clone()));
    }
}
