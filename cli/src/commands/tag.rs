//! `gantry tag`: one more name for an image.

use rung_spec::reference::Reference;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;

/// `gantry tag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id of the image
    #[arg(value_name = "SOURCE_IMAGE")]
    source: String,
    /// Name to give it
    #[arg(value_name = "TARGET_IMAGE")]
    target: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let target = Reference::parse(&self.target).map_err(|error| Failure::new(error.to_string()))?;
        if target.digest.is_some() {
            return Err(Failure::new(format!("tag {}: a name to give cannot have a digest", self.target)));
        }
        let mut client = context.connect().await?;
        let source = full_name(&mut client, &self.source).await?;
        client.tag(&source, &target.to_string()).await?;
        Ok(Code::SUCCESS)
    }
}

/// The name under which the image is recorded: an id stands for any of its names.
async fn full_name(client: &mut crate::client::Client, source: &str) -> Result<String> {
    // The list has the names as people write them; records have them in full.
    let full = |name: &str| Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.to_string());
    let images = client.images().await?;
    let named = images.iter().map(|image| full(&image.name)).find(|name| *name == full(source));
    // What is for other machines has a name, too, and no more.
    if let Some(name) = named {
        return Ok(name);
    }
    let details = client.inspect_image(source).await?;
    let id = details.get("Id").and_then(serde_json::Value::as_str).unwrap_or_default();
    let same = images.iter().find(|image| image.id == id).map(|image| full(&image.name));
    same.ok_or_else(|| Failure::new(format!("tag {source}: no such image")))
}
