//! A container's limits: the kubelet's, with those of its pod's workload and annotations over them; and no limit of time, where
//! a pod with processors of its own wants none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;
use rung_sys::cgroupfs::{CgroupDir, Version, is_missing, version_at};
use rung_sys::sched::NumberSet;
use tokio::process::Command;

use super::pod::enough_memory;
use super::{CGROUPS, Granted};
use crate::blocking::blocking;
use crate::config::{Annotation, CgroupDriver, RuntimeHandler};
use crate::cri::stats::slice_path;
use crate::cri::{Container, Cri};
use crate::error::{Doing as _, Error, Kind, Result};

/// Weight of one processor, as kubelets count.
const WHOLE: i64 = 1024;
/// A limit of time that is none.
const UNLIMITED: i64 = -1;
/// What the paths of pods have in them that share processors.
const SHARING: [&str; 2] = ["burstable", "besteffort"];
/// How long systemd may take to change a slice.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cri {
    /// The limits of a container of a pod, where the kubelet says these; none where nobody says any.
    ///
    /// # Errors
    /// `InvalidArgument` naming the annotation, or the limit that is too low.
    pub(in crate::cri) fn limits_of(
        &self,
        pod: &SandboxRecord,
        container: &str,
        granted: &Granted,
        wanted: Option<&v1::LinuxContainerResources>,
    ) -> Result<Option<v1::LinuxContainerResources>> {
        enough_memory("config.linux.resources", self.config().handler(&pod.runtime_handler)?, wanted)?;
        self.limits_over(pod, container, granted, wanted)
    }

    fn limits_over(
        &self,
        pod: &SandboxRecord,
        container: &str,
        granted: &Granted,
        wanted: Option<&v1::LinuxContainerResources>,
    ) -> Result<Option<v1::LinuxContainerResources>> {
        let config = pod.config.clone().unwrap_or_default();
        let mut limits = wanted.cloned().unwrap_or_default();
        self.put_over_limits(&config.annotations, container, &mut limits)?;
        if granted.has_no_quota(container) && has_whole_processors(&config, &limits) {
            limits.cpu_quota = UNLIMITED;
        }
        Ok((wanted.is_some() || limits != v1::LinuxContainerResources::default()).then_some(limits))
    }

    /// The same of an update: what the kubelet wants now, over what there was.
    ///
    /// # Errors
    /// As [`Cri::limits_of`].
    pub(in crate::cri) fn updated_limits_of(
        &self,
        container: &Container,
        wanted: &mut v1::LinuxContainerResources,
    ) -> Result<()> {
        let record = container.record();
        let pod = self.store().sandbox(&record.sandbox_id)?.record();
        let before = record.resources.clone().unwrap_or_default();
        for (new, old) in [(&mut wanted.cpu_period, before.cpu_period), (&mut wanted.cpu_shares, before.cpu_shares)] {
            if *new == 0 {
                *new = old;
            }
        }
        let handler = self.handler_of_pod(&pod);
        enough_memory("linux", &handler, Some(&*wanted))?;
        let granted = self.granted_time(&handler, &annotations(&pod))?;
        if let Some(limits) = self.limits_over(&pod, name_of(container).as_str(), &granted, Some(&*wanted))? {
            *wanted = limits;
        }
        Ok(())
    }

    /// The processors of a container that wants no interrupts on them, and has them for itself.
    pub(in crate::cri) fn processors_without_interrupts(&self, container: &Container) -> Option<NumberSet> {
        let record = container.record();
        let pod = self.store().sandbox(&record.sandbox_id).ok()?.record();
        let (config, limits) = (pod.config.as_ref()?, record.resources.as_ref()?);
        let settings = self.config();
        let handler = settings.handler(&pod.runtime_handler).ok()?;
        let wants = config
            .annotations
            .keys()
            .any(|key| Annotation::of_key(key).is_some_and(|key| key.annotation == Annotation::Interrupts));
        if !wants || !self.granted(handler, &config.annotations).ok()?.has_no_interrupts(&name_of(container)) {
            return None;
        }
        has_whole_processors(config, limits).then(|| NumberSet::parse(&limits.cpuset_cpus))?
    }

    /// Takes the limit of time away from the pod of a container that is to have none: otherwise it would have the pod's. The
    /// kubelet removes the pod's cgroup, and makes another for another pod.
    ///
    /// # Errors
    /// What the kernel or systemd says.
    pub(in crate::cri) async fn unlimit_pod(&self, container: &Container, pod: &SandboxRecord) -> Result<()> {
        let (record, name) = (container.record(), name_of(container));
        if record.resources.as_ref().is_none_or(|limits| limits.cpu_quota != UNLIMITED) {
            return Ok(());
        }
        let granted = self.granted_time(&self.handler_of_pod(pod), &annotations(pod))?;
        if !granted.has_no_quota(&name) {
            return Ok(());
        }
        let linux = pod.config.as_ref().and_then(|pod| pod.linux.as_ref());
        let parent = linux.map_or("", |linux| linux.cgroup_parent.as_str()).to_owned();
        if parent.trim_matches('/').is_empty() {
            return Ok(());
        }
        let doing = || format!("annotation {}: cgroup {parent}", granted.key(Annotation::CpuQuota, &name));
        match self.config().cgroup_driver {
            CgroupDriver::Systemd => unlimit_slice(&parent).await.doing(doing),
            CgroupDriver::Cgroupfs => {
                let path = parent.clone();
                blocking(move || unlimit_cgroup(&path)).await.doing(doing)
            }
        }
    }

    /// The handler of a pod that is there; one that has gone from the configuration is as one of which nothing is said.
    fn handler_of_pod(&self, pod: &SandboxRecord) -> RuntimeHandler {
        self.config().handler(&pod.runtime_handler).cloned().unwrap_or_default()
    }
}

fn annotations(pod: &SandboxRecord) -> super::Annotations {
    pod.config.as_ref().map(|config| config.annotations.clone()).unwrap_or_default()
}

fn name_of(container: &Container) -> String {
    let record = container.record();
    let metadata = record.config.as_ref().and_then(|config| config.metadata.as_ref());
    metadata.map(|metadata| metadata.name.clone()).unwrap_or_default()
}

/// Whether a kubelet gives the container processors of its own: the pod shares none, and the container asks for whole ones.
fn has_whole_processors(pod: &v1::PodSandboxConfig, limits: &v1::LinuxContainerResources) -> bool {
    let parent = pod.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    !SHARING.iter().any(|word| parent.contains(word)) && limits.cpu_shares > 0 && limits.cpu_shares % WHOLE == 0
}

/// Writes to the kernel that a cgroup's time is not limited.
fn unlimit_cgroup(parent: &str) -> Result<()> {
    let (mount, file, value) = match version_at(Path::new(CGROUPS)) {
        Some(Version::V2) => (PathBuf::from(CGROUPS), "cpu.max", "max"),
        _ => (Path::new(CGROUPS).join("cpu"), "cpu.cfs_quota_us", "-1"),
    };
    let path = mount.join(slice_path(parent).trim_start_matches('/'));
    match CgroupDir::open(&path).and_then(|cgroup| cgroup.write(file, value)) {
        // Without a kubelet there may be no such cgroup yet, and what is made later has no limit.
        Err(error) if is_missing(&error) => Ok(()),
        written => Ok(written.map_err(std::io::Error::from)?),
    }
}

/// Tells systemd the same of a slice, which would write its own again otherwise.
async fn unlimit_slice(parent: &str) -> Result<()> {
    let slice = Path::new(parent).file_name().unwrap_or_default();
    let mut command = Command::new("systemctl");
    command.args(["set-property", "--runtime", "--"]).arg(slice).arg("CPUQuota=").kill_on_drop(true);
    let late =
        |_| Error::new(Kind::DeadlineExceeded, format!("systemd did not answer within {} s", PATIENCE.as_secs()));
    let output = tokio::time::timeout(PATIENCE, command.stdin(std::process::Stdio::null()).output());
    let output = output.await.map_err(late)?.doing(|| "run systemctl")?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::internal(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_with_processors_of_their_own_lose_their_limit() {
        let pod = |parent: &str| v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig { cgroup_parent: parent.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let limits = |cpu_shares| v1::LinuxContainerResources { cpu_shares, ..Default::default() };
        assert!(has_whole_processors(&pod("/kubepods/pod1"), &limits(2048)));
        assert!(has_whole_processors(&pod("kubepods-pod1.slice"), &limits(1024)));
        for (parent, shares) in [
            ("/kubepods/burstable/pod1", 1024),
            ("kubepods-besteffort-pod1.slice", 1024),
            ("/kubepods/pod1", 1500),
            ("/kubepods/pod1", 0),
        ] {
            assert!(!has_whole_processors(&pod(parent), &limits(shares)), "{parent} {shares}");
        }
    }
}
