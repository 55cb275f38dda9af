//! `gantry pull`: an image from its registry.

use gantry_proto::gantry::engine::v1::PullRequest;

use super::Context;
use super::options::{Registry, platform};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::progress::{Report, To};

/// `gantry pull`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Platform of the image: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Print only the image's name
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    registry: Registry,
    /// Name of the image
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let registry = Some(self.registry.options(&self.image).await?);
        let request = PullRequest { image: self.image, platform: self.platform.unwrap_or_default(), registry };
        let mut stream = context.connect().await?.pull(request).await?;
        let mut report = Report::new(if self.quiet { To::Nowhere } else { To::Stdout });
        while let Some(progress) = stream.message().await? {
            if let Some(pulled) = report.update(progress)? {
                output::line(pulled.image)?;
                return Ok(Code::SUCCESS);
            }
        }
        Err(Failure::new("pull: gantryd ended without an image"))
    }
}
