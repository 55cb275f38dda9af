//! `gantry history`: the steps that made an image.

use jiff::Timestamp;

use super::Context;
use crate::error::Result;
use crate::exit::Code;
use crate::output;
use crate::output::human::{ago, decimal_size};
use crate::output::listing::{Column, Listing};
use crate::output::progress::short;

/// `gantry history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(long, short)]
    quiet: bool,
    /// Sizes and times for people; with false in bytes and as dates
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    human: bool,
    /// Name or id of the image
    #[arg(value_name = "IMAGE")]
    image: String,
}

const COLUMNS: &[Column] = &[
    ("Comment", "COMMENT"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("CreatedSince", "CREATED"),
    ("ID", "IMAGE"),
    ("Size", "SIZE"),
];
const SHOWN: &[&str] = &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"];
/// Longest command that is shown.
const COMMAND: usize = 45;

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let steps = context.connect().await?.history(&self.image).await?;
        let now = Timestamp::now();
        let mut listing = Listing::new(COLUMNS);
        for step in steps {
            let id = if self.no_trunc || !step.id.contains(':') { step.id } else { short(&step.id) };
            if self.quiet {
                output::line(id)?;
                continue;
            }
            let created = step.created_at.and_then(|at| Timestamp::from_second(at.seconds).ok());
            let created = created.filter(|at| at.as_second() > 0);
            listing.row(vec![
                step.comment,
                created.map(|at| at.to_string()).unwrap_or_default(),
                if self.no_trunc { step.created_by } else { shortened(&step.created_by) },
                match created {
                    None => "N/A".to_owned(),
                    Some(at) if self.human => format!("{} ago", ago(at, now)),
                    Some(at) => at.to_string(),
                },
                id,
                if self.human { decimal_size(step.size) } else { step.size.to_string() },
            ]);
        }
        if !self.quiet {
            listing.print(self.format.as_deref(), SHOWN)?;
        }
        Ok(Code::SUCCESS)
    }
}

fn shortened(command: &str) -> String {
    let line: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= COMMAND {
        return line;
    }
    line.chars().take(COMMAND - 1).chain(['…']).collect()
}
