//! `gantry commit` and `gantry diff`: what a container has changed, as an image and as a list.

use gantry_proto::gantry::images::v1 as api;

use super::Context;
use crate::error::Result;
use crate::exit::Code;
use crate::output;

/// `gantry commit`.
#[derive(Debug, clap::Args)]
pub struct Commit {
    /// Who made it
    #[arg(long, short, value_name = "TEXT")]
    author: Option<String>,
    /// Change the configuration by an instruction of a Dockerfile
    #[arg(long, short, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A note for the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Stop its processes where they are while its files are read
    #[arg(long, short, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pause: bool,
    /// Let the container run while its files are read
    #[arg(long, overrides_with = "pause")]
    no_pause: bool,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

/// `gantry diff`.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Commit {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let request = api::CommitRequest {
            r#ref: self.container,
            name: self.name.unwrap_or_default(),
            author: self.author.unwrap_or_default(),
            message: self.message.unwrap_or_default(),
            changes: self.change,
            pause: self.pause && !self.no_pause,
        };
        output::line(context.connect().await?.commit(request).await?)?;
        Ok(Code::SUCCESS)
    }
}

impl Diff {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        for change in context.connect().await?.changes(&self.container).await? {
            let letter = match change.kind() {
                api::ChangeKind::Modified => 'C',
                api::ChangeKind::Added => 'A',
                api::ChangeKind::Deleted => 'D',
            };
            output::line(format!("{letter} {}", change.path))?;
        }
        Ok(Code::SUCCESS)
    }
}
