//! Counters as the messages of the interface.

use gantry_proto::runtime::v1;

use super::cgroup::{Counters, Memory, Pressure, Stall};
use super::network::Interface;
use super::{Look, Sandbox};

/// Everything of a pod that its message says.
pub(super) struct Pod<'a> {
    pub(super) at: i64,
    pub(super) counters: Counters,
    pub(super) rate: u64,
    pub(super) containers: Vec<v1::ContainerStats>,
    pub(super) processes: u64,
    /// `None` for one that has the machine's network.
    pub(super) network: Option<&'a [Interface]>,
}

pub(super) fn container(look: &Look, rate: u64, snapshots: &str) -> v1::ContainerStats {
    let record = look.container.record();
    let config = record.config.as_ref();
    let counters = look.counters.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: look.container.id().to_string(),
            metadata: config.and_then(|config| config.metadata.clone()),
            labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
            annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
        }),
        cpu: counters.map(|counters| cpu(look.at, counters, rate)),
        memory: counters.map(|counters| memory(look.at, &counters.memory)),
        writable_layer: look.space.map(|usage| file_system(look.at, snapshots, usage)),
        swap: counters.map(|counters| swap(look.at, &counters.memory)),
        io: counters
            .and_then(|counters| counters.io_pressure)
            .map(|pressure| v1::IoUsage { timestamp: look.at, psi: Some(psi(pressure)) }),
    }
}

pub(super) fn pod(sandbox: &Sandbox, pod: Pod<'_>) -> v1::PodSandboxStats {
    let record = sandbox.record();
    let config = record.config.as_ref();
    let interfaces: Vec<_> = pod.network.unwrap_or_default().iter().map(interface).collect();
    let (mut others, mut default) = (interfaces, None);
    if !others.is_empty() {
        let first = others.iter().position(|interface| interface.name == "eth0").unwrap_or(0);
        default = Some(others.remove(first));
    }
    let linux = v1::LinuxPodSandboxStats {
        cpu: Some(cpu(pod.at, &pod.counters, pod.rate)),
        memory: Some(memory(pod.at, &pod.counters.memory)),
        network: pod.network.map(|_| v1::NetworkUsage {
            timestamp: pod.at,
            default_interface: default,
            interfaces: others,
        }),
        process: Some(v1::ProcessUsage { timestamp: pod.at, process_count: value(pod.processes) }),
        containers: pod.containers,
        io: pod.counters.io_pressure.map(|pressure| v1::IoUsage { timestamp: pod.at, psi: Some(psi(pressure)) }),
    };
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id().to_string(),
            metadata: config.and_then(|config| config.metadata.clone()),
            labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
            annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

pub(super) fn file_system(at: i64, mountpoint: &str, usage: crate::snapshots::Usage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: at,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: value(usage.size),
        inodes_used: value(usage.inodes),
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(at: i64, counters: &Counters, rate: u64) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(counters.cpu.usage),
        usage_nano_cores: value(rate),
        psi: counters.cpu.pressure.map(psi),
    }
}

fn memory(at: i64, memory: &Memory) -> v1::MemoryUsage {
    let working_set = memory.working_set();
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(working_set),
        // Without a limit nobody can say.
        available_bytes: value(memory.limit.map_or(0, |limit| limit.saturating_sub(working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.anonymous),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: memory.pressure.map(psi),
    }
}

fn swap(at: i64, memory: &Memory) -> v1::SwapUsage {
    let usage = memory.swap.unwrap_or(0);
    v1::SwapUsage {
        timestamp: at,
        swap_available_bytes: value(memory.swap_limit.map_or(0, |limit| limit.saturating_sub(usage))),
        swap_usage_bytes: value(usage),
    }
}

fn psi(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| v1::PsiData {
        // Microseconds in the file, nanoseconds here.
        total: stall.total.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn interface(interface: &Interface) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    }
}
