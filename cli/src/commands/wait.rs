//! `gantry wait`: until containers end.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        each(&self.containers, async |name| Ok(client.clone().wait(&name).await?.code.to_string())).await
    }
}
