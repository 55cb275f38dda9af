//! What is Linux's: devices, namespaces, parameters, groups of resources.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIntelRdt, LinuxMemoryPolicy, LinuxNamespace, LinuxNamespaceType,
    LinuxNetDevice, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode, Spec,
};
use rung_spec::defaults::devices::rule;

use super::{change, marked, path, resources, seccomp};
use crate::config;
use crate::cri::spec as specs;
use crate::error::{Doing as _, Error, Result};

pub(super) fn adjust(spec: &mut Spec, wanted: &api::LinuxContainerAdjustment, settings: &config::Cri) -> Result<()> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    devices(&mut linux, &wanted.devices)?;
    if !wanted.cgroups_path.is_empty() {
        if wanted.cgroups_path.contains('\0') {
            return Err(Error::invalid("linux.cgroups_path: has a character that no path has"));
        }
        linux.set_cgroups_path(Some(wanted.cgroups_path.clone().into()));
    }
    if let Some(policy) = &wanted.seccomp_policy {
        linux.set_seccomp(Some(seccomp::filter(policy)?));
    }
    namespaces(&mut linux, &wanted.namespaces)?;
    if !wanted.sysctl.is_empty() {
        let mut all = linux.sysctl().clone().unwrap_or_default();
        change("linux.sysctl", &mut all, &wanted.sysctl, |value| value.clone())?;
        linux.set_sysctl(Some(all));
    }
    if !wanted.net_devices.is_empty() {
        let mut all = linux.net_devices().clone().unwrap_or_default();
        let device = |wanted: &api::LinuxNetDevice| {
            let mut device = LinuxNetDevice::default();
            device.set_name(Some(wanted.name.clone()).filter(|name| !name.is_empty()));
            device
        };
        change("linux.net_devices", &mut all, &wanted.net_devices, device)?;
        linux.set_net_devices(Some(all));
    }
    if let Some(policy) = &wanted.memory_policy {
        linux.set_memory_policy(Some(memory_policy(policy)?));
    }
    if let Some(limits) = &wanted.resources {
        let mut all = linux.resources().clone().unwrap_or_default();
        resources::lay_over(&mut all, limits, settings)?;
        linux.set_resources(Some(all));
        if let Some(class) = &limits.rdt_class {
            linux.set_intel_rdt(cache_class(&class.value)?);
        }
    }
    if let Some(rdt) = &wanted.rdt {
        cache_group(&mut linux, rdt);
    }
    spec.set_linux(Some(linux));
    Ok(())
}

fn devices(linux: &mut Linux, wanted: &[api::LinuxDevice]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut limits = linux.resources().clone().unwrap_or_default();
    let mut rules = limits.devices().clone().unwrap_or_default();
    for gone in wanted.iter().filter_map(|device| marked(&device.path)) {
        nodes.retain(|node| node.path() != std::path::Path::new(gone));
    }
    for wanted in wanted.iter().filter(|device| marked(&device.path).is_none()) {
        let kind = match wanted.r#type.as_str() {
            "c" | "u" => LinuxDeviceType::C,
            "b" => LinuxDeviceType::B,
            "p" => LinuxDeviceType::P,
            other => {
                let text = format!("linux.devices.type: {}: {other:?} is not c, b, u or p", wanted.path);
                return Err(Error::invalid(text));
            }
        };
        let mut node = LinuxDevice::default();
        node.set_path(path("linux.devices.path", &wanted.path)?)
            .set_typ(kind)
            .set_major(wanted.major)
            .set_minor(wanted.minor)
            .set_file_mode(wanted.file_mode.as_ref().map(|mode| mode.value))
            .set_uid(wanted.uid.as_ref().map(|user| user.value))
            .set_gid(wanted.gid.as_ref().map(|group| group.value));
        nodes.retain(|old| old.path() != node.path());
        // There is nothing to allow about a pipe.
        if kind != LinuxDeviceType::P {
            let access = if kind == LinuxDeviceType::B { "rwm" } else { "rw" };
            rules.push(rule(true, Some(kind), Some(wanted.major), Some(wanted.minor), access));
        }
        nodes.push(node);
    }
    limits.set_devices(Some(rules));
    linux.set_devices(Some(nodes)).set_resources(Some(limits));
    Ok(())
}

fn namespaces(linux: &mut Linux, wanted: &[api::LinuxNamespace]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut all = linux.namespaces().clone().unwrap_or_default();
    for wanted in wanted {
        let name = marked(&wanted.r#type).unwrap_or(&wanted.r#type);
        let kind = LinuxNamespaceType::try_from(name)
            .map_err(|_| Error::invalid(format!("linux.namespaces.type: {name:?} is unknown")))?;
        all.retain(|old| old.typ() != kind);
        if marked(&wanted.r#type).is_some() {
            continue;
        }
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        if !wanted.path.is_empty() {
            namespace.set_path(Some(path("linux.namespaces.path", &wanted.path)?));
        }
        all.push(namespace);
    }
    linux.set_namespaces(Some(all));
    Ok(())
}

fn memory_policy(wanted: &api::LinuxMemoryPolicy) -> Result<LinuxMemoryPolicy> {
    use api::{MpolFlag, MpolMode};
    let mode = match MpolMode::try_from(wanted.mode) {
        Ok(MpolMode::MpolDefault) => Mode::MpolDefault,
        Ok(MpolMode::MpolPreferred) => Mode::MpolPreferred,
        Ok(MpolMode::MpolBind) => Mode::MpolBind,
        Ok(MpolMode::MpolInterleave) => Mode::MpolInterleave,
        Ok(MpolMode::MpolLocal) => Mode::MpolLocal,
        Ok(MpolMode::MpolPreferredMany) => Mode::MpolPreferredMany,
        Ok(MpolMode::MpolWeightedInterleave) => Mode::MpolWeightedInterleave,
        Err(_) => return Err(Error::invalid(format!("linux.memory_policy.mode: {} is unknown", wanted.mode))),
    };
    let flag = |number: &i32| match MpolFlag::try_from(*number) {
        Ok(MpolFlag::MpolFStaticNodes) => Ok(Flag::MpolFStaticNodes),
        Ok(MpolFlag::MpolFRelativeNodes) => Ok(Flag::MpolFRelativeNodes),
        Ok(MpolFlag::MpolFNumaBalancing) => Ok(Flag::MpolFNumaBalancing),
        Err(_) => Err(Error::invalid(format!("linux.memory_policy.flags: {number} is unknown"))),
    };
    let flags = wanted.flags.iter().map(flag).collect::<Result<Vec<_>>>()?;
    let mut policy = LinuxMemoryPolicy::default();
    policy
        .set_mode(mode)
        .set_nodes(Some(wanted.nodes.clone()).filter(|nodes| !nodes.is_empty()))
        .set_flags((!flags.is_empty()).then_some(flags));
    Ok(policy)
}

/// The group of a class of cache use, which somebody has set up; an empty class is none.
fn cache_class(class: &str) -> Result<Option<LinuxIntelRdt>> {
    if class.is_empty() {
        return Ok(None);
    }
    let group = specs::cache_group(class).doing(|| format!("linux.resources.rdt_class: {class:?}"))?;
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(Some(group));
    Ok(Some(rdt))
}

fn cache_group(linux: &mut Linux, wanted: &api::LinuxRdt) {
    let before = linux.intel_rdt().clone().filter(|_| !wanted.remove);
    let mut rdt = before.clone().unwrap_or_default();
    if let Some(group) = &wanted.clos_id {
        rdt.set_clos_id(Some(group.value.clone()));
    }
    if let Some(schemata) = &wanted.schemata {
        rdt.set_schemata(Some(schemata.value.clone()));
    }
    if let Some(monitored) = &wanted.enable_monitoring {
        rdt.set_enable_monitoring(Some(monitored.value));
    }
    let is_said = wanted.clos_id.is_some() || wanted.schemata.is_some() || wanted.enable_monitoring.is_some();
    linux.set_intel_rdt(if is_said { Some(rdt) } else { before });
}
