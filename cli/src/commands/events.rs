//! `gantry events`: what happens to containers and images, and what has happened lately.

use std::collections::BTreeMap;

use gantry_proto::gantry::engine::v1 as api;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::harmless;
use crate::output::template::Template;
use crate::parse::filter::{Filter, all_met, filter, has_label};
use crate::parse::time;

/// `gantry events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Begin with what has happened after a time, or in the last while, such as 10m; gantryd remembers the last 256 events
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Leave at a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show only those that match: type, event, container, image or label
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// json, or a template such as '{{.Action}} {{.Actor.ID}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

const FILTERS: &[&str] = &["type", "event", "container", "image", "label"];

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        if let Some(unknown) = self.filter.iter().find(|filter| !FILTERS.contains(&filter.key.as_str())) {
            return Err(Failure::new(format!("filter {:?} is not known", unknown.key))
                .hint("filters are type, event, container, image and label"));
        }
        let template = self.format.as_deref().map(Template::of_format).transpose()?;
        let request = api::EventsRequest {
            since: time::wire_point("--since", self.since.as_deref())?,
            until: time::wire_point("--until", self.until.as_deref())?,
        };
        let has_end = request.until.is_some();
        let mut events = context.connect().await?.events(request).await?;
        while let Some(event) = events.message().await? {
            if !meets(&event, &self.filter) {
                continue;
            }
            match &template {
                None => output::line(line(&event))?,
                Some(template) => output::line(template.render(&document(&event)).map_err(Failure::new)?)?,
            }
        }
        if has_end { Ok(Code::SUCCESS) } else { Err(Failure::new("the connection to gantryd ended")) }
    }
}

fn attribute<'a>(event: &'a api::Event, key: &str) -> Option<&'a str> {
    event.attributes.get(key).map(String::as_str)
}

fn meets(event: &api::Event, filters: &[Filter]) -> bool {
    all_met(filters, |Filter { key, value }| match key.as_str() {
        "type" => event.r#type == *value,
        // Of "health_status: healthy", either all of it or what stands before the colon.
        "event" => event.action == *value || event.action.split(':').next() == Some(value.as_str()),
        "container" => {
            event.r#type == "container"
                && (event.id.starts_with(value) || attribute(event, "name") == Some(value.as_str()))
        }
        "label" => event.r#type == "container" && has_label(&event.attributes, value),
        _ if event.r#type == "image" => {
            [Some(event.id.as_str()), attribute(event, "name")].contains(&Some(value.as_str()))
        }
        _ => attribute(event, "image") == Some(value.as_str()),
    })
}

fn at(event: &api::Event) -> Timestamp {
    let at = event.at.as_ref().and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    at.unwrap_or(Timestamp::UNIX_EPOCH)
}

fn line(event: &api::Event) -> String {
    let attributes: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    harmless(&format!("{:.9} {} {} {}{attributes}", at(event), event.r#type, event.action, event.id))
}

fn document(event: &api::Event) -> Value {
    let attributes: &BTreeMap<String, String> = &event.attributes;
    let mut document = json!({
        "Type": event.r#type,
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": attributes },
        "scope": "local",
        "time": at(event).as_second(),
        "timeNano": i64::try_from(at(event).as_nanosecond()).unwrap_or(i64::MAX),
        // Docker's older names for the same, which its command line shows to this day.
        "status": event.action,
        "id": event.id,
    });
    if let Some(image) = attribute(event, "image") {
        document["from"] = image.into();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_words() {
        let attributes = [("exitCode", "3"), ("name", "web"), ("image", "alpine"), ("a", "b")];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (action, id) = ("die".to_owned(), "c1".to_owned());
        let die = api::Event { at: None, r#type: "container".into(), action, id, attributes };
        let text = "1970-01-01T00:00:00.000000000Z container die c1 (a=b, exitCode=3, image=alpine, name=web)";
        assert_eq!(line(&die), text);
        assert_eq!(document(&die)["Actor"]["Attributes"]["exitCode"], "3");
        assert_eq!(document(&die)["from"], "alpine");
        let met = |event: &api::Event, texts: &[&str]| {
            meets(event, &texts.iter().map(|text| filter(text).unwrap()).collect::<Vec<_>>())
        };
        for yes in [
            &["type=container", "event=die", "event=start"][..],
            &["container=c"],
            &["container=web", "image=alpine"],
            &["label=a", "label=a=b"],
            &[],
        ] {
            assert!(met(&die, yes), "{yes:?}");
        }
        for no in [&["type=image"][..], &["event=start"], &["container=x"], &["label=a=c"]] {
            assert!(!met(&die, no), "{no:?}");
        }
        let change = api::Event { action: "health_status: unhealthy".into(), ..die };
        for (asked, is_met) in [("health_status", true), ("health_status: unhealthy", true), ("health", false)] {
            assert_eq!(met(&change, &[&format!("event={asked}")]), is_met, "{asked}");
        }
    }
}
