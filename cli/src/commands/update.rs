//! `gantry update` and `gantry rename`: what can change of a container that is there.

use gantry_proto::gantry::engine::v1 as api;

use super::{Context, each};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::parse::size;

/// `gantry update`.
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Most memory, such as 64m
    #[arg(long, short, value_name = "BYTES", value_parser = size::bytes)]
    memory: Option<i64>,
    /// Most memory and swap together; -1 for any swap
    #[arg(long, value_name = "BYTES", value_parser = size::bytes_or_any, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Most processors, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = size::nano_cpus)]
    cpus: Option<i64>,
    /// Most processes and threads; -1 for any number
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Memory that is taken from it last, such as 32m
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    memory_reservation: Option<i64>,
    /// Share of processors beside other containers', 1024 being usual
    #[arg(long, short = 'c', value_name = "NUMBER")]
    cpu_shares: Option<i64>,
    /// Processors it may use, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use, such as 0,1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// When to start it again: no, always, unless-stopped or on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// `gantry rename`.
#[derive(Debug, clap::Args)]
pub struct Rename {
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

impl Update {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let given =
            [self.memory, self.memory_swap, self.cpus, self.pids_limit, self.memory_reservation, self.cpu_shares];
        let named = [&self.restart, &self.cpuset_cpus, &self.cpuset_mems];
        if given.iter().all(Option::is_none) && named.iter().all(|text| text.is_none()) {
            return Err(Failure::new("update: nothing to change").hint("name a limit, such as --memory 64m"));
        }
        let limits = api::Limits {
            memory: self.memory.unwrap_or(0),
            memory_swap: self.memory_swap.unwrap_or(0),
            nano_cpus: self.cpus.unwrap_or(0),
            pids: self.pids_limit.unwrap_or(0),
            memory_reservation: self.memory_reservation.unwrap_or(0),
            cpu_shares: self.cpu_shares.unwrap_or(0),
        };
        let wanted = api::UpdateRequest {
            r#ref: String::new(),
            limits: Some(limits),
            restart: self.restart.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.unwrap_or_default(),
        };
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            client.clone().update(api::UpdateRequest { r#ref: name.clone(), ..wanted.clone() }).await?;
            Ok(name)
        })
        .await
    }
}

impl Rename {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        context.connect().await?.rename(&self.container, &self.name).await?;
        Ok(Code::SUCCESS)
    }
}
