//! `gantry stats`: what containers use, again and again.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use gantry_proto::any;
use gantry_proto::containerd::types::Metric;
use gantry_proto::gantry::engine::v1::Container;
use gantry_proto::io::containerd::cgroups::{v1, v2};

use super::Context;
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::{binary_size, decimal_size};
use crate::output::listing::{Column, Listing};

/// `gantry stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show those that do not run too
    #[arg(long, short)]
    all: bool,
    /// Show once and leave
    #[arg(long)]
    no_stream: bool,
    /// Cut nothing short
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a template such as '{{.Name}}: {{.CPUPerc}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or ids of containers; all that run unless given
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const COLUMNS: &[Column] = &[
    ("BlockIO", "BLOCK I/O"),
    ("CPUPerc", "CPU %"),
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("MemPerc", "MEM %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("Name", "NAME"),
    ("NetIO", "NET I/O"),
    ("PIDs", "PIDS"),
];
const SHOWN: &[&str] = &["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];
/// Between two looks; a share of the processor is what was used in between.
const INTERVAL: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its first line.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Counters at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counters {
    cpu_nanoseconds: u64,
    memory: u64,
    limit: u64,
    network: Option<(u64, u64)>,
    block: (u64, u64),
    pids: u64,
}

/// One look at all containers.
struct Look {
    at: Instant,
    counters: Vec<(String, Counters)>,
}

impl Look {
    fn of(&self, id: &str) -> Option<&Counters> {
        self.counters.iter().find(|(other, _)| other == id).map(|(_, counters)| counters)
    }
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let machine = client.info().await?.memory;
        let mut wanted = Vec::new();
        for name in &self.containers {
            wanted.push(client.container_id(name).await?);
        }
        let redraw = !self.no_stream && self.format.is_none() && std::io::stdout().is_terminal();
        let mut before = look(&mut client, &wanted).await?;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = look(&mut client, &wanted).await?;
            let mut containers = client.list(self.all || !wanted.is_empty()).await?;
            containers.sort_by(|one, other| one.id.cmp(&other.id));
            let mut listing = Listing::new(COLUMNS);
            for Container { id, name, .. } in &containers {
                match now.of(id) {
                    Some(counters) => {
                        let earlier = before.of(id).map_or(counters.cpu_nanoseconds, |it| it.cpu_nanoseconds);
                        let used = counters.cpu_nanoseconds.saturating_sub(earlier);
                        listing.row(self.row(id, name, counters, share(used, now.at - before.at), machine));
                    }
                    None if self.all || wanted.contains(id) => {
                        listing.row(self.row(id, name, &Counters::default(), 0.0, 0));
                    }
                    None => {}
                }
            }
            if redraw {
                output::bytes(CLEAR)?;
            }
            listing.print(self.format.as_deref(), SHOWN)?;
            if self.no_stream {
                return Ok(Code::SUCCESS);
            }
            before = now;
        }
    }

    fn row(&self, id: &str, name: &str, counters: &Counters, cpu: f64, machine: u64) -> Vec<String> {
        let limit = if counters.limit == 0 || counters.limit > machine { machine } else { counters.limit };
        let pair = |(one, other): (u64, u64)| format!("{} / {}", decimal_size(one), decimal_size(other));
        let short: String = if self.no_trunc { id.to_owned() } else { id.chars().take(12).collect() };
        vec![
            pair(counters.block),
            format!("{cpu:.2}%"),
            name.to_owned(),
            short,
            format!("{:.2}%", percent(counters.memory, limit)),
            format!("{} / {}", binary_size(counters.memory), binary_size(limit)),
            name.to_owned(),
            counters.network.map_or_else(|| "--".to_owned(), pair),
            counters.pids.to_string(),
        ]
    }
}

async fn look(client: &mut Client, wanted: &[String]) -> Result<Look> {
    let metrics = client.metrics(wanted).await?;
    let at = Instant::now();
    Ok(Look { at, counters: metrics.iter().map(counters).collect::<Result<Vec<_>>>()? })
}

#[allow(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// Percent of one processor.
fn share(nanoseconds: u64, elapsed: Duration) -> f64 {
    percent(nanoseconds, u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

fn counters(metric: &Metric) -> Result<(String, Counters)> {
    let failed = |cause: String| Failure::new(format!("counters of {}: {cause}", metric.id));
    let data = metric.data.as_ref().ok_or_else(|| failed("gantryd gave none".to_owned()))?;
    let counters = if any::is::<v1::Metrics>(data) {
        legacy(&any::unpack(data).map_err(|error| failed(error.to_string()))?)
    } else {
        unified(&any::unpack(data).map_err(|error| failed(error.to_string()))?)
    };
    Ok((metric.id.clone(), counters))
}

/// Pages that the kernel gives up first are not counted as used.
fn legacy(metrics: &v1::Metrics) -> Counters {
    let memory = metrics.memory.as_ref();
    let usage = memory.and_then(|memory| memory.usage.as_ref());
    let block = |op: &str| {
        let entries = metrics.blkio.iter().flat_map(|blkio| &blkio.io_service_bytes_recursive);
        entries.filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum()
    };
    let network = metrics.network.iter().map(|link| (link.rx_bytes, link.tx_bytes));
    Counters {
        cpu_nanoseconds: metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()).map_or(0, |usage| usage.total),
        memory: usage
            .map_or(0, |usage| usage.usage)
            .saturating_sub(memory.map_or(0, |memory| memory.total_inactive_file)),
        limit: usage.map_or(0, |usage| usage.limit),
        network: network.reduce(|sum, link| (sum.0 + link.0, sum.1 + link.1)),
        block: (block("read"), block("write")),
        pids: metrics.pids.as_ref().map_or(0, |pids| pids.current),
    }
}

fn unified(metrics: &v2::Metrics) -> Counters {
    let memory = metrics.memory.as_ref();
    let devices = || metrics.io.iter().flat_map(|io| &io.usage);
    let network = metrics.network.iter().map(|link| (link.rx_bytes, link.tx_bytes));
    Counters {
        cpu_nanoseconds: metrics.cpu.as_ref().map_or(0, |cpu| cpu.usage_usec.saturating_mul(1000)),
        memory: memory.map_or(0, |memory| memory.usage.saturating_sub(memory.inactive_file)),
        limit: memory.map_or(0, |memory| memory.usage_limit),
        network: network.reduce(|sum, link| (sum.0 + link.0, sum.1 + link.1)),
        block: (devices().map(|device| device.rbytes).sum(), devices().map(|device| device.wbytes).sum()),
        pids: metrics.pids.as_ref().map_or(0, |pids| pids.current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cgroup_versions_are_understood() {
        let v2 = v2::Metrics {
            cpu: Some(v2::CpuStat { usage_usec: 5, ..Default::default() }),
            memory: Some(v2::MemoryStat { usage: 100, inactive_file: 30, usage_limit: 200, ..Default::default() }),
            ..Default::default()
        };
        let metric = Metric { id: "a".into(), data: Some(any::pack(&v2)), ..Default::default() };
        let expected = Counters { cpu_nanoseconds: 5000, memory: 70, limit: 200, ..Counters::default() };
        assert_eq!(counters(&metric).unwrap(), ("a".to_owned(), expected.clone()));
        let usage = v1::MemoryEntry { usage: 100, limit: 200, ..Default::default() };
        let v1 = v1::Metrics {
            cpu: Some(v1::CpuStat {
                usage: Some(v1::CpuUsage { total: 5000, ..Default::default() }),
                ..Default::default()
            }),
            memory: Some(v1::MemoryStat { usage: Some(usage), total_inactive_file: 30, ..Default::default() }),
            ..Default::default()
        };
        let metric = Metric { id: "a".into(), data: Some(any::pack(&v1)), ..Default::default() };
        assert_eq!(counters(&metric).unwrap().1, expected);
        assert!(counters(&Metric::default()).is_err());
    }

    #[test]
    fn shares() {
        assert!((share(500_000_000, Duration::from_secs(1)) - 50.0).abs() < 1e-9);
        assert!((percent(1, 0) - 0.0).abs() < 1e-9);
    }
}
