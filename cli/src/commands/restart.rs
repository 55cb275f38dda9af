//! `gantry restart`: stop, then start.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds until the container is killed: 10 unless given
    #[arg(long, short = 't', visible_alias = "time", value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Signal to send first, instead of the container's own
    #[arg(long, short, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        let signal = self.signal.unwrap_or_default();
        each(&self.containers, async |name| {
            client.clone().restart(&name, self.timeout, &signal).await?;
            Ok(name)
        })
        .await
    }
}
