//! `gantry container prune` and `gantry system prune`: what does not run, and what nobody needs.

use std::io::{self, Write};

use futures_util::StreamExt as _;
use gantry_proto::gantry::engine::v1::{Container, State};
use gantry_proto::gantry::images::v1::PruneRequest;
use gantry_proto::gantry::system::v1::Kind;
use jiff::Timestamp;

use super::{AT_ONCE, Context};
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::decimal_size;
use crate::parse::filter::has_label;
use crate::parse::time;

/// `gantry container prune`.
#[derive(Debug, clap::Args)]
pub struct Containers {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Only containers that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// `gantry system prune`.
#[derive(Debug, clap::Args)]
pub struct System {
    /// Remove all images that no container is made of, not only those without a name
    #[arg(long, short)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Only what fits: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// What is to be removed, beside its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Which {
    /// Only what was made before.
    pub(super) before: Option<Timestamp>,
    /// Only what has these labels: `KEY` or `KEY=VALUE`, after a `!` what has not.
    pub(super) labels: Vec<String>,
}

impl Which {
    /// Reads `--filter`.
    ///
    /// # Errors
    /// Names the filter that is unknown or malformed.
    pub(super) fn parse(filters: &[String]) -> Result<Self> {
        let mut which = Self::default();
        for filter in filters {
            let wrong = |cause: String| Failure::new(format!("--filter {filter:?}: {cause}"));
            if let Some(label) = filter.strip_prefix("label!=") {
                which.labels.push(format!("!{label}"));
            } else if let Some(label) = filter.strip_prefix("label=") {
                which.labels.push(label.to_owned());
            } else if let Some(text) = filter.strip_prefix("until=") {
                which.before = Some(time::point(text, Timestamp::now()).map_err(wrong)?);
            } else {
                return Err(wrong("write until=TIME, label=KEY[=VALUE] or label!=KEY".to_owned()));
            }
        }
        Ok(which)
    }

    /// The same of images.
    pub(super) fn images(self, all: bool) -> PruneRequest {
        let before =
            self.before.map(|at| prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() });
        PruneRequest { all, before, labels: self.labels }
    }

    fn takes(&self, container: &Container) -> bool {
        let made = container.created_at.as_ref().and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        self.before.is_none_or(|before| made.is_some_and(|made| made < before))
            && self.labels.iter().all(|label| match label.strip_prefix('!') {
                Some(label) => !has_label(&container.labels, label),
                None => has_label(&container.labels, label),
            })
    }
}

impl Containers {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let which = Which::parse(&self.filter)?;
        if !self.force && !confirmed("This will remove all stopped containers.")? {
            return Ok(Code::SUCCESS);
        }
        let client = context.connect().await?;
        let freed = containers(&client, context, &which).await?;
        output::line(format!("Total reclaimed space: {}", decimal_size(freed)))?;
        Ok(Code::SUCCESS)
    }
}

impl System {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let which = Which::parse(&self.filter)?;
        let images = if self.all { "all images that no container is made of" } else { "all images without a name" };
        let warning =
            format!("This will remove:\n  - all stopped containers\n  - {images}\n  - what nothing refers to\n");
        if !self.force && !confirmed(&warning)? {
            return Ok(Code::SUCCESS);
        }
        let mut client = context.connect().await?;
        let mut freed = containers(&client, context, &which).await?;
        freed += super::image_prune::prune(&mut client, which.images(self.all)).await?;
        freed += client.collect().await?.bytes;
        output::line(format!("Total reclaimed space: {}", decimal_size(freed)))?;
        Ok(Code::SUCCESS)
    }
}

/// Removes containers that do not run, names them, and says how many bytes they took.
async fn containers(client: &Client, context: &Context, which: &Which) -> Result<u64> {
    let mut all = client.clone().list(true).await?;
    all.retain(|it| matches!(it.state(), State::Created | State::Exited) && which.takes(it));
    if all.is_empty() {
        return Ok(0);
    }
    let namespace = context.namespace.as_str();
    let mut usage = client.clone().disk_usage().await?;
    usage.retain(|item| item.kind() == Kind::Container && item.namespace == namespace);
    let removed = futures_util::stream::iter(all).map(|container| async {
        let outcome = client.clone().remove(&container.id, false).await;
        (container, outcome)
    });
    let mut removed = removed.buffered(AT_ONCE);
    let (mut freed, mut is_first) = (0, true);
    while let Some((container, outcome)) = removed.next().await {
        match outcome {
            Ok(()) => {
                if std::mem::take(&mut is_first) {
                    output::line("Deleted Containers:")?;
                }
                output::line(&container.id)?;
                freed += usage.iter().filter(|item| item.name == container.id).map(|item| item.size).sum::<u64>();
            }
            // Somebody started or removed it meanwhile.
            Err(failure) => failure.print(),
        }
    }
    if !is_first {
        output::line("")?;
    }
    Ok(freed)
}

/// Asks whether to go on; the answer may come through a pipe.
///
/// # Errors
/// Where nobody answers.
pub(super) fn confirmed(warning: &str) -> Result<bool> {
    output::bytes(format!("WARNING! {warning}\nAre you sure you want to continue? [y/N] ").as_bytes())?;
    io::stdout().flush().map_err(|error| output::write_failure(&error))?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.map_err(|error| Failure::new(format!("read the answer: {error}")))? == 0 {
        return Err(Failure::new("nobody is there to be asked whether to go on").hint("say --force"));
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let which = |filters: &[&str]| Which::parse(&filters.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        let all = which(&["label=a=b", "label!=c", "until=24h"]).expect("filters");
        assert_eq!(all.labels, ["a=b", "!c"]);
        assert!(all.before.is_some() && which(&["dangling=true"]).is_err() && which(&["until=x"]).is_err());
        let mut container = Container { created_at: Some(prost_types::Timestamp::default()), ..Container::default() };
        assert!(!all.takes(&container));
        container.labels.insert("a".to_owned(), "b".to_owned());
        assert!(all.takes(&container));
        container.labels.insert("c".to_owned(), String::new());
        assert!(!all.takes(&container));
        let request = all.images(true);
        assert!(request.all && request.before.is_some());
    }
}
