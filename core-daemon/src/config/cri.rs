//! The part of the configuration that is about Kubernetes' container runtime interface.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use gantry_proto::stdio::MIN_LINE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Annotation, Nri, Workload};
use crate::error::{Error, Result};

/// Most seconds for which a container goes on that is to be ended.
const LONGEST_DELAY: u64 = 3600;

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
    /// Every container's root file system is read-only, with memory of its own at `/run`, `/tmp` and `/var/tmp`.
    pub read_only: bool,
    /// Time zone of containers: `Local` for the machine's, or a name such as `Europe/Berlin`; empty: the image's.
    pub timezone: String,
    /// Paths of the kubelet's mounts that are not made a directory where there is nothing: the container is refused.
    pub absent_mount_sources_to_reject: Vec<PathBuf>,
    /// Directory below which the kubelet's paths of mounts lie, for a daemon that sees the machine's files there; empty: none.
    pub bind_mount_prefix: PathBuf,
    /// The kubelet's directory, in whose volumes pods may have their logs shown by annotation.
    pub kubelet_dir: PathBuf,
    /// Devices that a pod may ask for by annotation, where its handler or its workload allows the annotation.
    pub allowed_devices: Vec<PathBuf>,
    /// User whose ids in `/etc/subuid` and `/etc/subgid` are those of pods that ask for users of their own by annotation.
    pub userns_owner: String,
    /// Seconds after a container's first use of a forbidden system call until it is ended, where its pod wants that by annotation,
    /// at most an hour; each other forbidden one that it uses begins them anew, until a minute has passed since the first one,
    /// or these seconds where they are more.
    pub seccomp_stop_delay: u64,
    /// Kinds of pods by name, each with limits of processors and allowed annotations.
    pub workloads: BTreeMap<String, Workload>,
    /// Images that the kubelet is told not to remove.
    pub pinned_images: Vec<String>,
    /// What containers write goes to systemd's journal too, beside their logs.
    pub log_to_journald: bool,
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
    /// Annotations of CRI-O, such as `devices.crio.io`, by which a pod may ask for what Kubernetes has no field for. Whoever may
    /// make pods may use them.
    pub allowed_annotations: Vec<String>,
    /// Least memory limit of a container or pod in bytes; 0: any.
    pub container_min_memory: u64,
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
            read_only: false,
            timezone: String::new(),
            absent_mount_sources_to_reject: Vec::new(),
            bind_mount_prefix: PathBuf::new(),
            kubelet_dir: "/var/lib/kubelet".into(),
            allowed_devices: vec!["/dev/fuse".into(), "/dev/net/tun".into()],
            userns_owner: "containers".into(),
            seccomp_stop_delay: 5,
            workloads: BTreeMap::new(),
            pinned_images: Vec::new(),
            log_to_journald: false,
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
            let field = format!("cri.runtimes.{name}.allowed_annotations");
            Annotation::allowed(&handler.allowed_annotations)
                .map_err(|error| Error::invalid(format!("{field}: {error}")))?;
        }
        self.check_workloads()?;
        if self.seccomp_stop_delay > LONGEST_DELAY {
            return Err(Error::invalid(format!("cri.seccomp_stop_delay: must be at most {LONGEST_DELAY}")));
        }
        self.check_paths()?;
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

    fn check_workloads(&self) -> Result<()> {
        let mut active = BTreeMap::new();
        for (name, workload) in &self.workloads {
            workload.check(&format!("cri.workloads.{name}"))?;
            if let Some(other) = active.insert(&workload.activation_annotation, name) {
                let annotation = &workload.activation_annotation;
                let both = format!("cri.workloads.{other} and cri.workloads.{name}");
                return Err(Error::invalid(format!(
                    "{both}: activation_annotation: {annotation:?} would make a pod of both kinds"
                )));
            }
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<()> {
        let absolute = |field: &str, path: &Path| match path.is_absolute() {
            true => Ok(()),
            false => Err(Error::invalid(format!("cri.{field}: {}: path must be absolute", path.display()))),
        };
        if !self.bind_mount_prefix.as_os_str().is_empty() {
            absolute("bind_mount_prefix", &self.bind_mount_prefix)?;
        }
        absolute("kubelet_dir", &self.kubelet_dir)?;
        for path in &self.absent_mount_sources_to_reject {
            absolute("absent_mount_sources_to_reject", path)?;
        }
        for path in &self.allowed_devices {
            absolute("allowed_devices", path)?;
        }
        let plain = |part| matches!(part, Component::Normal(_));
        match Path::new(&self.timezone).components().all(plain) && !self.timezone.contains('\0') {
            true => Ok(()),
            false => Err(Error::invalid(format!("cri.timezone: {:?} is not the name of a time zone", self.timezone))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_makes_a_pod_of_one_kind() {
        let of = |annotation: &str| Workload { activation_annotation: annotation.to_owned(), ..Workload::default() };
        let check = |other: &str| {
            let workloads = [("a".to_owned(), of("kept.example.org")), ("b".to_owned(), of(other))];
            Cri { workloads: workloads.into(), ..Cri::default() }.check()
        };
        assert!(check("other.example.org").is_ok());
        let error = check("kept.example.org").expect_err("of both").to_string();
        assert!(error.contains("cri.workloads.a and cri.workloads.b: activation_annotation"), "{error}");
    }
}
