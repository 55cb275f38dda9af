//! Wishes that few containers have. They change a configuration that is whole without them.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Mount, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Spec,
};

use super::{InvalidOptions, Network};
use crate::defaults::mounts::mount;
use crate::validate::Parameter;

/// Wishes beyond the usual ones. `Default` wishes nothing.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Limits of the process, each of which takes the place of a default one.
    pub ulimits: Vec<Ulimit>,
    /// Settings of the kernel, as far as they belong to a namespace of the container.
    pub sysctls: BTreeMap<String, String>,
    /// Nothing it executes gains privileges.
    pub no_new_privileges: bool,
    /// The filter of system calls in place of the default one; `Some(None)`: none.
    pub seccomp: Option<Option<LinuxSeccomp>>,
    /// Name of an AppArmor profile.
    pub apparmor: Option<String>,
    /// Nothing in `/proc` and `/sys` is hidden or made read-only.
    pub open_system_paths: bool,
    /// Bytes of `/dev/shm`; 0: the default.
    pub shm_size: i64,
    /// Namespaces that are the host's.
    pub host_namespaces: Vec<LinuxNamespaceType>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// How willingly the kernel ends it for want of memory.
    pub oom_score_adj: Option<i32>,
    /// Bytes of memory that are taken from it last; 0: none.
    pub memory_reservation: i64,
    /// Its share of processors; 0: the usual one.
    pub cpu_shares: i64,
    /// Its share of disks; 0: the usual one.
    pub blkio_weight: u16,
    /// How willingly its memory is swapped out, 0 to 100.
    pub memory_swappiness: Option<u32>,
    /// Processors it may use; empty: all.
    pub cpuset_cpus: String,
    /// Memory nodes it may use; empty: all.
    pub cpuset_mems: String,
    /// Devices that may be used beyond the usual ones; their nodes are among [`super::Options::devices`].
    pub device_rules: Vec<LinuxDeviceCgroup>,
}

/// A limit of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// The limit; -1: any.
    pub soft: i64,
    /// How far the process may raise it; -1: as far as it likes.
    pub hard: i64,
}

/// A file system in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub destination: String,
    /// Options of the mount.
    pub options: Vec<String>,
}

fn invalid(text: impl Into<String>) -> InvalidOptions {
    InvalidOptions::Extra(text.into())
}

impl Extras {
    pub(super) fn apply(&self, spec: &mut Spec, network: &Network) -> Result<(), InvalidOptions> {
        self.check_sysctls(network)?;
        if let Some(process) = spec.process_mut() {
            let mut limits = process.rlimits().clone().unwrap_or_default();
            for wish in &self.ulimits {
                let limit = wish.limit()?;
                limits.retain(|other| other.typ() != limit.typ());
                limits.push(limit);
            }
            process.set_rlimits(Some(limits)).set_no_new_privileges(Some(self.no_new_privileges));
            if let Some(profile) = &self.apparmor {
                process.set_apparmor_profile(Some(profile.clone()));
            }
            if let Some(score) = self.oom_score_adj {
                if !(-1000..=1000).contains(&score) {
                    return Err(invalid(format!("oom score {score}: must be between -1000 and 1000")));
                }
                process.set_oom_score_adj(Some(score));
            }
        }
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        self.mount(&mut mounts)?;
        spec.set_mounts(Some(mounts));
        self.join_host(spec);
        self.limit(spec)?;
        let Some(linux) = spec.linux_mut() else { return Ok(()) };
        if !self.sysctls.is_empty() {
            let mut all = linux.sysctl().clone().unwrap_or_default();
            all.extend(self.sysctls.iter().map(|(key, value)| (key.clone(), value.clone())));
            linux.set_sysctl(Some(all));
        }
        if self.open_system_paths {
            linux.set_masked_paths(None).set_readonly_paths(None);
        }
        if let Some(filter) = &self.seccomp {
            linux.set_seccomp(filter.clone());
        }
        Ok(())
    }

    /// Whether a setting would change the container alone.
    fn check_sysctls(&self, network: &Network) -> Result<(), InvalidOptions> {
        for key in self.sysctls.keys() {
            let whose = match Parameter::named(key).map(|it| it.namespace) {
                Ok(LinuxNamespaceType::Network) if *network == Network::Host => "the network",
                Ok(LinuxNamespaceType::Ipc) if self.host_namespaces.contains(&LinuxNamespaceType::Ipc) => {
                    "the ipc namespace"
                }
                Ok(LinuxNamespaceType::Network | LinuxNamespaceType::Ipc) => continue,
                _ => return Err(invalid(format!("sysctl {key}: is not one that a container can have for itself"))),
            };
            return Err(invalid(format!("sysctl {key}: is the host's, because {whose} is")));
        }
        Ok(())
    }

    fn mount(&self, mounts: &mut Vec<Mount>) -> Result<(), InvalidOptions> {
        let at = |mounts: &[Mount], path: &str| mounts.iter().position(|it| it.destination().as_os_str() == path);
        if self.shm_size < 0 {
            return Err(invalid("shm size: must not be negative"));
        }
        let shm = at(mounts, "/dev/shm").filter(|shm| mounts[*shm].typ().as_deref() == Some("tmpfs"));
        if let Some(shm) = shm.filter(|_| self.shm_size > 0) {
            let options = mounts[shm].options().clone().unwrap_or_default().into_iter();
            let mut options: Vec<String> = options.filter(|option| !option.starts_with("size=")).collect();
            options.push(format!("size={}", self.shm_size));
            mounts[shm].set_options(Some(options));
        }
        if self.host_namespaces.contains(&LinuxNamespaceType::Ipc) {
            // Queues come with the namespace.
            let path = "/dev/shm";
            if let Some(place) = at(mounts, path).filter(|it| mounts[*it].typ().as_deref() != Some("bind")) {
                mounts[place] = mount(path, "bind", path, vec!["rbind".to_owned(), "rprivate".to_owned()]);
            }
        }
        for wish in &self.tmpfs {
            let made = wish.mount()?;
            let path = made.destination().to_string_lossy().into_owned();
            match at(mounts, &path) {
                Some(place) if mounts[place].typ().as_deref() == Some("bind") => {
                    return Err(invalid(format!("tmpfs {path}: a bind has the same place in the container")));
                }
                Some(place) => mounts[place] = made,
                None => {
                    let inner = mounts.iter().position(|it| it.destination().starts_with(&path));
                    mounts.insert(inner.unwrap_or(mounts.len()), made);
                }
            }
        }
        Ok(())
    }

    fn join_host(&self, spec: &mut Spec) {
        if let Some(namespaces) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) {
            namespaces.retain(|namespace| !self.host_namespaces.contains(&namespace.typ()));
        }
        if self.host_namespaces.contains(&LinuxNamespaceType::Uts) {
            spec.set_hostname(None);
        }
    }

    fn limit(&self, spec: &mut Spec) -> Result<(), InvalidOptions> {
        let Some(resources) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) else {
            return Ok(());
        };
        reserve(resources, self.memory_reservation, self.cpu_shares)?;
        weigh(resources, self.blkio_weight);
        if let Some(swappiness) = self.memory_swappiness {
            if swappiness > 100 {
                return Err(InvalidOptions::Limit("memory swappiness: must be between 0 and 100"));
            }
            let mut memory = resources.memory().unwrap_or_default();
            memory.set_swappiness(Some(u64::from(swappiness)));
            resources.set_memory(Some(memory));
        }
        confine(resources, &self.cpuset_cpus, &self.cpuset_mems)?;
        if !self.device_rules.is_empty() {
            let mut rules = resources.devices().clone().unwrap_or_default();
            rules.extend(self.device_rules.iter().cloned());
            resources.set_devices(Some(rules));
        }
        Ok(())
    }
}

impl Ulimit {
    fn limit(&self) -> Result<PosixRlimit, InvalidOptions> {
        let name = &self.name;
        let kind: PosixRlimitType = format!("RLIMIT_{}", name.to_ascii_uppercase())
            .parse()
            .map_err(|_| invalid(format!("ulimit {name}: there is no such limit")))?;
        let amount = |number: i64| match number {
            -1 => Ok(u64::MAX),
            number => u64::try_from(number).map_err(|_| invalid(format!("ulimit {name}: {number} is not a limit"))),
        };
        let (soft, hard) = (amount(self.soft)?, amount(self.hard)?);
        if soft > hard {
            return Err(invalid(format!("ulimit {name}: the soft limit is above the hard one")));
        }
        let limit = PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard);
        Ok(limit.build().expect("each field of a limit has a default"))
    }
}

impl Tmpfs {
    fn mount(&self) -> Result<Mount, InvalidOptions> {
        let path = &self.destination;
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if !path.starts_with('/') || path.contains('\0') || parts.is_empty() || parts.contains(&"..") {
            return Err(invalid(format!("tmpfs {path:?}: is not an absolute path below the root without '..'")));
        }
        let asked = |option: &str| self.options.iter().any(|given| given == option);
        let mut options: Vec<String> = [("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev")]
            .into_iter()
            .filter(|(without, with)| !asked(with) && !asked(without))
            .map(|(without, _)| without.to_owned())
            .collect();
        options.extend(self.options.iter().cloned());
        Ok(mount(&format!("/{}", parts.join("/")), "tmpfs", "tmpfs", options))
    }
}

/// Sets which processors and memory nodes a container may use; an empty list leaves things as they are.
///
/// # Errors
/// Names the list that is none.
pub fn confine(resources: &mut LinuxResources, cpus: &str, mems: &str) -> Result<(), InvalidOptions> {
    for (text, what) in [(cpus, "cpuset cpus"), (mems, "cpuset mems")] {
        if !text.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte)) {
            return Err(invalid(format!("{what}: {text:?} is not a list such as 0-2,5")));
        }
    }
    let mut cpu = resources.cpu().clone().unwrap_or_default();
    if !cpus.is_empty() {
        cpu.set_cpus(Some(cpus.to_owned()));
    }
    if !mems.is_empty() {
        cpu.set_mems(Some(mems.to_owned()));
    }
    if !cpus.is_empty() || !mems.is_empty() {
        resources.set_cpu(Some(cpu));
    }
    Ok(())
}

/// Sets a container's share of disks; 0 leaves it as it is.
pub fn weigh(resources: &mut LinuxResources, weight: u16) {
    if weight > 0 {
        let mut io = resources.block_io().clone().unwrap_or_default();
        io.set_weight(Some(weight));
        resources.set_block_io(Some(io));
    }
}

/// Sets what is a container's where others want it too; 0 leaves things as they are.
///
/// # Errors
/// Names what cannot be.
pub fn reserve(resources: &mut LinuxResources, memory: i64, cpu_shares: i64) -> Result<(), InvalidOptions> {
    if memory < 0 || cpu_shares < 0 {
        return Err(InvalidOptions::Limit("memory reservation and cpu shares: must not be negative"));
    }
    let mut limits = resources.memory().unwrap_or_default();
    if memory > 0 {
        limits.set_reservation(Some(memory));
        resources.set_memory(Some(limits));
    }
    if let (Some(limit), Some(reservation)) = (limits.limit(), limits.reservation())
        && limit < reservation
    {
        return Err(InvalidOptions::Limit("memory reservation: must not be more than the memory limit"));
    }
    if cpu_shares > 0 {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        // The kernel takes no fewer.
        cpu.set_shares(u64::try_from(cpu_shares.max(2)).ok());
        resources.set_cpu(Some(cpu));
    }
    Ok(())
}
