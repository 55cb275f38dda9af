//! `gantry kill`: a signal, SIGKILL unless another is named.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry kill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal to send: a name or number
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            client.clone().kill(&name, &self.signal).await?;
            Ok(name)
        })
        .await
    }
}
