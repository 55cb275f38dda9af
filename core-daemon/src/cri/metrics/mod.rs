//! Metrics of pods and their containers, for kubelets that pass them on.

mod names;

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use gantry_proto::runtime::v1;

use super::runtime::{Answers, stream};
use super::stats::{Counters, Extent, Interface, Look, Pressure, Processes, open_files_limit};
use super::store::now;
use super::{Container, Cri, Sandbox};
use crate::blocking::blocking;
use crate::error::Result;

const NANOSECONDS: u64 = 1_000_000_000;
const MICROSECONDS: u64 = 1_000_000;

impl Cri {
    pub(super) async fn list_metric_descriptors(
        &self,
        _: v1::ListMetricDescriptorsRequest,
    ) -> Result<v1::ListMetricDescriptorsResponse> {
        Ok(v1::ListMetricDescriptorsResponse { descriptors: names::descriptors() })
    }

    pub(super) async fn list_pod_sandbox_metrics(
        &self,
        _: v1::ListPodSandboxMetricsRequest,
    ) -> Result<v1::ListPodSandboxMetricsResponse> {
        Ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.metrics_of_pods().await? })
    }

    pub(super) async fn stream_pod_sandbox_metrics(
        &self,
        _: v1::StreamPodSandboxMetricsRequest,
    ) -> Result<Answers<v1::StreamPodSandboxMetricsResponse>> {
        let metrics = self.metrics_of_pods().await?;
        Ok(stream(metrics, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn metrics_of_pods(&self) -> Result<Vec<v1::PodSandboxMetrics>> {
        let mut sandboxes = self.store().sandboxes();
        sandboxes.retain(|sandbox| sandbox.state() == v1::PodSandboxState::SandboxReady);
        let cri = self.clone();
        blocking(move || {
            let disk = Disk::at(&cri.snapshot_root());
            let networks = cri.interfaces_of(&sandboxes)?;
            let mut running = cri.running_containers();
            let metrics = |(sandbox, interfaces): (&Arc<Sandbox>, Vec<Interface>)| {
                let containers = running.remove(sandbox.id().as_str()).unwrap_or_default();
                cri.metrics_of_pod(sandbox, containers, &interfaces, &disk)
            };
            Ok(sandboxes.iter().zip(networks).map(metrics).collect())
        })
        .await
    }

    fn metrics_of_pod(
        &self,
        sandbox: &Sandbox,
        containers: Vec<Arc<Container>>,
        interfaces: &[Interface],
        disk: &Disk,
    ) -> v1::PodSandboxMetrics {
        let record = sandbox.record();
        let metadata = record.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        let labels = |container: &str, id: &str, image: &str| {
            [&metadata.name, &metadata.namespace, container, id, image].map(str::to_owned).to_vec()
        };
        let mut pod = Metrics::new(labels("", sandbox.id().as_str(), ""));
        interfaces.iter().for_each(|interface| network(&mut pod, interface));
        let container_metrics = self.looks(containers, Extent::Everything).into_iter().filter_map(|look| {
            let counters = look.counters.as_ref()?;
            let record = look.container.record();
            let config = record.config.clone().unwrap_or_default();
            let image = config.image.unwrap_or_default();
            let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
            let name = config.metadata.unwrap_or_default().name;
            let id = look.container.id().as_str();
            let mut metrics = Metrics::new(labels(&name, id, &image));
            cpu(&mut metrics, counters);
            memory(&mut metrics, counters);
            file_system(&mut metrics, counters, disk, look.space.map_or(0, |usage| usage.size));
            pressure(&mut metrics, counters);
            processes(&mut metrics, &look, self.processes_of(id));
            limits(&mut metrics, &record.resources.clone().unwrap_or_default());
            Some(v1::ContainerMetrics { container_id: id.to_owned(), metrics: metrics.all })
        });
        v1::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id().to_string(),
            container_metrics: container_metrics.collect(),
            metrics: pod.all,
        }
    }
}

/// Metrics of one container, or of a pod.
struct Metrics {
    at: i64,
    labels: Vec<String>,
    all: Vec<v1::Metric>,
}

impl Metrics {
    fn new(labels: Vec<String>) -> Self {
        Self { at: now(), labels, all: Vec::new() }
    }

    fn add(&mut self, kind: v1::MetricType, name: &str, extra: &[&str], value: u64) {
        let labels = self.labels.iter().cloned().chain(extra.iter().map(|label| (*label).to_owned()));
        self.all.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind.into(),
            label_values: labels.collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    fn counter(&mut self, name: &str, extra: &[&str], value: u64) {
        self.add(v1::MetricType::Counter, name, extra, value);
    }

    fn gauge(&mut self, name: &str, extra: &[&str], value: u64) {
        self.add(v1::MetricType::Gauge, name, extra, value);
    }
}

fn cpu(metrics: &mut Metrics, counters: &Counters) {
    let cpu = &counters.cpu;
    metrics.counter("container_cpu_usage_seconds_total", &[], cpu.usage / NANOSECONDS);
    metrics.counter("container_cpu_user_seconds_total", &[], cpu.user / NANOSECONDS);
    metrics.counter("container_cpu_system_seconds_total", &[], cpu.system / NANOSECONDS);
    metrics.counter("container_cpu_cfs_periods_total", &[], cpu.periods);
    metrics.counter("container_cpu_cfs_throttled_periods_total", &[], cpu.throttled_periods);
    metrics.counter("container_cpu_cfs_throttled_seconds_total", &[], cpu.throttled / NANOSECONDS);
}

fn memory(metrics: &mut Metrics, counters: &Counters) {
    let memory = &counters.memory;
    metrics.gauge("container_memory_cache", &[], memory.cache);
    metrics.gauge("container_memory_rss", &[], memory.anonymous);
    metrics.gauge("container_memory_kernel_usage", &[], memory.kernel);
    metrics.gauge("container_memory_mapped_file", &[], memory.mapped_file);
    metrics.gauge("container_memory_swap", &[], memory.swap.unwrap_or(0));
    metrics.gauge("container_memory_usage_bytes", &[], memory.usage);
    metrics.gauge("container_memory_max_usage_bytes", &[], memory.max_usage);
    metrics.gauge("container_memory_working_set_bytes", &[], memory.working_set());
    metrics.gauge("container_memory_total_active_file_bytes", &[], memory.active_file);
    metrics.gauge("container_memory_total_inactive_file_bytes", &[], memory.inactive_file);
    metrics.counter("container_memory_failcnt", &[], memory.limit_hits);
    metrics.counter("container_oom_events_total", &[], memory.oom_kills);
    for scope in ["container", "hierarchy"] {
        metrics.counter("container_memory_failures_total", &["pgfault", scope], memory.faults);
        metrics.counter("container_memory_failures_total", &["pgmajfault", scope], memory.major_faults);
    }
    for pages in &counters.huge_pages {
        metrics.gauge("container_hugetlb_usage_bytes", &[&pages.size], pages.usage);
        metrics.gauge("container_hugetlb_max_usage_bytes", &[&pages.size], pages.max_usage);
    }
}

fn file_system(metrics: &mut Metrics, counters: &Counters, disk: &Disk, usage: u64) {
    metrics.gauge("container_fs_usage_bytes", &[&disk.device], usage);
    metrics.gauge("container_fs_limit_bytes", &[&disk.device], disk.size);
    metrics.gauge("container_fs_inodes_total", &[&disk.device], disk.inodes);
    metrics.gauge("container_fs_inodes_free", &[&disk.device], disk.free_inodes);
    for io in &counters.io {
        let device = device(io.major, io.minor);
        metrics.counter("container_fs_reads_bytes_total", &[&device], io.read_bytes);
        metrics.counter("container_fs_writes_bytes_total", &[&device], io.written_bytes);
        metrics.counter("container_fs_reads_total", &[&device], io.reads);
        metrics.counter("container_fs_writes_total", &[&device], io.writes);
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [device.as_str(), &major, &minor, operation];
            metrics.counter("container_blkio_device_usage_total", &labels, bytes);
        }
    }
}

fn pressure(metrics: &mut Metrics, counters: &Counters) {
    let mut of = |what: &str, pressure: Option<Pressure>| {
        let Some(Pressure { some, full }) = pressure else { return };
        let name = |how: &str| format!("container_pressure_{what}_{how}_seconds_total");
        metrics.counter(&name("waiting"), &[], some.total / MICROSECONDS);
        metrics.counter(&name("stalled"), &[], full.total / MICROSECONDS);
    };
    of("cpu", counters.cpu.pressure);
    of("memory", counters.memory.pressure);
    of("io", counters.io_pressure);
}

fn processes(metrics: &mut Metrics, look: &Look, processes: Processes) {
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds).unwrap_or(0) / NANOSECONDS;
    let counters = look.counters.as_ref();
    metrics.gauge("container_processes", &[], processes.count);
    metrics.gauge("container_file_descriptors", &[], processes.descriptors);
    metrics.gauge("container_sockets", &[], processes.sockets);
    // The kernel's limit on "pids" counts threads.
    metrics.gauge("container_threads", &[], counters.and_then(|counters| counters.processes).unwrap_or(0));
    metrics.gauge("container_threads_max", &[], counters.and_then(|counters| counters.processes_max).unwrap_or(0));
    let limit = look.container.task().ok().and_then(|task| open_files_limit(task.pid()));
    if let Some(limit) = limit {
        metrics.gauge("container_ulimits_soft", &["max_open_files"], limit);
    }
    metrics.gauge("container_last_seen", &[], seconds(look.at));
    metrics.gauge("container_start_time_seconds", &[], seconds(look.container.started_at()));
}

fn limits(metrics: &mut Metrics, resources: &v1::LinuxContainerResources) {
    let value = |limit: i64| u64::try_from(limit).unwrap_or(0);
    metrics.gauge("container_spec_cpu_period", &[], value(resources.cpu_period));
    metrics.gauge("container_spec_cpu_quota", &[], value(resources.cpu_quota));
    metrics.gauge("container_spec_cpu_shares", &[], value(resources.cpu_shares));
    metrics.gauge("container_spec_memory_limit_bytes", &[], value(resources.memory_limit_in_bytes));
    let kept = resources.unified.get("memory.min").or_else(|| resources.unified.get("memory.low"));
    let kept = kept.and_then(|text| text.parse().ok()).unwrap_or(0);
    metrics.gauge("container_spec_memory_reservation_limit_bytes", &[], kept);
    metrics.gauge("container_spec_memory_swap_limit_bytes", &[], value(resources.memory_swap_limit_in_bytes));
}

fn network(metrics: &mut Metrics, interface: &Interface) {
    for (way, direction) in [("receive", interface.received), ("transmit", interface.sent)] {
        let mut count = |what: &str, value: u64| {
            metrics.counter(&format!("container_network_{way}_{what}_total"), &[&interface.name], value);
        };
        count("bytes", direction.bytes);
        count("packets", direction.packets);
        count("errors", direction.errors);
        count("packets_dropped", direction.dropped);
    }
}

/// The file system that containers write to.
#[derive(Default)]
struct Disk {
    device: String,
    size: u64,
    inodes: u64,
    free_inodes: u64,
}

impl Disk {
    fn at(path: &str) -> Self {
        let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return Self::default() };
        let number = std::fs::metadata(path).map(|metadata| metadata.dev()).unwrap_or_default();
        let part = |part: u64| u32::try_from(part).unwrap_or(0);
        Self {
            device: device(part(nix::sys::stat::major(number)), part(nix::sys::stat::minor(number))),
            size: stat.blocks() * stat.fragment_size(),
            inodes: stat.files(),
            free_inodes: stat.files_free(),
        }
    }
}

/// The name of a block device; of a file system without one, its number.
fn device(major: u32, minor: u32) -> String {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_labels_that_its_description_says() {
        let mut metrics = Metrics::new(vec![String::new(); names::COMMON.len()]);
        let counters = Counters {
            io: vec![Default::default()],
            huge_pages: vec![Default::default()],
            io_pressure: Some(Pressure::default()),
            ..Counters::default()
        };
        cpu(&mut metrics, &counters);
        memory(&mut metrics, &counters);
        file_system(&mut metrics, &counters, &Disk::default(), 0);
        pressure(&mut metrics, &counters);
        limits(&mut metrics, &v1::LinuxContainerResources::default());
        network(
            &mut metrics,
            &Interface { name: "eth0".into(), received: Default::default(), sent: Default::default() },
        );
        for metric in &metrics.all {
            let row = names::ALL.iter().find(|(name, ..)| *name == metric.name);
            let (_, _, extra) = row.unwrap_or_else(|| panic!("{} is described", metric.name));
            assert_eq!(metric.label_values.len(), names::COMMON.len() + extra.len(), "{}", metric.name);
        }
    }
}
