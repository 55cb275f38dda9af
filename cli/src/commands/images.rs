//! `gantry images`: the images there are.

use gantry_proto::gantry::engine::v1::Image;
use jiff::Timestamp;
use regex::Regex;
use rung_spec::reference::Reference;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::{ago, decimal_size};
use crate::output::listing::{Column, Listing};
use crate::output::progress::short;
use crate::parse::filter::{Filter, filter, has_label};
use crate::parse::{pattern, time};

/// `gantry images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only ids
    #[arg(long, short)]
    quiet: bool,
    /// Taken for docker's sake: there are no images between those that are shown
    #[arg(long = "all", short = 'a')]
    _all: bool,
    /// Show only those that match: dangling, reference, label, before, since or until
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
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
        images.sort_by_key(|image| std::cmp::Reverse(created(image)));
        if let Some(name) = &self.name {
            images.retain(|image| is_named(image, name));
        }
        for filter in &self.filter {
            let test = Test::of(filter, &images)?;
            images.retain(|image| test.takes(image));
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

/// What `--filter` asks of an image.
enum Test {
    Dangling(bool),
    Reference(Regex),
    Label(String),
    Before((i64, i32)),
    Since((i64, i32)),
}

impl Test {
    fn of(filter: &Filter, images: &[Image]) -> Result<Self> {
        let Filter { key, value } = filter;
        let wrong = |cause: String| Failure::new(format!("filter {key}={value}: {cause}"));
        let when = || {
            let named = images.iter().find(|image| is_named(image, value) || is_id(image, value));
            named.map(created).ok_or_else(|| wrong("no such image".to_owned()))
        };
        match key.as_str() {
            "dangling" => match value.as_str() {
                "true" | "1" => Ok(Self::Dangling(true)),
                "false" | "0" => Ok(Self::Dangling(false)),
                _ => Err(wrong("write true or false".to_owned())),
            },
            "reference" => Ok(Self::Reference(pattern::shell(value).map_err(wrong)?)),
            "label" => Ok(Self::Label(value.clone())),
            "before" => Ok(Self::Before(when()?)),
            "since" => Ok(Self::Since(when()?)),
            "until" => {
                let time = time::point(value, Timestamp::now()).map_err(wrong)?;
                Ok(Self::Before((time.as_second(), time.subsec_nanosecond())))
            }
            _ => Err(Failure::new(format!("filter {key:?} is not known"))
                .hint("filters are dangling, reference, label, before, since and until")),
        }
    }

    fn takes(&self, image: &Image) -> bool {
        match self {
            Self::Dangling(wanted) => image.name.is_empty() == *wanted,
            Self::Reference(pattern) => Reference::parse(&image.name)
                .is_ok_and(|name| pattern.is_match(&name.familiar_name()) || pattern.is_match(&image.name)),
            Self::Label(wanted) => has_label(&image.labels, wanted),
            Self::Before(time) => created(image) < *time,
            Self::Since(time) => created(image) > *time,
        }
    }
}

fn created(image: &Image) -> (i64, i32) {
    image.created_at.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

/// Whether `text` is the beginning of the image's id.
fn is_id(image: &Image, text: &str) -> bool {
    let hex = image.id.split_once(':').map_or(image.id.as_str(), |(_, hex)| hex);
    !text.is_empty() && (hex.starts_with(text) || image.id.starts_with(text))
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

    #[test]
    fn filters() {
        let labels = [("a".to_owned(), "1".to_owned())].into();
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let id = "sha256:feed".to_owned();
        let app = Image { id, name: "localhost:5000/app:1".into(), labels, created_at: at(10), ..Image::default() };
        let nameless = Image { created_at: at(20), ..Image::default() };
        let images = [app.clone(), nameless.clone()];
        let takes = |text: &str, image: &Image| Test::of(&filter(text).unwrap(), &images).unwrap().takes(image);
        for (text, of_app, of_nameless) in [
            ("dangling=true", false, true),
            ("dangling=false", true, false),
            ("reference=localhost:5000/*", true, false),
            ("reference=*/app:2", false, false),
            ("label=a", true, false),
            ("label=a=2", false, false),
            ("since=feed", false, true),
            ("before=feed", false, false),
            ("until=15", true, false),
            ("until=1970-01-02T00:00:00Z", true, true),
        ] {
            assert_eq!((takes(text, &app), takes(text, &nameless)), (of_app, of_nameless), "{text}");
        }
        for text in ["dangling=perhaps", "reference=[", "before=nothing", "until=soon", "colour=red"] {
            assert!(Test::of(&filter(text).unwrap(), &images).is_err(), "{text}");
        }
    }
}
