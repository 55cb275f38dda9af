//! The limits that `run`, `create` and `update` share.

use gantry_proto::gantry::engine::v1 as api;

use crate::parse::size;

/// What a container may use.
#[derive(Debug, Default, clap::Args)]
pub struct Limits {
    /// Most memory, such as 64m
    #[arg(long, short, value_name = "BYTES", value_parser = size::bytes)]
    memory: Option<i64>,
    /// Most memory and swap together; -1 for any swap
    #[arg(long, value_name = "BYTES", value_parser = size::bytes_or_any, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Memory that is taken from it last, such as 32m
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    memory_reservation: Option<i64>,
    /// Most processors, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = size::nano_cpus)]
    cpus: Option<i64>,
    /// Microseconds of processor time in each period; -1 for any
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// Share of processors beside other containers', 1024 being usual
    #[arg(long, short = 'c', value_name = "NUMBER")]
    cpu_shares: Option<i64>,
    /// Processors it may use, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use, such as 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most processes and threads; -1 for any number
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Share of disks beside other containers', 10 to 1000
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u32>,
}

impl Limits {
    /// The numbers, as the daemon takes them.
    pub(super) fn numbers(&self) -> api::Limits {
        api::Limits {
            memory: self.memory.unwrap_or(0),
            memory_swap: self.memory_swap.unwrap_or(0),
            memory_reservation: self.memory_reservation.unwrap_or(0),
            nano_cpus: self.cpus.unwrap_or(0),
            cpu_quota: self.cpu_quota.unwrap_or(0),
            cpu_period: self.cpu_period.unwrap_or(0),
            cpu_shares: self.cpu_shares.unwrap_or(0),
            pids: self.pids_limit.unwrap_or(0),
            blkio_weight: self.blkio_weight.unwrap_or(0),
        }
    }

    /// The processors and memory nodes; empty: all, or those it has.
    pub(super) fn sets(&self) -> (String, String) {
        (self.cpuset_cpus.clone().unwrap_or_default(), self.cpuset_mems.clone().unwrap_or_default())
    }
}
