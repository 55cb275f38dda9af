//! `gantry cp`: files of a container as a tar, out and in.

use std::io;

use gantry_proto::gantry::images::v1 as api;

use super::Context;
use super::archives::Output;
use crate::error::{Failure, Result};
use crate::exit::Code;

/// `gantry cp`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Copy what a link leads to instead of the link
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// CONTAINER:PATH, or - for a tar from standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// CONTAINER:PATH, or - for a tar to standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        match (place(&self.source), place(&self.destination)) {
            (Some((container, path)), None) if self.destination == "-" => {
                let mut client = context.connect().await?;
                let mut to = Output::new(None)?;
                let follow = self.follow_link;
                let request = api::CopyOutRequest { r#ref: container.to_owned(), path: path.to_owned(), follow };
                client.copy_out(request, &mut to).await?;
                to.finish()
            }
            (None, Some((container, path))) if self.source == "-" => {
                let options = api::CopyInOptions { r#ref: container.to_owned(), path: path.to_owned() };
                context.connect().await?.copy_in(options, io::stdin()).await?;
                Ok(Code::SUCCESS)
            }
            (Some(_), Some(_)) => Err(Failure::new("cp: copying between containers is not supported")
                .hint("pipe one into the other: gantry cp A:PATH - | gantry cp - B:PATH")),
            (None, None) => Err(Failure::new("cp: neither is a container's: write it as CONTAINER:PATH")),
            _ => Err(Failure::new("cp: files of this machine are not supported yet").hint(
                "use a tar: `gantry cp CONTAINER:PATH - | tar -x`, or `tar -c FILE | gantry cp - CONTAINER:PATH`",
            )),
        }
    }
}

/// A container and a path in it.
fn place(text: &str) -> Option<(&str, &str)> {
    let (container, path) = text.split_once(':')?;
    (!container.is_empty() && !container.starts_with(['.', '/'])).then_some((container, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_names_a_container() {
        assert_eq!(place("web:/etc"), Some(("web", "/etc")));
        for text in ["-", "./a:b", "/a:b", ":x", "plain"] {
            assert_eq!(place(text), None, "{text}");
        }
    }
}
