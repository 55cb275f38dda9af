//! The part of the configuration that is about Kubernetes' container runtime interface.

use std::collections::BTreeMap;
use std::path::PathBuf;

use gantry_proto::stdio::MIN_LINE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Nri;
use crate::error::{Error, Result};

/// How pods and their containers are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cri {
    /// Handler of pods that name none.
    pub default_runtime: String,
    /// Runtime handlers by name, which a `RuntimeClass` may choose.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// Who makes the cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Seccomp profile of containers that ask for none: `unconfined`, `runtime/default`, or `localhost/PATH`.
    pub unset_seccomp_profile: String,
    /// Pods with a network of their own may bind ports below 1024 without privilege.
    pub unprivileged_ports: bool,
    /// Pods with a network of their own may ping without privilege.
    pub unprivileged_icmp: bool,
    /// Containers and pods may be made from checkpoints, which come back with whatever privileges those say: only for nodes
    /// whose users are trusted with the node.
    pub restore_checkpoints: bool,
    /// SELinux labels are set, where the kernel has SELinux.
    pub selinux: bool,
    /// Pods' levels have categories below this, at most 1024.
    pub selinux_category_range: u32,
    /// No container has an AppArmor profile, as on a machine without AppArmor.
    pub disable_apparmor: bool,
    /// Containers do not have the volumes that their images declare.
    pub ignore_image_defined_volumes: bool,
    /// Devices of a container belong to whom it runs as, where the pod says whom.
    pub device_ownership_from_security_context: bool,
    /// Containers are never ended for want of memory later than the daemon, whatever the kubelet wants.
    pub restrict_oom_score_adj: bool,
    /// A file with classes of disk use, which annotations of pods may name; empty: none. Its form is that of containerd's
    /// `blockio_config_file`.
    pub blockio_config: PathBuf,
    /// Images that the kubelet is told not to remove.
    pub pinned_images: Vec<String>,
    /// Longest text of a line in a container's log, in bytes; longer lines are cut into parts.
    pub max_log_line: usize,
    /// Seconds for which an `ExecSync` waits for output after its process has ended, because children may hold the stream.
    pub exec_drain: u64,
    /// Directories with descriptions of CDI devices.
    pub cdi_dirs: Vec<PathBuf>,
    /// Directories with hooks for containers, as oci-hooks(5) describes them; a file in a later one hides that of the same
    /// name in an earlier one.
    pub hooks_dirs: Vec<PathBuf>,
    /// Pods' networks.
    pub cni: Cni,
    /// The server of exec, attach and port forwarding.
    pub streaming: Streaming,
    /// Plugins of the node resource interface.
    pub nri: Nri,
}

/// A way to run pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeHandler {
    /// Runtime, as containerd spells it; empty: the daemon's default.
    pub runtime: String,
    /// The runtime's own program, for a shim that can be told; empty: the shim's choice.
    pub binary: String,
    /// A runtime configuration that containers begin with, for what a kubelet cannot say; empty: none.
    pub base_runtime_spec: PathBuf,
    /// Where root file systems and images that are volumes come from; empty: the daemon's default snapshotter.
    pub snapshotter: String,
    /// Patterns of pod annotations that become annotations of the runtime's configuration.
    pub pod_annotations: Vec<String>,
    /// The same of container annotations.
    pub container_annotations: Vec<String>,
    /// Annotations of pods and images may name an artifact with the filter of system calls, `seccomp-profile.crio.io/POD` for
    /// one: of containers that ask for no filter, or for none in particular.
    pub seccomp_profile_annotations: bool,
    /// Privileged containers get the default devices only.
    pub privileged_without_host_devices: bool,
    /// Such containers may use every device that they make, all the same.
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// Containers may write to their own cgroup.
    pub cgroup_writable: bool,
    /// Directory of network configurations for pods of this handler; empty: that of all pods.
    pub cni_conf_dir: PathBuf,
    /// How many of the configurations are used; 0: as many as for all pods.
    pub cni_max_networks: usize,
}

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Directories in the file system of cgroups.
    Cgroupfs,
    /// Scopes and slices of systemd.
    Systemd,
}

/// Pods' networks, which plugins of the container network interface make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Directory of network configurations.
    pub conf_dir: PathBuf,
    /// Directories of plugins, searched in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Where results are kept for the removal; empty: `cni` in the root directory. Not to be shared with another program.
    pub cache_dir: PathBuf,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    /// How many of the configurations are used; 0: all.
    pub max_networks: usize,
    /// Networks are set up one after the other instead of at once.
    pub serially: bool,
    /// Which of a pod's addresses is its primary one.
    pub ip_preference: IpPreference,
    /// Template of a configuration, written when the kubelet says which addresses the node has; empty: none.
    pub conf_template: PathBuf,
    /// At start, plugins are told which of their networks' attachments are ours, so that they free all others: only for
    /// networks that no other program uses.
    pub collect: bool,
    /// Seconds a plugin may take.
    pub timeout: u64,
}

/// Which of a pod's addresses is its primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IpPreference {
    /// The first of version 4.
    Ipv4,
    /// The first of version 6.
    Ipv6,
    /// The first one that the plugins name.
    Cni,
}

/// The server of exec, attach and port forwarding. Whoever can reach it and has a URL of it may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Address and port; port 0 is one that is free.
    pub address: String,
    /// Certificate, to speak TLS; empty: none.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Seconds without a byte after which a connection is ended.
    pub idle_timeout: u64,
    /// Seconds a client may take to open the streams it announced.
    pub creation_timeout: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            idle_timeout: 4 * 60 * 60,
            creation_timeout: 30,
        }
    }
}

impl Default for Cri {
    fn default() -> Self {
        Self {
            default_runtime: "rung".into(),
            runtimes: BTreeMap::from([("rung".to_owned(), RuntimeHandler::default())]),
            cgroup_driver: CgroupDriver::Cgroupfs,
            unset_seccomp_profile: "unconfined".into(),
            unprivileged_ports: true,
            unprivileged_icmp: true,
            restore_checkpoints: false,
            selinux: false,
            selinux_category_range: 1024,
            disable_apparmor: false,
            ignore_image_defined_volumes: false,
            device_ownership_from_security_context: false,
            restrict_oom_score_adj: false,
            blockio_config: PathBuf::new(),
            pinned_images: Vec::new(),
            max_log_line: 16 << 10,
            exec_drain: 5,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            hooks_dirs: Vec::new(),
            cni: Cni::default(),
            streaming: Streaming::default(),
            nri: Nri::default(),
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: PathBuf::new(),
            netns_dir: "/run/netns".into(),
            max_networks: 1,
            serially: false,
            ip_preference: IpPreference::Ipv4,
            conf_template: PathBuf::new(),
            collect: false,
            timeout: 60,
        }
    }
}

impl Cri {
    /// The handler called `name`, or the default one.
    ///
    /// # Errors
    /// `InvalidArgument` where there is none of that name.
    pub fn handler(&self, name: &str) -> Result<&RuntimeHandler> {
        let name = if name.is_empty() { &self.default_runtime } else { name };
        self.runtimes.get(name).ok_or_else(|| Error::invalid(format!("runtime_handler {name:?}: not configured")))
    }

    pub(super) fn check(&self) -> Result<()> {
        self.nri.check()?;
        if !(2..=1024).contains(&self.selinux_category_range) {
            return Err(Error::invalid("cri.selinux_category_range: must be between 2 and 1024"));
        }
        if self.max_log_line < MIN_LINE {
            return Err(Error::invalid(format!("cri.max_log_line: must be at least {MIN_LINE}")));
        }
        if !self.runtimes.contains_key(&self.default_runtime) {
            let name = &self.default_runtime;
            return Err(Error::invalid(format!("cri.default_runtime: {name:?} is not among cri.runtimes")));
        }
        for (name, handler) in &self.runtimes {
            let paths = [("base_runtime_spec", &handler.base_runtime_spec), ("cni_conf_dir", &handler.cni_conf_dir)];
            for (key, path) in paths {
                if !path.as_os_str().is_empty() && !path.is_absolute() {
                    let path = path.display();
                    return Err(Error::invalid(format!("cri.runtimes.{name}.{key}: {path}: path must be absolute")));
                }
            }
        }
        if let Some(dir) = self.hooks_dirs.iter().find(|dir| !dir.is_absolute()) {
            return Err(Error::invalid(format!("cri.hooks_dirs: {}: path must be absolute", dir.display())));
        }
        let cni = &self.cni;
        let mut dirs = vec![("conf_dir", &cni.conf_dir), ("netns_dir", &cni.netns_dir)];
        if !cni.cache_dir.as_os_str().is_empty() {
            dirs.push(("cache_dir", &cni.cache_dir));
        }
        for (key, dir) in dirs.into_iter().chain(cni.bin_dirs.iter().map(|dir| ("bin_dirs", dir))) {
            if !dir.is_absolute() {
                return Err(Error::invalid(format!("cri.cni.{key}: {}: path must be absolute", dir.display())));
            }
        }
        Ok(())
    }
}
