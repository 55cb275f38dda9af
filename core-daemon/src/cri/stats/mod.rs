//! What containers and pods use: counters straight from the files of their cgroups, no shim is asked.
//!
//! Directories stay open between calls, rates come from the look before, and what takes a walk over a file system is
//! remembered ([`space`]).

mod cgroup;
mod convert;
mod network;
mod processes;
mod rates;
mod space;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gantry_proto::runtime::v1;

use cgroup::Cgroup;
pub(super) use cgroup::{Counters, Extent, Pressure};
pub(super) use network::Interface;
pub(super) use processes::{Processes, open_files_limit};
use rates::Rates;
use space::Space;

use super::runtime::{Answers, stream};
use super::store::now;
use super::{Container, Cri, Sandbox, selects};
use crate::blocking::blocking;
use crate::error::{Error, Result};

/// What is remembered between calls.
#[derive(Default)]
pub(super) struct Stats {
    cgroups: Mutex<HashMap<String, Arc<Cgroup>>>,
    rates: Rates,
    space: Space,
}

/// One look at a container.
pub(super) struct Look {
    pub(super) container: Arc<Container>,
    /// Nanoseconds since 1970.
    pub(super) at: i64,
    /// `None` for one that does not run.
    pub(super) counters: Option<Counters>,
    pub(super) space: Option<crate::snapshots::Usage>,
}

impl Cri {
    pub(super) async fn container_stats(
        &self,
        request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse> {
        let container = self.store().container(&request.container_id)?;
        let stats = self.stats_of_containers(vec![container]).await?.pop();
        Ok(v1::ContainerStatsResponse { stats })
    }

    pub(super) async fn list_container_stats(
        &self,
        request: v1::ListContainerStatsRequest,
    ) -> Result<v1::ListContainerStatsResponse> {
        Ok(v1::ListContainerStatsResponse { stats: self.containers_passing(request.filter).await? })
    }

    pub(super) async fn stream_container_stats(
        &self,
        request: v1::StreamContainerStatsRequest,
    ) -> Result<Answers<v1::StreamContainerStatsResponse>> {
        let stats = self.containers_passing(request.filter).await?;
        Ok(stream(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    pub(super) async fn pod_sandbox_stats(
        &self,
        request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse> {
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        if sandbox.state() != v1::PodSandboxState::SandboxReady {
            return Err(Error::unavailable(format!("statistics of sandbox {}: it is not ready", sandbox.id())));
        }
        let stats = self.stats_of_pods(vec![sandbox]).await?.pop();
        Ok(v1::PodSandboxStatsResponse { stats })
    }

    pub(super) async fn list_pod_sandbox_stats(
        &self,
        request: v1::ListPodSandboxStatsRequest,
    ) -> Result<v1::ListPodSandboxStatsResponse> {
        Ok(v1::ListPodSandboxStatsResponse { stats: self.pods_passing(request.filter).await? })
    }

    pub(super) async fn stream_pod_sandbox_stats(
        &self,
        request: v1::StreamPodSandboxStatsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxStatsResponse>> {
        let stats = self.pods_passing(request.filter).await?;
        Ok(stream(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn containers_passing(&self, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>> {
        let filter = filter.unwrap_or_default();
        let mut containers = self.store().containers();
        self.stats().forget_all_but(&containers, &self.store().sandboxes());
        containers.retain(|container| {
            let record = container.record();
            let labels = record.config.as_ref().map(|config| &config.labels);
            container.id().as_str().starts_with(&filter.id)
                && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
                && labels.is_none_or(|labels| selects(&filter.label_selector, labels))
        });
        self.stats_of_containers(containers).await
    }

    async fn pods_passing(&self, filter: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<v1::PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let mut sandboxes = self.store().sandboxes();
        sandboxes.retain(|sandbox| {
            let record = sandbox.record();
            let labels = record.config.as_ref().map(|config| &config.labels);
            sandbox.state() == v1::PodSandboxState::SandboxReady
                && sandbox.id().as_str().starts_with(&filter.id)
                && labels.is_none_or(|labels| selects(&filter.label_selector, labels))
        });
        self.stats_of_pods(sandboxes).await
    }

    async fn stats_of_containers(&self, containers: Vec<Arc<Container>>) -> Result<Vec<v1::ContainerStats>> {
        let cri = self.clone();
        blocking(move || {
            let root = cri.snapshot_root();
            let looks = cri.looks(containers, Extent::Use);
            Ok(looks.iter().map(|look| cri.container_message(look, &root)).collect())
        })
        .await
    }

    /// Looks at containers. It waits for the kernel.
    pub(super) fn looks(&self, containers: Vec<Arc<Container>>, extent: Extent) -> Vec<Look> {
        let look = |container: Arc<Container>| {
            let counters = container.task().ok().and_then(|task| {
                let open = || Cgroup::of(task.pid());
                self.stats().counters(container.id().as_str(), extent, open)
            });
            let space = self.writable_space(&container);
            Look { at: now(), counters, space, container }
        };
        containers.into_iter().map(look).collect()
    }

    /// The processes of a container that was looked at.
    pub(super) fn processes_of(&self, id: &str) -> Processes {
        let known = self.stats().cgroups.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        known.map(|cgroup| Processes::of(&cgroup)).unwrap_or_default()
    }

    fn container_message(&self, look: &Look, root: &str) -> v1::ContainerStats {
        let rate = look.counters.as_ref().map_or(0, |counters| {
            let begun = unsigned(look.container.started_at());
            self.stats().rates.rate(look.container.id().as_str(), unsigned(look.at), counters.cpu.usage, begun)
        });
        convert::container(look, rate, root)
    }

    async fn stats_of_pods(&self, sandboxes: Vec<Arc<Sandbox>>) -> Result<Vec<v1::PodSandboxStats>> {
        let cri = self.clone();
        blocking(move || {
            let (networks, root) = (cri.interfaces_of(&sandboxes)?, cri.snapshot_root());
            let mut containers = cri.containers_by_pod(|_| true);
            let message = |(sandbox, interfaces): (&Arc<Sandbox>, Vec<Interface>)| {
                let containers = containers.remove(sandbox.id().as_str()).unwrap_or_default();
                cri.pod_message(sandbox, containers, &interfaces, &root)
            };
            Ok(sandboxes.iter().zip(networks).map(message).collect())
        })
        .await
    }

    /// The interfaces of each sandbox that has a network of its own.
    pub(super) fn interfaces_of(&self, sandboxes: &[Arc<Sandbox>]) -> Result<Vec<Vec<Interface>>> {
        let paths: Vec<Option<PathBuf>> = sandboxes.iter().map(|sandbox| self.own_network(sandbox)).collect();
        let mut found = network::interfaces(paths.iter().flatten().cloned().collect())?.into_iter();
        Ok(paths.iter().map(|path| path.as_ref().and_then(|_| found.next()).unwrap_or_default()).collect())
    }

    /// The containers that run, by pod.
    pub(super) fn running_containers(&self) -> HashMap<String, Vec<Arc<Container>>> {
        self.containers_by_pod(|container| container.state() == v1::ContainerState::ContainerRunning)
    }

    fn containers_by_pod(&self, wanted: impl Fn(&Container) -> bool) -> HashMap<String, Vec<Arc<Container>>> {
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for container in self.store().containers().into_iter().filter(|container| wanted(container)) {
            pods.entry(container.record().sandbox_id.clone()).or_default().push(container);
        }
        pods
    }

    fn pod_message(
        &self,
        sandbox: &Sandbox,
        containers: Vec<Arc<Container>>,
        interfaces: &[Interface],
        root: &str,
    ) -> v1::PodSandboxStats {
        let looks = self.looks(containers, Extent::Use);
        let (at, record) = (now(), sandbox.record());
        let counters = self.pod_counters(sandbox, &looks);
        let rate = self.stats().rates.rate(
            sandbox.id().as_str(),
            unsigned(at),
            counters.cpu.usage,
            unsigned(record.created_at),
        );
        let containers: Vec<_> = looks.iter().map(|look| self.container_message(look, root)).collect();
        let processes = looks.iter().filter_map(|look| look.counters.as_ref()?.processes).sum();
        let network = self.own_network(sandbox).is_some().then_some(interfaces);
        convert::pod(sandbox, convert::Pod { at, counters, rate, containers, processes, network })
    }

    /// What the pod's own cgroup counts; without one, what its containers do.
    fn pod_counters(&self, sandbox: &Sandbox, looks: &[Look]) -> Counters {
        let record = sandbox.record();
        let linux = record.config.as_ref().and_then(|config| config.linux.as_ref());
        let parent = linux.map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        if !parent.trim_matches('/').is_empty()
            && let Some(counters) =
                self.stats().counters(sandbox.id().as_str(), Extent::Use, || Cgroup::at(&slice_path(parent)))
        {
            return counters;
        }
        looks.iter().filter_map(|look| look.counters.as_ref()).fold(Counters::default(), |all, one| all.and(one))
    }
}

impl Stats {
    /// The counters of a cgroup, which `open` finds the first time.
    fn counters(&self, id: &str, extent: Extent, open: impl FnOnce() -> Result<Cgroup>) -> Option<Counters> {
        let known = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let cgroup = match known {
            Some(cgroup) => cgroup,
            None => {
                let cgroup = Arc::new(open().ok()?);
                self.cgroups.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), cgroup.clone());
                cgroup
            }
        };
        match cgroup.read(extent) {
            Ok(counters) => Some(counters),
            Err(_) => {
                self.cgroups.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
                None
            }
        }
    }

    /// Lets go of what is remembered of a container or a sandbox that is removed.
    pub(super) fn forget(&self, id: &str) {
        self.cgroups.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.rates.keep(|known| known != id);
        self.space.keep(|known| known != id);
    }

    fn forget_all_but(&self, containers: &[Arc<Container>], sandboxes: &[Arc<Sandbox>]) {
        let ids = containers.iter().map(|it| it.id().as_str()).chain(sandboxes.iter().map(|it| it.id().as_str()));
        let ids: std::collections::HashSet<&str> = ids.collect();
        self.cgroups.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id.as_str()));
        self.rates.keep(|id| ids.contains(id));
        self.space.keep(|id| ids.contains(id));
    }
}

/// Time as it is counted here; before 1970 there were no containers.
fn unsigned(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0)
}

/// The directory of a slice of systemd, whose name spells its parents; other paths are what they say.
pub(in crate::cri) fn slice_path(parent: &str) -> String {
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return parent.to_owned();
    };
    let mut path = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push('/');
        path.push_str(&name[..end]);
        path.push_str(".slice");
    }
    path
}

/// The sizes of huge pages that this machine has, as cgroups spell them.
fn huge_page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| spell(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?)).collect()
    })
}

fn spell(kilobytes: u64) -> Option<String> {
    match kilobytes {
        0 => None,
        size if size % (1 << 20) == 0 => Some(format!("{}GB", size >> 20)),
        size if size % (1 << 10) == 0 => Some(format!("{}MB", size >> 10)),
        size => Some(format!("{size}KB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_below_those_its_name_spells() {
        assert_eq!(slice_path("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_path("/kubepods/pod1"), "/kubepods/pod1");
        assert_eq!(slice_path("/x.slice/a-b.slice"), "/x.slice/a-b.slice");
    }

    #[test]
    fn page_sizes_are_spelt_as_the_kernel_does() {
        assert_eq!(spell(2048).as_deref(), Some("2MB"));
        assert_eq!(spell(1 << 20).as_deref(), Some("1GB"));
        assert_eq!(spell(64).as_deref(), Some("64KB"));
    }
}
