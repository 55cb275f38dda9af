//! `gantry update` and `gantry rename`: what can change of a container that is there.

use gantry_proto::gantry::engine::v1 as api;

use super::limits::Limits;
use super::{Context, each};
use crate::error::{Failure, Result};
use crate::exit::Code;

/// `gantry update`.
#[derive(Debug, clap::Args)]
pub struct Update {
    #[command(flatten)]
    limits: Limits,
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
        let (limits, sets) = (self.limits.numbers(), self.limits.sets());
        if limits == api::Limits::default() && sets == Default::default() && self.restart.is_none() {
            return Err(Failure::new("update: nothing to change").hint("name a limit, such as --memory 64m"));
        }
        let wanted = api::UpdateRequest {
            r#ref: String::new(),
            limits: Some(limits),
            restart: self.restart.unwrap_or_default(),
            cpuset_cpus: sets.0,
            cpuset_mems: sets.1,
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
