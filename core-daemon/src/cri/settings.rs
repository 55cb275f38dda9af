//! The configuration as JSON under the names that containerd has for it, by which tools look things up in the status of a
//! runtime.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{CgroupDriver, Config, Cri, RuntimeHandler};

/// What there is of containerd's settings, with those of pods as they are now; ours in their own words are what
/// `gantryd config dump` prints.
pub(super) fn shown(config: &Config, cri: &Cri) -> Value {
    let systemd = cri.cgroup_driver == CgroupDriver::Systemd;
    let runtimes: Map<String, Value> = cri
        .runtimes
        .iter()
        .map(|(name, handler)| (name.clone(), runtime(handler, &config.runtime.default, systemd)))
        .collect();
    let (host, port) = cri.streaming.address.rsplit_once(':').unwrap_or((&cri.streaming.address, ""));
    json!({
        "containerd": {
            "snapshotter": config.runtime.snapshotter,
            "defaultRuntimeName": cri.default_runtime,
            "runtimes": runtimes,
        },
        "cni": {
            "binDirs": cri.cni.bin_dirs,
            "binDir": cri.cni.bin_dirs.first(),
            "confDir": cri.cni.conf_dir,
            "maxConfNum": cri.cni.max_networks,
            "setupSerially": cri.cni.serially,
            "confTemplate": cri.cni.conf_template,
            "ipPref": cri.cni.ip_preference,
        },
        "registry": {"configPath": config.registry.config_path},
        "maxConcurrentDownloads": config.registry.max_downloads,
        "imagePullProgressTimeout": seconds(config.registry.timeout),
        "enableSelinux": cri.selinux,
        "selinuxCategoryRange": cri.selinux_category_range,
        "maxContainerLogLineSize": cri.max_log_line,
        "disableApparmor": cri.disable_apparmor,
        "restrictOOMScoreAdj": cri.restrict_oom_score_adj,
        "unsetSeccompProfile": cri.unset_seccomp_profile,
        "device_ownership_from_security_context": cri.device_ownership_from_security_context,
        "ignoreImageDefinedVolumes": cri.ignore_image_defined_volumes,
        "enableUnprivilegedPorts": cri.unprivileged_ports,
        "enableUnprivilegedICMP": cri.unprivileged_icmp,
        "enableCDI": true,
        "cdiSpecDirs": cri.cdi_dirs,
        "drainExecSyncIOTimeout": seconds(cri.exec_drain),
        "streamServerAddress": host.trim_start_matches('[').trim_end_matches(']'),
        "streamServerPort": port,
        "streamIdleTimeout": seconds(cri.streaming.idle_timeout),
        "enableTLSStreaming": cri.streaming.certificate != Path::new(""),
        "containerdRootDir": config.root,
        "containerdEndpoint": config.grpc.address,
        "rootDir": config.root,
        "stateDir": config.state,
    })
}

fn runtime(handler: &RuntimeHandler, default: &str, systemd: bool) -> Value {
    let (kind, path) = match handler.runtime.as_str() {
        "" => (default, ""),
        path if path.starts_with('/') => ("", path),
        kind => (kind, ""),
    };
    json!({
        "runtimeType": kind,
        "runtimePath": path,
        "PodAnnotations": handler.pod_annotations,
        "ContainerAnnotations": handler.container_annotations,
        "options": {"BinaryName": handler.binary, "SystemdCgroup": systemd},
        "privileged_without_host_devices": handler.privileged_without_host_devices,
        "privileged_without_host_devices_all_devices_allowed":
            handler.privileged_without_host_devices_all_devices_allowed,
        "cgroupWritable": handler.cgroup_writable,
        "baseRuntimeSpec": handler.base_runtime_spec,
        "snapshotter": handler.snapshotter,
        "cniConfDir": handler.cni_conf_dir,
        "cniMaxConfNum": handler.cni_max_networks,
    })
}

fn seconds(number: u64) -> String {
    format!("{number}s")
}
