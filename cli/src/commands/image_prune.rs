//! `gantry image prune`: images that nobody needs.

use gantry_proto::gantry::images::v1::PruneRequest;

use super::Context;
use super::prune::{Which, confirmed};
use crate::client::Client;
use crate::error::Result;
use crate::exit::Code;
use crate::output;
use crate::output::human::decimal_size;

/// `gantry image prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove all images that no container is made of, not only those without a name
    #[arg(long, short)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Only images that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let request = Which::parse(&self.filter)?.images(self.all);
        let which = if self.all { "all images that no container is made of" } else { "all images without a name" };
        if !self.force && !confirmed(&format!("This will remove {which}."))? {
            return Ok(Code::SUCCESS);
        }
        let freed = prune(&mut context.connect().await?, request).await?;
        output::line(format!("Total reclaimed space: {}", decimal_size(freed)))?;
        Ok(Code::SUCCESS)
    }
}

/// Removes images, names them, and says how many bytes they took.
pub(super) async fn prune(client: &mut Client, request: PruneRequest) -> Result<u64> {
    let pruned = client.prune_images(request).await?;
    if !(pruned.untagged.is_empty() && pruned.deleted.is_empty()) {
        output::line("Deleted Images:")?;
        for name in &pruned.untagged {
            output::line(format!("untagged: {name}"))?;
        }
        for id in &pruned.deleted {
            output::line(format!("deleted: {id}"))?;
        }
        output::line("")?;
    }
    Ok(pruned.freed)
}
