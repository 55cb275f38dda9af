//! `gantry registry explain` and `gantry image referrers`: what registries say.

use gantry_proto::gantry::images::v1 as api;

use super::Context;
use super::options::Registry;
use crate::error::Result;
use crate::exit::Code;
use crate::output;
use crate::output::human::decimal_size;
use crate::output::table::Table;

/// `gantry registry explain`.
#[derive(Debug, clap::Args)]
pub struct Explain {
    #[command(flatten)]
    registry: Registry,
    /// Name of an image
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// `gantry image referrers`.
#[derive(Debug, clap::Args)]
pub struct Referrers {
    /// Only artifacts of this type
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
    #[command(flatten)]
    registry: Registry,
    /// Name of the image
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl Explain {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let registry = Some(self.registry.options(&self.image).await?);
        let request = api::ExplainRequest { image: self.image, registry };
        let hosts = context.connect().await?.explain(request).await?;
        let mut table = Table::new(&["HOST", "ROLE", "USED FOR", "ACCOUNT", "ANSWER"]);
        let mut found = false;
        for host in hosts {
            let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
            found |= !host.digest.is_empty();
            table.row(vec![
                host.url,
                if host.mirror { "mirror" } else { "registry" }.to_owned(),
                host.capabilities.join(","),
                or_none(host.account),
                if host.digest.is_empty() { host.error } else { host.digest },
            ]);
        }
        output::bytes(table.render().as_bytes())?;
        Ok(if found { Code::SUCCESS } else { Code::FAILURE })
    }
}

impl Referrers {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let registry = Some(self.registry.options(&self.image).await?);
        let artifact_type = self.artifact_type.unwrap_or_default();
        let request = api::ReferrersRequest { image: self.image, artifact_type, registry };
        let answer = context.connect().await?.referrers(request).await?;
        let mut table = Table::new(&["DIGEST", "ARTIFACT TYPE", "SIZE"]);
        for referrer in answer.referrers {
            table.row(vec![referrer.digest, referrer.artifact_type, decimal_size(referrer.size)]);
        }
        output::bytes(table.render().as_bytes())?;
        Ok(Code::SUCCESS)
    }
}
