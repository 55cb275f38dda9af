//! `gantry rm`: containers, gone.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill a running container first
    #[arg(long, short)]
    force: bool,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            client.clone().remove(&name, self.force).await?;
            Ok(name)
        })
        .await
    }
}
