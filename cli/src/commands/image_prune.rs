//! `gantry image prune`: images that nobody needs.

use std::io::{self, IsTerminal, Write};

use gantry_proto::gantry::images::v1::PruneRequest;
use jiff::Timestamp;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::decimal_size;
use crate::parse::time;

/// `gantry image prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove all images that no container is made of, not only those without a name
    #[arg(long, short)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Only images that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let request = request(self.all, &self.filter)?;
        if !self.force && !confirmed(self.all)? {
            return Ok(Code::SUCCESS);
        }
        let pruned = context.connect().await?.prune_images(request).await?;
        if !(pruned.untagged.is_empty() && pruned.deleted.is_empty()) {
            output::line("Deleted Images:")?;
            for name in &pruned.untagged {
                output::line(format!("untagged: {name}"))?;
            }
            for id in &pruned.deleted {
                output::line(format!("deleted: {id}"))?;
            }
            output::line("")?;
        }
        output::line(format!("Total reclaimed space: {}", decimal_size(pruned.freed)))?;
        Ok(Code::SUCCESS)
    }
}

fn request(all: bool, filters: &[String]) -> Result<PruneRequest> {
    let mut request = PruneRequest { all, ..PruneRequest::default() };
    for filter in filters {
        let wrong = || Failure::new(format!("--filter {filter:?}: write until=TIME, label=KEY[=VALUE] or label!=KEY"));
        if let Some(label) = filter.strip_prefix("label!=") {
            request.labels.push(format!("!{label}"));
        } else if let Some(label) = filter.strip_prefix("label=") {
            request.labels.push(label.to_owned());
        } else if let Some(text) = filter.strip_prefix("until=") {
            let at = time::point(text, Timestamp::now());
            let at = at.map_err(|error| Failure::new(format!("--filter {filter:?}: {error}")))?;
            let (seconds, nanos) = (at.as_second(), at.subsec_nanosecond());
            request.before = Some(prost_types::Timestamp { seconds, nanos });
        } else {
            return Err(wrong());
        }
    }
    Ok(request)
}

/// Asks whether to go on; somebody has to be there to answer.
fn confirmed(all: bool) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new("nobody is there to be asked whether to go on").hint("say --force"));
    }
    let which = if all { "all images that no container is made of" } else { "all images without a name" };
    output::bytes(format!("WARNING! This will remove {which}.\nAre you sure you want to continue? [y/N] ").as_bytes())?;
    io::stdout().flush().map_err(|error| output::write_failure(&error))?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| Failure::new(format!("read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let all = ["label=a=b", "label!=c", "until=24h"].map(str::to_owned);
        let request = request(true, &all).unwrap();
        assert_eq!(request.labels, ["a=b", "!c"]);
        assert!(request.before.is_some());
        assert!(super::request(false, &["dangling=true".to_owned()]).is_err());
    }
}
