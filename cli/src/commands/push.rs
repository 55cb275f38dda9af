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
    /// Push all images of the repository
    #[arg(long, short)]
    all_tags: bool,
    #[command(flatten)]
    registry: Registry,
    /// Name of the image, which says where it goes
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        if !self.all_tags {
            return self.push(context, &self.image).await;
        }
        let wrong = |problem: &dyn std::fmt::Display| Failure::new(format!("push {}: {problem}", self.image));
        let wanted = Reference::parse(&self.image).map_err(|error| wrong(&error))?;
        if self.image.ends_with(wanted.object()) {
            return Err(wrong(&"a tag cannot be given with --all-tags"));
        }
        let images = context.connect().await?.images().await?;
        let is_wanted = |name: &Reference| name.name() == wanted.name() && name.tag.is_some() && name.digest.is_none();
        let names = images.iter().filter_map(|image| Reference::parse(&image.name).ok()).filter(is_wanted);
        let mut names: Vec<String> = names.map(|name| name.familiar()).collect();
        names.sort();
        if names.is_empty() {
            return Err(wrong(&"no image of this repository is here"));
        }
        for name in &names {
            self.push(context, name).await?;
        }
        Ok(Code::SUCCESS)
    }

    async fn push(&self, context: &Context, image: &str) -> Result<Code> {
        let registry = Some(self.registry.options(image).await?);
        let request = PushRequest {
            image: image.to_owned(),
            platform: self.platform.clone().unwrap_or_default(),
            registry,
            foreign: self.allow_nondistributable_artifacts,
        };
        let mut stream = context.connect().await?.push(request).await?;
        let mut report = Report::of_push(if self.quiet { To::Nowhere } else { To::Stdout });
        while let Some(progress) = stream.message().await? {
            if let Some(pushed) = report.update(progress)? {
                let name = Reference::parse(image).map_or_else(|_| image.to_owned(), |name| name.familiar());
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
