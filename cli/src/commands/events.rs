//! `gantry events`: what happens to containers and images, as it happens.

use std::collections::HashMap;

use gantry_proto::any;
use gantry_proto::containerd::events as payload;
use gantry_proto::containerd::services::images::v1 as images;
use gantry_proto::containerd::types::Envelope;
use gantry_proto::gantry::engine::v1 as engine;
use jiff::Timestamp;
use prost::{Message, Name};
use serde_json::{Value, json};

use super::Context;
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::harmless;
use crate::output::template::Template;
use crate::parse::filter::{Filter, filter};

/// `gantry events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show only those that match: type, event, container or image
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// json, or a template such as '{{.Action}} {{.Actor.ID}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Something that happened, in docker's words.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    kind: &'static str,
    action: &'static str,
    id: String,
    attributes: Vec<(&'static str, String)>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        if let Some(unknown) =
            self.filter.iter().find(|filter| !matches!(filter.key.as_str(), "type" | "event" | "container" | "image"))
        {
            return Err(Failure::new(format!("filter {:?} is not known", unknown.key))
                .hint("filters are type, event, container and image"));
        }
        let template = match self.format.as_deref() {
            None => None,
            Some("json") => Some(Template::parse("{{json .}}").map_err(Failure::new)?),
            Some(format) => Some(Template::parse(format).map_err(Failure::new)?),
        };
        let mut client = context.connect().await?;
        let filters = ["/tasks/", "/containers/", "/images/", "/gantry/"]
            .map(|topic| format!("topic~=^{topic},namespace=={}", context.namespace));
        let mut events = client.events(filters.to_vec()).await?;
        let mut names = Names::default();
        while let Some(envelope) = events.message().await? {
            let Some(mut event) = Event::of(&envelope) else { continue };
            if event.kind == "container" {
                event.attributes.extend(names.of(&mut client, &event).await);
            }
            if !event.meets(&self.filter) {
                continue;
            }
            let at = envelope.timestamp.as_ref();
            let at = at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
            match &template {
                None => output::line(event.line(at))?,
                Some(template) => output::line(template.render(&event.json(at)).map_err(Failure::new)?)?,
            }
        }
        Err(Failure::new("the connection to gantryd ended"))
    }
}

/// Names and images of containers, remembered beyond their removal.
#[derive(Default)]
struct Names(HashMap<String, Vec<(&'static str, String)>>);

impl Names {
    async fn of(&mut self, client: &mut Client, event: &Event) -> Vec<(&'static str, String)> {
        if !self.0.contains_key(&event.id) {
            // What cannot be looked up any more is shown by its id alone.
            for container in client.list(true).await.unwrap_or_default() {
                self.0.insert(container.id, vec![("image", container.image), ("name", container.name)]);
            }
        }
        let known = self.0.get(&event.id).cloned().unwrap_or_default();
        if event.action == "destroy" {
            self.0.remove(&event.id);
        }
        known
    }
}

impl Event {
    /// The event in an envelope; `None` for those that people do not ask about.
    fn of(envelope: &Envelope) -> Option<Self> {
        let data = envelope.event.as_ref()?;
        let container = |action, id: String| Some(Self { kind: "container", action, id, attributes: Vec::new() });
        let image = |action, id: String| Some(Self { kind: "image", action, id, attributes: Vec::new() });
        match envelope.topic.as_str() {
            "/containers/create" => container("create", read::<payload::ContainerCreate>(data)?.id),
            "/containers/delete" => container("destroy", read::<payload::ContainerDelete>(data)?.id),
            "/tasks/start" => container("start", read::<payload::TaskStart>(data)?.container_id),
            "/tasks/paused" => container("pause", read::<payload::TaskPaused>(data)?.container_id),
            "/tasks/resumed" => container("unpause", read::<payload::TaskResumed>(data)?.container_id),
            "/tasks/oom" => container("oom", read::<payload::TaskOom>(data)?.container_id),
            "/tasks/exit" => {
                let exit = read::<payload::TaskExit>(data)?;
                let action = if exit.id == exit.container_id { "die" } else { "exec_die" };
                let mut event = container(action, exit.container_id)?;
                event.attributes.push(("exitCode", exit.exit_status.to_string()));
                Some(event)
            }
            "/tasks/exec-started" => {
                let exec = read::<payload::TaskExecStarted>(data)?;
                let mut event = container("exec_start", exec.container_id)?;
                event.attributes.push(("execID", exec.exec_id));
                Some(event)
            }
            "/gantry/health-status" => {
                let change = read::<engine::HealthStatus>(data)?;
                container(health_action(change.health())?, change.container_id)
            }
            "/images/create" => image("create", read::<images::ImageCreate>(data)?.name),
            "/images/update" => image("update", read::<images::ImageUpdate>(data)?.name),
            "/images/delete" => image("delete", read::<images::ImageDelete>(data)?.name),
            _ => None,
        }
    }

    fn meets(&self, filters: &[Filter]) -> bool {
        let attribute =
            |key: &str| self.attributes.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str());
        let meets = |filter: &Filter| match filter.key.as_str() {
            "type" => self.kind == filter.value,
            // Of "health_status: healthy", either all of it or what stands before the colon.
            "event" => self.action == filter.value || self.action.split(':').next() == Some(&filter.value),
            "container" => {
                self.kind == "container"
                    && (self.id.starts_with(&filter.value) || attribute("name") == Some(&filter.value))
            }
            _ => attribute("image") == Some(&filter.value) || (self.kind == "image" && self.id == filter.value),
        };
        // Of one key any value will do; all keys must be met.
        filters.iter().all(|filter| filters.iter().any(|other| other.key == filter.key && meets(other)))
    }

    fn line(&self, at: Timestamp) -> String {
        let attributes: Vec<String> = self.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
        harmless(&format!("{at:.9} {} {} {}{attributes}", self.kind, self.action, self.id))
    }

    fn json(&self, at: Timestamp) -> Value {
        let attributes: serde_json::Map<String, Value> =
            self.attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
        json!({
            "Type": self.kind,
            "Action": self.action,
            "Actor": { "ID": self.id, "Attributes": attributes },
            "time": at.as_second(),
            "timeNano": i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX),
        })
    }
}

/// What docker calls a change of health.
fn health_action(health: engine::Health) -> Option<&'static str> {
    match health {
        engine::Health::None => None,
        engine::Health::Starting => Some("health_status: starting"),
        engine::Health::Healthy => Some("health_status: healthy"),
        engine::Health::Unhealthy => Some("health_status: unhealthy"),
    }
}

fn read<M: Message + Name + Default>(data: &prost_types::Any) -> Option<M> {
    any::unpack(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope<M: Message + Name>(topic: &str, message: &M) -> Envelope {
        Envelope { topic: topic.into(), event: Some(any::pack(message)), ..Envelope::default() }
    }

    #[test]
    fn dockers_words() {
        let exit = payload::TaskExit { container_id: "c".into(), id: "c".into(), exit_status: 3, ..Default::default() };
        let event = Event::of(&envelope("/tasks/exit", &exit)).unwrap();
        assert_eq!(event.line(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z container die c (exitCode=3)");
        assert_eq!(event.json(Timestamp::UNIX_EPOCH)["Actor"]["Attributes"]["exitCode"], "3");
        let exec = payload::TaskExit { id: "e".into(), ..exit };
        assert_eq!(Event::of(&envelope("/tasks/exit", &exec)).unwrap().action, "exec_die");
        assert_eq!(Event::of(&envelope("/tasks/exit", &payload::TaskStart::default())), None);
        assert_eq!(Event::of(&envelope("/snapshot/prepare", &payload::SnapshotPrepare::default())), None);
        let meets = |text: &[&str]| event.meets(&text.iter().map(|text| filter(text).unwrap()).collect::<Vec<_>>());
        assert!(meets(&["type=container", "event=die", "event=start"]) && meets(&["container=c"]) && meets(&[]));
        assert!(!meets(&["type=image"]) && !meets(&["event=start"]) && !meets(&["container=x"]));
        let change = engine::HealthStatus { container_id: "c".into(), health: engine::Health::Unhealthy.into() };
        let event = Event::of(&envelope("/gantry/health-status", &change)).unwrap();
        assert_eq!(event.action, "health_status: unhealthy");
        for (asked, met) in [("health_status", true), ("health_status: unhealthy", true), ("health", false)] {
            assert_eq!(event.meets(&[filter(&format!("event={asked}")).unwrap()]), met, "{asked}");
        }
    }
}
