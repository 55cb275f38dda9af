//! `gantry pause` and `gantry unpause`: every process of a container, stopped where it is, and let go on.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry pause` and `gantry unpause`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn pause(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            let mut client = client.clone();
            let id = client.container_id(&name).await?;
            client.pause(id).await?;
            Ok(name)
        })
        .await
    }

    pub(super) async fn unpause(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            let mut client = client.clone();
            let id = client.container_id(&name).await?;
            client.resume(id).await?;
            Ok(name)
        })
        .await
    }
}
