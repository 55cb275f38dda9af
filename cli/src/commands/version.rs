//! `gantry version`: ours and the daemon's.

use serde_json::json;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::template::Template;

/// `gantry version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a template such as '{{.Server.Version}}'
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let ours = json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "Os": std::env::consts::OS,
            "Arch": rung_spec::platform::Platform::host().architecture,
        });
        let server = match context.connect().await {
            Ok(mut client) => client.version().await,
            Err(failure) => Err(failure),
        };
        let theirs =
            server.as_ref().map(|server| json!({ "Version": server.version, "GitCommit": server.commit })).ok();
        if let Some(format) = &self.format {
            let template = Template::of_format(format)?;
            output::line(template.render(&json!({ "Client": ours, "Server": theirs })).map_err(Failure::new)?)?;
        } else {
            output::line(format!(
                "Client:\n Version:   {}\n OS/Arch:   {}/{}",
                text(&ours["Version"]),
                text(&ours["Os"]),
                text(&ours["Arch"])
            ))?;
            if let Some(theirs) = &theirs {
                output::line(format!("\nServer:\n Version:   {}", text(&theirs["Version"])))?;
                if !text(&theirs["GitCommit"]).is_empty() {
                    output::line(format!(" Commit:    {}", text(&theirs["GitCommit"])))?;
                }
            }
        }
        server.map(|_| Code::SUCCESS)
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
