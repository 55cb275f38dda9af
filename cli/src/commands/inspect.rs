//! `gantry inspect`: everything about containers or images, as docker's JSON.

use clap::ValueEnum;
use serde_json::Value;

use super::Context;
use super::ps::Sizes;
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::template::Template;

/// `gantry inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look only among these
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// Of containers, show how much their files take
    #[arg(long, short)]
    size: bool,
    #[command(flatten)]
    view: View,
}

/// `gantry container inspect`.
#[derive(Debug, clap::Args)]
pub struct ContainerArgs {
    /// Show how much their files take
    #[arg(long, short)]
    size: bool,
    #[command(flatten)]
    view: View,
}

/// `gantry image inspect`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    #[command(flatten)]
    view: View,
}

/// What is looked at, and how it is shown.
#[derive(Debug, clap::Args)]
struct View {
    /// json, or a template such as '{{.Id}}'
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// What a name may stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A container.
    Container,
    /// An image.
    Image,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        self.view.run(context, self.kind, self.size).await
    }
}

impl ContainerArgs {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        self.view.run(context, Some(Kind::Container), self.size).await
    }
}

impl ImageArgs {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        self.view.run(context, Some(Kind::Image), false).await
    }
}

impl View {
    async fn run(self, context: &Context, kind: Option<Kind>, size: bool) -> Result<Code> {
        let template =
            self.format.as_deref().filter(|format| !format.is_empty()).map(Template::of_format).transpose()?;
        let mut client = context.connect().await?;
        let mut code = Code::SUCCESS;
        let mut found = Vec::new();
        for name in &self.names {
            match look(&mut client, name, kind).await {
                Ok(value) => found.push(value),
                Err(failure) => {
                    failure.print();
                    code = Code::FAILURE;
                }
            }
        }
        if size && !found.is_empty() {
            let sizes = Sizes::of(&mut client, context).await?;
            found.iter_mut().for_each(|value| sizes.enter(value));
        }
        match template {
            None => output::line(output::json::pretty(&Value::Array(found)))?,
            Some(template) => {
                for value in &found {
                    output::line(template.render(value).map_err(Failure::new)?)?;
                }
            }
        }
        Ok(code)
    }
}

async fn look(client: &mut Client, name: &str, kind: Option<Kind>) -> Result<Value> {
    match kind {
        Some(Kind::Container) => client.inspect(name).await,
        Some(Kind::Image) => client.inspect_image(name).await,
        None => match client.inspect(name).await {
            Err(failure) if failure.is_not_found() => match client.inspect_image(name).await {
                Err(failure) if failure.is_not_found() => {
                    Err(Failure::new(format!("inspect {name}: no such container or image")))
                }
                other => other,
            },
            other => other,
        },
    }
}
