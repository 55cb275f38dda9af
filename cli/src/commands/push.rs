//! `gantry push`: an image to its registry.

use gantry_proto::gantry::images::v1::PushRequest;
use rung_spec::reference::Reference;

use super::Context;
use super::options::{Registry, platform};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::progress::{Report, To};

/// `gantry push`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Push only the image for this platform: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Push layers that registries may not hand on, too
    #[arg(long)]
    allow_nondistributable_artifacts: bool,
    /// Print nothing but the image's name
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    registry: Registry,
    /// Name of the image, which says where it goes
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let registry = Some(self.registry.options(&self.image).await?);
        let request = PushRequest {
            image: self.image.clone(),
            platform: self.platform.unwrap_or_default(),
            registry,
            foreign: self.allow_nondistributable_artifacts,
        };
        let mut stream = context.connect().await?.push(request).await?;
        let mut report = Report::of_push(if self.quiet { To::Nowhere } else { To::Stdout });
        while let Some(progress) = stream.message().await? {
            if let Some(pushed) = report.update(progress)? {
                let name = Reference::parse(&self.image).map_or(self.image, |name| name.familiar());
                if self.quiet {
                    output::line(name)?;
                } else if !pushed.up_to_date {
                    output::line(format!("Note: not all of {name} is here, so only one image of it was pushed"))?;
                }
                return Ok(Code::SUCCESS);
            }
        }
        Err(Failure::new("push: gantryd ended without an answer"))
    }
}
