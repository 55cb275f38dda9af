//! What plugins are told of a container: its runtime configuration in the words of their interface.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::runtime::v1;
use oci_spec::runtime::{
    Hook, Linux, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSyscall, Process,
    Spec,
};

/// Everything that the runtime configuration says of a container.
pub(super) fn container(spec: &Spec) -> api::Container {
    let process = spec.process().as_ref();
    let linux = spec.linux().clone().unwrap_or_default();
    let mounts = spec.mounts().iter().flatten().map(|mount| api::Mount {
        destination: text(mount.destination()),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_ref().map(text).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    });
    let rlimits = process.and_then(|process| process.rlimits().as_ref()).into_iter().flatten();
    api::Container {
        annotations: spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        args: process.and_then(|process| process.args().clone()).unwrap_or_default(),
        env: process.and_then(|process| process.env().clone()).unwrap_or_default(),
        mounts: mounts.collect(),
        hooks: hooks(spec),
        rlimits: rlimits
            .map(|limit| api::PosixRlimit { r#type: limit.typ().to_string(), hard: limit.hard(), soft: limit.soft() })
            .collect(),
        user: process.map(|process| api::User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
        }),
        linux: Some(linux_of(&linux, process)),
        ..api::Container::default()
    }
}

fn linux_of(linux: &Linux, process: Option<&Process>) -> api::LinuxContainer {
    let devices = linux.devices().iter().flatten().map(|device| api::LinuxDevice {
        path: text(device.path()),
        r#type: device.typ().as_str().to_owned(),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| api::OptionalFileMode { value }),
        uid: device.uid().map(|value| api::OptionalUInt32 { value }),
        gid: device.gid().map(|value| api::OptionalUInt32 { value }),
    });
    let interfaces = linux.net_devices().iter().flatten();
    api::LinuxContainer {
        namespaces: linux.namespaces().iter().flatten().map(namespace).collect(),
        devices: devices.collect(),
        resources: linux.resources().as_ref().map(resources),
        oom_score_adj: process
            .and_then(|process| process.oom_score_adj())
            .map(|value| api::OptionalInt { value: value.into() }),
        cgroups_path: linux.cgroups_path().as_ref().map(text).unwrap_or_default(),
        io_priority: process.and_then(|process| process.io_priority().as_ref()).map(|priority| api::LinuxIoPriority {
            class: api::IoPrioClass::from_str_name(&priority.class().to_string()).unwrap_or_default().into(),
            priority: i32::try_from(priority.priority()).unwrap_or_default(),
        }),
        seccomp_profile: None,
        seccomp_policy: linux.seccomp().as_ref().map(seccomp),
        sysctl: linux.sysctl().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        net_devices: interfaces
            .map(|(host, device)| {
                (host.clone(), api::LinuxNetDevice { name: device.name().clone().unwrap_or_default() })
            })
            .collect(),
        scheduler: process.and_then(|process| process.scheduler().as_ref()).map(|scheduler| api::LinuxScheduler {
            policy: api::LinuxSchedulerPolicy::from_str_name(&scheduler.policy().to_string())
                .unwrap_or_default()
                .into(),
            nice: scheduler.nice().unwrap_or_default(),
            priority: scheduler.priority().unwrap_or_default(),
            flags: scheduler
                .flags()
                .iter()
                .flatten()
                .filter_map(|flag| super::apply::process::FLAGS.iter().find(|(_, known)| known == flag))
                .map(|(flag, _)| (*flag).into())
                .collect(),
            runtime: scheduler.runtime().unwrap_or_default(),
            deadline: scheduler.deadline().unwrap_or_default(),
            period: scheduler.period().unwrap_or_default(),
        }),
        rdt: linux.intel_rdt().as_ref().map(|rdt| api::LinuxRdt {
            clos_id: rdt.clos_id().clone().map(|value| api::OptionalString { value }),
            schemata: rdt.schemata().clone().map(|value| api::OptionalRepeatedString { value }),
            enable_monitoring: rdt.enable_monitoring().map(|value| api::OptionalBool { value }),
            remove: false,
        }),
    }
}

/// A namespace that is made, or joined at its path.
pub(super) fn namespace(namespace: &LinuxNamespace) -> api::LinuxNamespace {
    api::LinuxNamespace {
        r#type: kind_of_namespace(namespace.typ()).to_owned(),
        path: namespace.path().as_ref().map(text).unwrap_or_default(),
    }
}

/// The configuration's names of namespaces.
fn kind_of_namespace(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn hooks(spec: &Spec) -> Option<api::Hooks> {
    let hooks = spec.hooks().as_ref()?;
    let list = |list: &Option<Vec<Hook>>| -> Vec<api::Hook> {
        let hook = |hook: &Hook| api::Hook {
            path: text(hook.path()),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout: hook.timeout().map(|value| api::OptionalInt { value }),
        };
        list.iter().flatten().map(hook).collect()
    };
    #[allow(deprecated, reason = "prestart hooks are still what tools for GPUs use")]
    let prestart = list(hooks.prestart());
    Some(api::Hooks {
        prestart,
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    })
}

fn seccomp(seccomp: &LinuxSeccomp) -> api::LinuxSeccomp {
    let syscall = |syscall: &LinuxSyscall| api::LinuxSyscall {
        names: syscall.names().clone(),
        action: syscall.action().to_string(),
        errno_ret: syscall.errno_ret().map(|value| api::OptionalUInt32 { value }),
        args: syscall
            .args()
            .iter()
            .flatten()
            .map(|arg| api::LinuxSeccompArg {
                index: u32::try_from(arg.index()).unwrap_or(u32::MAX),
                value: arg.value(),
                value_two: arg.value_two().unwrap_or_default(),
                op: arg.op().to_string(),
            })
            .collect(),
    };
    api::LinuxSeccomp {
        default_action: seccomp.default_action().to_string(),
        default_errno: seccomp.default_errno_ret().map(|value| api::OptionalUInt32 { value }),
        architectures: seccomp.architectures().iter().flatten().map(ToString::to_string).collect(),
        flags: seccomp.flags().iter().flatten().map(ToString::to_string).collect(),
        listener_path: seccomp.listener_path().as_ref().map(text).unwrap_or_default(),
        listener_metadata: seccomp.listener_metadata().clone().unwrap_or_default(),
        syscalls: seccomp.syscalls().iter().flatten().map(syscall).collect(),
    }
}

/// Limits as the runtime configuration has them.
pub(super) fn resources(resources: &LinuxResources) -> api::LinuxResources {
    let devices = resources.devices().iter().flatten().map(|rule| api::LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        major: rule.major().map(|value| api::OptionalInt64 { value }),
        minor: rule.minor().map(|value| api::OptionalInt64 { value }),
        access: rule.access().clone().unwrap_or_default(),
    });
    let cpu = resources.cpu().as_ref().map(|cpu| api::LinuxCpu {
        shares: cpu.shares().map(|value| api::OptionalUInt64 { value }),
        quota: cpu.quota().map(|value| api::OptionalInt64 { value }),
        period: cpu.period().map(|value| api::OptionalUInt64 { value }),
        realtime_runtime: cpu.realtime_runtime().map(|value| api::OptionalInt64 { value }),
        realtime_period: cpu.realtime_period().map(|value| api::OptionalUInt64 { value }),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
    });
    let pages = resources.hugepage_limits().iter().flatten().map(|limit| api::HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or_default(),
    });
    api::LinuxResources {
        memory: resources.memory().as_ref().map(memory),
        cpu,
        hugepage_limits: pages.collect(),
        blockio_class: None,
        rdt_class: None,
        unified: resources.unified().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        devices: devices.collect(),
        pids: resources.pids().map(|pids| api::LinuxPids { limit: pids.limit() }),
    }
}

fn memory(memory: &LinuxMemory) -> api::LinuxMemory {
    let number = |value: Option<i64>| value.map(|value| api::OptionalInt64 { value });
    #[allow(deprecated, reason = "a base configuration may have it")]
    let kernel = memory.kernel();
    api::LinuxMemory {
        limit: number(memory.limit()),
        reservation: number(memory.reservation()),
        swap: number(memory.swap()),
        kernel: number(kernel),
        kernel_tcp: number(memory.kernel_tcp()),
        swappiness: memory.swappiness().map(|value| api::OptionalUInt64 { value }),
        disable_oom_killer: memory.disable_oom_killer().map(|value| api::OptionalBool { value }),
        use_hierarchy: memory.use_hierarchy().map(|value| api::OptionalBool { value }),
    }
}

/// Limits as the kubelet says them.
pub(super) fn wanted_resources(wanted: &v1::LinuxContainerResources) -> api::LinuxResources {
    let positive = |value: i64| u64::try_from(value).ok().map(|value| api::OptionalUInt64 { value });
    let number = |value: i64| Some(api::OptionalInt64 { value });
    let swap = wanted.memory_swap_limit_in_bytes;
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: number(wanted.memory_limit_in_bytes),
            swap: if swap == 0 { None } else { number(swap) },
            ..api::LinuxMemory::default()
        }),
        cpu: Some(api::LinuxCpu {
            shares: positive(wanted.cpu_shares),
            quota: number(wanted.cpu_quota),
            period: positive(wanted.cpu_period),
            cpus: wanted.cpuset_cpus.clone(),
            mems: wanted.cpuset_mems.clone(),
            ..api::LinuxCpu::default()
        }),
        hugepage_limits: wanted
            .hugepage_limits
            .iter()
            .map(|limit| api::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: wanted.unified.clone(),
        ..api::LinuxResources::default()
    }
}

/// Puts what plugins say of limits over what the kubelet says, as far as the kubelet's interface has words for it.
pub(super) fn to_wanted(resources: &api::LinuxResources, wanted: &mut v1::LinuxContainerResources) {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if let Some(memory) = &resources.memory {
        if let Some(limit) = &memory.limit {
            wanted.memory_limit_in_bytes = limit.value;
        }
        if let Some(swap) = &memory.swap {
            wanted.memory_swap_limit_in_bytes = swap.value;
        }
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = &cpu.shares {
            wanted.cpu_shares = signed(shares.value);
        }
        if let Some(quota) = &cpu.quota {
            wanted.cpu_quota = quota.value;
        }
        if let Some(period) = &cpu.period {
            wanted.cpu_period = signed(period.value);
        }
        for (place, text) in [(&mut wanted.cpuset_cpus, &cpu.cpus), (&mut wanted.cpuset_mems, &cpu.mems)] {
            if !text.is_empty() {
                place.clone_from(text);
            }
        }
    }
    for limit in &resources.hugepage_limits {
        wanted.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        wanted.hugepage_limits.push(v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit });
    }
    wanted.unified.extend(resources.unified.clone());
}

pub(super) fn text(path: impl AsRef<std::path::Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
