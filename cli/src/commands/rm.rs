//! `gantry rm`: containers, gone.

use super::{Context, each_but};
use crate::error::Result;
use crate::exit::Code;

/// `gantry rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill a running container first
    #[arg(long, short)]
    force: bool,
    /// Taken for docker's sake: a container has no volumes without a name
    #[arg(long = "volumes", short = 'v')]
    _volumes: bool,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        let remove = async |name: String| {
            client.clone().remove(&name, self.force).await?;
            Ok(name)
        };
        // What is not there is as gone as it shall be.
        each_but(&self.containers, remove, |failure| self.force && failure.is_not_found()).await
    }
}
