//! `gantry images`: the images there are.

use gantry_proto::gantry::engine::v1::Image;
use jiff::Timestamp;
use rung_spec::reference::Reference;

use super::Context;
use crate::error::Result;
use crate::exit::Code;
use crate::output;
use crate::output::human::{ago, decimal_size};
use crate::output::listing::{Column, Listing};
use crate::output::progress::short;

/// `gantry images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only ids
    #[arg(long, short)]
    quiet: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Cut nothing short
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

const COLUMNS: &[Column] = &[
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Size", "SIZE"),
    ("Tag", "TAG"),
];
const SHOWN: &[&str] = &["Repository", "Tag", "ID", "CreatedSince", "Size"];
const SHOWN_DIGESTS: &[&str] = &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"];

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut images = context.connect().await?.images().await?;
        images.sort_by_key(|image| std::cmp::Reverse(image.created_at.as_ref().map_or(0, |time| time.seconds)));
        if let Some(name) = &self.name {
            images.retain(|image| is_named(image, name));
        }
        if self.quiet {
            // What has no id is removed by its name.
            images.retain(|image| !image.id.is_empty());
            let mut ids: Vec<String> = images.iter().map(|image| format!("{}\n", self.id(image))).collect();
            ids.dedup();
            output::bytes(ids.concat().as_bytes())?;
            return Ok(Code::SUCCESS);
        }
        let now = Timestamp::now();
        let mut listing = Listing::new(COLUMNS);
        for image in &images {
            listing.row(self.row(image, now));
        }
        listing.print(self.format.as_deref(), if self.digests { SHOWN_DIGESTS } else { SHOWN })?;
        Ok(Code::SUCCESS)
    }

    fn id(&self, image: &Image) -> String {
        match image.id.as_str() {
            "" if image.damaged => "<damaged>".to_owned(),
            id if self.no_trunc => id.to_owned(),
            id => short(id),
        }
    }

    fn row(&self, image: &Image, now: Timestamp) -> Vec<String> {
        let none = || "<none>".to_owned();
        let (repository, tag) = match Reference::parse(&image.name) {
            Ok(reference) => (reference.familiar_name(), reference.tag.clone().unwrap_or_else(none)),
            Err(_) if image.name.is_empty() => (none(), none()),
            Err(_) => (image.name.clone(), none()),
        };
        let created = image.created_at.as_ref().and_then(|time| Timestamp::from_second(time.seconds).ok());
        // Reproducible builds have no date, or the first one there is.
        let created = created.filter(|time| time.as_second() > 0);
        vec![
            created.map(|time| time.to_string()).unwrap_or_default(),
            created.map_or_else(|| "N/A".to_owned(), |time| format!("{} ago", ago(time, now))),
            if image.digest.is_empty() { none() } else { image.digest.clone() },
            self.id(image),
            repository,
            decimal_size(image.size),
            tag,
        ]
    }
}

/// Whether `name` is the image's repository, or its repository and tag.
fn is_named(image: &Image, name: &str) -> bool {
    let (Ok(held), Ok(wanted)) = (Reference::parse(&image.name), Reference::parse(name)) else { return false };
    let tagged = name.contains('@') || name.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    held.name() == wanted.name() && (!tagged || held.object() == wanted.object())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let image = Image { name: "localhost:5000/app:1".into(), ..Image::default() };
        for (name, expected) in [
            ("localhost:5000/app", true),
            ("localhost:5000/app:1", true),
            ("localhost:5000/app:2", false),
            ("app", false),
        ] {
            assert_eq!(is_named(&image, name), expected, "{name}");
        }
    }
}
