//! The metrics that cAdvisor has names for, as this interface lists them.

use gantry_proto::runtime::v1::MetricDescriptor;

/// Labels that every metric has.
pub(super) const COMMON: &[&str] = &["pod", "namespace", "container", "id", "image"];

const INTERFACE: &[&str] = &["interface"];
const DEVICE: &[&str] = &["device"];
const NONE: &[&str] = &[];

/// A name, what it counts, and the labels it has besides the common ones.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// All of them, by name.
pub(super) const ALL: &[Row] = &[
    (
        "container_blkio_device_usage_total",
        "Bytes read from and written to block devices.",
        &["device", "major", "minor", "operation"],
    ),
    ("container_cpu_cfs_periods_total", "Periods in which the processor limit was enforced.", NONE),
    ("container_cpu_cfs_throttled_periods_total", "Periods in which the processor limit was reached.", NONE),
    ("container_cpu_cfs_throttled_seconds_total", "Time for which the container was throttled.", NONE),
    ("container_cpu_system_seconds_total", "Processor time used by the kernel.", NONE),
    ("container_cpu_usage_seconds_total", "Processor time used.", NONE),
    ("container_cpu_user_seconds_total", "Processor time used by the processes themselves.", NONE),
    ("container_file_descriptors", "Open file descriptors.", NONE),
    ("container_fs_inodes_free", "Free inodes of the file system.", DEVICE),
    ("container_fs_inodes_total", "Inodes of the file system.", DEVICE),
    ("container_fs_limit_bytes", "Size of the file system.", DEVICE),
    ("container_fs_reads_bytes_total", "Bytes read.", DEVICE),
    ("container_fs_reads_total", "Reads completed.", DEVICE),
    ("container_fs_usage_bytes", "Bytes that the container has written and that are still there.", DEVICE),
    ("container_fs_writes_bytes_total", "Bytes written.", DEVICE),
    ("container_fs_writes_total", "Writes completed.", DEVICE),
    ("container_hugetlb_max_usage_bytes", "Most memory in huge pages so far.", &["pagesize"]),
    ("container_hugetlb_usage_bytes", "Memory in huge pages.", &["pagesize"]),
    ("container_last_seen", "When the container was looked at, in seconds since 1970.", NONE),
    ("container_memory_cache", "Memory of the page cache.", NONE),
    ("container_memory_failcnt", "How often the memory limit was hit.", NONE),
    ("container_memory_failures_total", "Page faults.", &["failure_type", "scope"]),
    ("container_memory_kernel_usage", "Memory of the kernel.", NONE),
    ("container_memory_mapped_file", "Memory of mapped files.", NONE),
    ("container_memory_max_usage_bytes", "Most memory so far.", NONE),
    ("container_memory_rss", "Anonymous memory.", NONE),
    ("container_memory_swap", "Swap used.", NONE),
    ("container_memory_total_active_file_bytes", "Memory of file pages that were used lately.", NONE),
    ("container_memory_total_inactive_file_bytes", "Memory of file pages that were not used lately.", NONE),
    ("container_memory_usage_bytes", "Memory used, with everything that could be given back.", NONE),
    ("container_memory_working_set_bytes", "Memory used, without file pages that were not used lately.", NONE),
    ("container_network_receive_bytes_total", "Bytes received.", INTERFACE),
    ("container_network_receive_errors_total", "Errors while receiving.", INTERFACE),
    ("container_network_receive_packets_dropped_total", "Received packets that were dropped.", INTERFACE),
    ("container_network_receive_packets_total", "Packets received.", INTERFACE),
    ("container_network_transmit_bytes_total", "Bytes sent.", INTERFACE),
    ("container_network_transmit_errors_total", "Errors while sending.", INTERFACE),
    ("container_network_transmit_packets_dropped_total", "Packets dropped instead of sent.", INTERFACE),
    ("container_network_transmit_packets_total", "Packets sent.", INTERFACE),
    ("container_oom_events_total", "Processes killed for want of memory.", NONE),
    ("container_pressure_cpu_stalled_seconds_total", "Time in which all processes waited for a processor.", NONE),
    ("container_pressure_cpu_waiting_seconds_total", "Time in which some processes waited for a processor.", NONE),
    ("container_pressure_io_stalled_seconds_total", "Time in which all processes waited for a device.", NONE),
    ("container_pressure_io_waiting_seconds_total", "Time in which some processes waited for a device.", NONE),
    ("container_pressure_memory_stalled_seconds_total", "Time in which all processes waited for memory.", NONE),
    ("container_pressure_memory_waiting_seconds_total", "Time in which some processes waited for memory.", NONE),
    ("container_processes", "Processes.", NONE),
    ("container_sockets", "Open sockets.", NONE),
    ("container_spec_cpu_period", "Period of the processor limit, in microseconds.", NONE),
    ("container_spec_cpu_quota", "Processor limit in a period, in microseconds.", NONE),
    ("container_spec_cpu_shares", "Share of the processors.", NONE),
    ("container_spec_memory_limit_bytes", "Memory limit; 0: none.", NONE),
    ("container_spec_memory_reservation_limit_bytes", "Memory that is kept for the container; 0: none.", NONE),
    ("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0: none.", NONE),
    ("container_start_time_seconds", "When the container was started, in seconds since 1970.", NONE),
    ("container_threads", "Threads.", NONE),
    ("container_threads_max", "Most threads allowed; 0: any number.", NONE),
    ("container_ulimits_soft", "Soft limits of the first process.", &["ulimit"]),
];

/// All of them as the interface describes them.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let descriptor = |(name, help, extra): &Row| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: COMMON.iter().chain(*extra).map(|key| (*key).to_owned()).collect(),
    };
    ALL.iter().map(descriptor).collect()
}
