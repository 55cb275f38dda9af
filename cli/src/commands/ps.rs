//! `gantry ps`: the containers there are.

use std::collections::HashMap;

use gantry_proto::gantry::engine::v1::{Container, Health, State};
use gantry_proto::gantry::system::v1::Kind;
use jiff::Timestamp;
use regex::Regex;
use serde_json::Value;

use super::Context;
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::{ago, decimal_size, ellipsis, quoted};
use crate::output::listing::{Column, Listing};
use crate::parse::filter::{Filter, all_met, filter, has_label};
use crate::parse::pattern;

/// `gantry ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show those that do not run too
    #[arg(long, short)]
    all: bool,
    /// Print only ids
    #[arg(long, short)]
    quiet: bool,
    /// Cut nothing short
    #[arg(long)]
    no_trunc: bool,
    /// Show how much the files take that each has written, and those of its image with them
    #[arg(long, short)]
    size: bool,
    /// Show only the container created last, in any state
    #[arg(long, short)]
    latest: bool,
    /// Show only so many, those created last, in any state
    #[arg(long, short = 'n', value_name = "NUMBER", conflicts_with = "latest", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Show only those that match: name, id, label, status, ancestor, exited, health, network, before or since
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// table, json, or a template such as '{{.Names}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

const COLUMNS: &[Column] = &[
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Names", "NAMES"),
    ("Networks", "NETWORKS"),
    ("Ports", "PORTS"),
    ("RunningFor", "CREATED"),
    ("Size", "SIZE"),
    ("State", "STATE"),
    ("Status", "STATUS"),
];
const SHOWN: &[&str] = &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
const SHOWN_SIZES: &[&str] = &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Size"];
/// Most of a mount's path that is shown.
const MOUNT: usize = 15;

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut known = Known { names: names(&self.filter)?, ..Known::default() };
        self.filter.iter().try_for_each(check)?;
        // These ask for containers that do not run, whether or not -a is given.
        let any_state = self.filter.iter().any(|filter| matches!(filter.key.as_str(), "status" | "exited"));
        // As in docker, a number below one is none.
        let last = self.last.and_then(|last| usize::try_from(last).ok()).filter(|last| *last > 0);
        let count = if self.latest { Some(1) } else { last };
        let mut client = context.connect().await?;
        if self.filter.iter().any(|filter| matches!(filter.key.as_str(), "before" | "since")) {
            known.marks = marks(&self.filter, &client.list(true).await?)?;
        }
        let mut containers = client.list(self.all || any_state || count.is_some()).await?;
        containers.sort_by_key(|container| std::cmp::Reverse(created(container)));
        containers.retain(|container| matches(container, &self.filter, &known));
        containers.truncate(count.unwrap_or(usize::MAX));
        if self.quiet {
            let ids: String = containers.iter().map(|container| format!("{}\n", self.id(container))).collect();
            output::bytes(ids.as_bytes())?;
            return Ok(Code::SUCCESS);
        }
        let now = Timestamp::now();
        // It takes a look at all files, so it is asked for only where it is shown.
        let wants_sizes = self.size || self.format.as_ref().is_some_and(|format| format.contains(".Size"));
        let sizes = if wants_sizes { Sizes::of(&mut client, context).await? } else { Sizes::default() };
        let mut listing = Listing::new(COLUMNS);
        for container in &containers {
            listing.labelled_row(self.row(container, now, &sizes), container.labels.clone());
        }
        listing.print(self.format.as_deref(), if self.size { SHOWN_SIZES } else { SHOWN })?;
        Ok(Code::SUCCESS)
    }

    fn id(&self, container: &Container) -> String {
        if self.no_trunc { container.id.clone() } else { container.id.chars().take(12).collect() }
    }

    fn row(&self, container: &Container, now: Timestamp, sizes: &Sizes) -> Vec<String> {
        let word = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
        let command = container.command.iter().take(1).cloned().chain(container.command.iter().skip(1).map(word));
        let command = command.collect::<Vec<_>>().join(" ");
        let mut labels: Vec<String> = container.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort_unstable();
        let mount = |path: &String| if self.no_trunc { path.clone() } else { ellipsis(path, MOUNT) };
        vec![
            quoted(&if self.no_trunc { command } else { ellipsis(&command, 20) }),
            Timestamp::from_second(created(container).0).map(|time| time.to_string()).unwrap_or_default(),
            self.id(container),
            container.image.clone(),
            labels.join(","),
            "0".to_owned(),
            container.mounts.iter().map(mount).collect::<Vec<_>>().join(","),
            container.name.clone(),
            container.network.clone(),
            String::new(),
            format!("{} ago", ago(Timestamp::from_second(created(container).0).unwrap_or(now), now)),
            sizes.text(container),
            state(container.state()).to_owned(),
            status(container, now),
        ]
    }
}

/// How much the files take: what containers have written, by id, and their images, by id.
#[derive(Default)]
pub(super) struct Sizes {
    written: HashMap<String, u64>,
    images: HashMap<String, u64>,
}

impl Sizes {
    pub(super) async fn of(client: &mut Client, context: &Context) -> Result<Self> {
        let namespace = context.namespace.as_str();
        let items = client.disk_usage().await?.into_iter();
        let items = items.filter(|item| item.kind() == Kind::Container && item.namespace == namespace);
        let images = client.images().await?.into_iter();
        Ok(Self {
            written: items.map(|item| (item.name, item.size)).collect(),
            images: images.map(|image| (image.id, image.size)).collect(),
        })
    }

    /// Enters them into what is told of a container, in docker's words.
    pub(super) fn enter(&self, container: &mut Value) {
        let text = |name: &str| container[name].as_str().unwrap_or_default();
        // An image says nothing of one.
        let (id, image) = (text("Id"), text("Image"));
        if !image.is_empty() {
            let written = self.written.get(id).copied().unwrap_or(0);
            let all = written + self.images.get(image).copied().unwrap_or(0);
            (container["SizeRw"], container["SizeRootFs"]) = (written.into(), all.into());
        }
    }

    fn text(&self, container: &Container) -> String {
        let written = self.written.get(&container.id).copied().unwrap_or(0);
        match self.images.get(&container.image_id) {
            Some(image) => format!("{} (virtual {})", decimal_size(written), decimal_size(written + image)),
            None => decimal_size(written),
        }
    }
}

fn created(container: &Container) -> (i64, i32) {
    container.created_at.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn state(state: State) -> &'static str {
    match state {
        State::Created => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Exited => "exited",
        State::Restarting => "restarting",
        State::Unknown => "unknown",
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::None => "none",
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

fn status(container: &Container, now: Timestamp) -> String {
    let since = |time: Option<&prost_types::Timestamp>| {
        let then = time.and_then(|time| Timestamp::from_second(time.seconds).ok()).unwrap_or(now);
        ago(then, now)
    };
    let up = format!("Up {}", since(container.started_at.as_ref()));
    match (container.state(), &container.exit) {
        (State::Created, _) => "Created".to_owned(),
        (State::Running, _) => match container.health() {
            Health::None => up,
            Health::Starting => format!("{up} (health: starting)"),
            health => format!("{up} ({})", self::health(health)),
        },
        (State::Paused, _) => format!("{up} (Paused)"),
        (State::Exited, Some(exit)) => format!("Exited ({}) {} ago", exit.code, since(exit.at.as_ref())),
        (State::Exited, None) => "Exited".to_owned(),
        (State::Restarting, exit) => {
            let (code, at) = exit.as_ref().map_or((0, None), |exit| (exit.code, exit.at.as_ref()));
            format!("Restarting ({code}) {} ago", since(at))
        }
        (State::Unknown, _) => "Unknown".to_owned(),
    }
}

/// What the filters speak of: expressions of names, and when containers were made, by what they are called in filters.
#[derive(Default)]
struct Known {
    names: Vec<Regex>,
    marks: HashMap<String, (i64, i32)>,
}

/// Refuses a filter that nothing could ever meet.
fn check(filter: &Filter) -> Result<()> {
    let Filter { key, value } = filter;
    let one_of = |values: &[&str]| match values.contains(&value.as_str()) {
        true => Ok(()),
        false => Err(Failure::new(format!("filter {key}={value}: {key} is one of {}", values.join(", ")))),
    };
    match key.as_str() {
        "name" | "id" | "label" | "ancestor" | "network" | "before" | "since" => Ok(()),
        "status" => one_of(&["created", "running", "paused", "restarting", "removing", "exited", "dead", "unknown"]),
        "health" => one_of(&["none", "starting", "healthy", "unhealthy"]),
        "exited" if value.parse::<i64>().is_err() => {
            Err(Failure::new(format!("filter exited={value}: {value:?} is not an exit code")))
        }
        "exited" => Ok(()),
        _ => Err(Failure::new(format!("filter {key:?} is not known"))
            .hint("filters are name, id, label, status, ancestor, exited, health, network, before and since")),
    }
}

/// When the containers were made that the filters name; an id may be cut short where only one begins so.
fn marks(filters: &[Filter], containers: &[Container]) -> Result<HashMap<String, (i64, i32)>> {
    let named = filters.iter().filter(|filter| matches!(filter.key.as_str(), "before" | "since"));
    let mark = |filter: &Filter| {
        let Filter { key, value } = filter;
        let name = value.strip_prefix('/').unwrap_or(value);
        let by_name = containers.iter().find(|container| container.name == name);
        let mut by_id = containers.iter().filter(|container| !value.is_empty() && container.id.starts_with(value));
        let found = match (by_name, by_id.next(), by_id.next()) {
            (Some(found), _, _) | (None, Some(found), None) => found,
            (None, None, _) => return Err(Failure::new(format!("filter {key}={value}: no such container"))),
            _ => return Err(Failure::new(format!("filter {key}={value}: more than one container has such an id"))),
        };
        Ok((value.clone(), created(found)))
    };
    named.map(mark).collect()
}

/// The expressions of the filters by name.
fn names(filters: &[Filter]) -> Result<Vec<Regex>> {
    let texts = filters.iter().filter(|filter| filter.key == "name").map(|filter| &filter.value);
    let wrong = |text: &str, error: String| Failure::new(format!("filter name={text}: {error}"));
    texts.map(|text| pattern::expression(text).map_err(|error| wrong(text, error))).collect()
}

/// Whether a container meets the filters, which speak of what is `known`.
fn matches(container: &Container, filters: &[Filter], known: &Known) -> bool {
    // Docker's names have a slash before them, which may be written or not.
    let slashed = format!("/{}", container.name);
    let mark = |filter: &Filter| known.marks.get(&filter.value).copied();
    let meets = |filter: &Filter| match filter.key.as_str() {
        "before" => mark(filter).is_some_and(|mark| created(container) < mark),
        "since" => mark(filter).is_some_and(|mark| created(container) > mark),
        "network" => container.network == filter.value,
        "name" => known.names.iter().any(|name| name.is_match(&container.name) || name.is_match(&slashed)),
        "id" => container.id.starts_with(&filter.value),
        "status" => state(container.state()) == filter.value,
        "health" => health(container.health()) == filter.value,
        "exited" => container.exit.as_ref().is_some_and(|exit| exit.code.to_string() == filter.value),
        "ancestor" => is_image(container, &filter.value),
        "label" => has_label(&container.labels, &filter.value),
        _ => false,
    };
    all_met(filters, meets)
}

fn is_image(container: &Container, wanted: &str) -> bool {
    let full = |name: &str| rung_spec::reference::Reference::parse(name).map(|name| name.to_string()).ok();
    let id = container.image_id.split_once(':').map_or(container.image_id.as_str(), |(_, hex)| hex);
    (full(wanted).is_some() && full(wanted) == full(&container.image))
        || (wanted.len() >= 4 && (id.starts_with(wanted) || container.image_id == wanted))
}

#[cfg(test)]
mod tests {
    use gantry_proto::gantry::engine::v1::Exit;

    use super::*;

    fn container() -> Container {
        Container {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            image: "alpine".into(),
            image_id: "sha256:feed".into(),
            state: State::Exited.into(),
            exit: Some(Exit {
                code: 130,
                at: Some(prost_types::Timestamp { seconds: 820, nanos: 0 }),
                oom_killed: false,
            }),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..Container::default()
        }
    }

    fn meets(filters: &[&str]) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|text| filter(text).unwrap()).collect();
        let other = |name: &str, seconds: i64| Container {
            name: name.into(),
            created_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Container::default()
        };
        let marks = marks(&filters, &[other("old", -1), other("new", 1)]).unwrap();
        matches(&container(), &filters, &Known { names: names(&filters).unwrap(), marks })
    }

    #[test]
    fn states_in_words() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(status(&container(), now), "Exited (130) 3 minutes ago");
        let again = Container { state: State::Restarting.into(), ..container() };
        let sizes = Sizes { written: [(container().id, 5)].into(), images: [(container().image_id, 2_000_000)].into() };
        assert_eq!(sizes.text(&container()), "5B (virtual 2MB)");
        let mut told = serde_json::json!({ "Id": container().id, "Image": container().image_id });
        sizes.enter(&mut told);
        assert_eq!((told["SizeRw"].as_u64(), told["SizeRootFs"].as_u64()), (Some(5), Some(2_000_005)));
        assert_eq!(status(&again, now), "Restarting (130) 3 minutes ago");
        let started_at = Some(prost_types::Timestamp { seconds: 990, nanos: 0 });
        let up = Container { state: State::Running.into(), started_at, ..container() };
        assert_eq!(status(&up, now), "Up 10 seconds");
        let of = |health: Health| status(&Container { health: health.into(), ..up.clone() }, now);
        assert_eq!(of(Health::Starting), "Up 10 seconds (health: starting)");
        assert_eq!(of(Health::Unhealthy), "Up 10 seconds (unhealthy)");
        assert_eq!(status(&Container { state: State::Paused.into(), ..up }, now), "Up 10 seconds (Paused)");
        assert_eq!(status(&Container { state: State::Created.into(), ..container() }, now), "Created");
    }

    #[test]
    fn filters() {
        for yes in [
            &["name=we"][..],
            &["status=exited", "exited=130"],
            &["name=x", "name=web"],
            &["name=^web$"],
            &["name=^/web$"],
            &["label=a"],
            &["label=a=1"],
            &["ancestor=docker.io/library/alpine:latest"],
            &["ancestor=feed"],
            &["id=0123"],
            &["before=new", "since=/old", "network="],
            &[],
        ] {
            assert!(meets(yes), "{yes:?}");
        }
        for no in [
            &["name=x"][..],
            &["name=^we$"],
            &["name=^/eb"],
            &["status=running"],
            &["label=a", "label=b"],
            &["label=a=2"],
            &["ancestor=debian"],
            &["name=web", "exited=0"],
            &["before=old"],
            &["since=new"],
            &["network=host"],
        ] {
            assert!(!meets(no), "{no:?}");
        }
        for bad in ["status=foo", "health=", "exited=x", "exited=", "volume=/x"] {
            assert!(check(&filter(bad).unwrap()).is_err(), "{bad}");
        }
        assert!(marks(&[filter("before=nobody").unwrap()], &[container()]).is_err());
    }
}
