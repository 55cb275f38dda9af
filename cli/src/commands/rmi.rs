//! `gantry rmi`: image names, and what nothing else names.

use super::Context;
use crate::error::Result;
use crate::exit::Code;
use crate::output;

/// `gantry rmi`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove even where a stopped container uses the image
    #[arg(long, short)]
    force: bool,
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let mut code = Code::SUCCESS;
        for image in &self.images {
            match client.remove_image(image, self.force).await {
                Ok(removed) => {
                    for name in removed.untagged {
                        output::line(format!("Untagged: {name}"))?;
                    }
                    for digest in removed.deleted {
                        output::line(format!("Deleted: {digest}"))?;
                    }
                }
                Err(failure) => {
                    failure.print();
                    // What is not there is as gone as it shall be.
                    if !(self.force && failure.is_not_found()) {
                        code = Code::FAILURE;
                    }
                }
            }
        }
        Ok(code)
    }
}
