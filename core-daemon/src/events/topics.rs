//! The names of events, and their fields as filters ask for them.

use std::collections::BTreeMap;

use gantry_proto::containerd::events as wire;
use gantry_proto::containerd::services::images::v1 as images;
use gantry_proto::containerd::types::Envelope;
use gantry_proto::namespace::check_identifier;
use prost::{Message as _, Name as _};
use prost_types::Any;

use crate::error::{Error, Result};
use crate::filter;

/// Checks that `topic` is what containerd accepts: a slash before every part, and identifiers between them.
///
/// # Errors
/// `InvalidArgument` naming the topic.
pub fn check_topic(topic: &str) -> Result<()> {
    let invalid = |problem: &str| Error::invalid(format!("topic {topic:?}: {problem}"));
    let Some(parts) = topic.strip_prefix('/') else { return Err(invalid("must start with a slash")) };
    parts.split('/').try_for_each(|part| check_identifier(part).map_err(|error| invalid(&error.to_string())))
}

/// A field of an event, by the path a filter names it with: `namespace`, `topic` or `event.<field>`.
pub fn field(envelope: &Envelope, path: &[String]) -> Option<String> {
    let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match path {
        [name] if name == "namespace" => present(&envelope.namespace),
        [name] if name == "topic" => present(&envelope.topic),
        [name, rest @ ..] if name == "event" => event_field(envelope.event.as_ref()?, rest),
        _ => None,
    }
}

/// Looks up a text field of a known message; the macro's rows are `Message { wire name => getter }`.
macro_rules! text_fields {
    ($event:expr, $path:expr, $($message:ty { $($name:literal => $get:expr),* $(,)? })*) => {{
        let kind = type_name($event);
        let name = $path.join(".");
        $(if kind == <$message>::full_name() {
            let message = <$message>::decode($event.value.as_slice()).ok()?;
            let getters: [(&str, fn(&$message) -> Option<&String>); _] = [$(($name, $get)),*];
            return getters.iter().find(|(known, _)| *known == name).and_then(|(_, get)| get(&message)).cloned();
        })*
        None
    }};
}

/// The message's name without the host that some clients put before it.
fn type_name(event: &Any) -> &str {
    event.type_url.rsplit('/').next().unwrap_or_default()
}

fn event_field(event: &Any, path: &[String]) -> Option<String> {
    if let [name, rest @ ..] = path
        && name == "labels"
    {
        return filter::label(&labels(event)?, rest);
    }
    known_field(event, path).filter(|text| !text.is_empty())
}

fn known_field(event: &Any, path: &[String]) -> Option<String> {
    text_fields! { event, path,
        wire::ContentCreate { "digest" => |m| Some(&m.digest) }
        wire::ContentDelete { "digest" => |m| Some(&m.digest) }
        wire::SnapshotPrepare {
            "key" => |m| Some(&m.key), "parent" => |m| Some(&m.parent), "snapshotter" => |m| Some(&m.snapshotter),
        }
        wire::SnapshotCommit {
            "key" => |m| Some(&m.key), "name" => |m| Some(&m.name), "snapshotter" => |m| Some(&m.snapshotter),
        }
        wire::SnapshotRemove { "key" => |m| Some(&m.key), "snapshotter" => |m| Some(&m.snapshotter) }
        wire::SandboxCreate { "sandbox_id" => |m| Some(&m.sandbox_id) }
        wire::SandboxStart { "sandbox_id" => |m| Some(&m.sandbox_id) }
        wire::SandboxExit { "sandbox_id" => |m| Some(&m.sandbox_id) }
        wire::ContainerCreate {
            "id" => |m| Some(&m.id), "image" => |m| Some(&m.image),
            "runtime.name" => |m| m.runtime.as_ref().map(|runtime| &runtime.name),
        }
        wire::ContainerUpdate {
            "id" => |m| Some(&m.id), "image" => |m| Some(&m.image), "snapshot_key" => |m| Some(&m.snapshot_key),
        }
        wire::ContainerDelete { "id" => |m| Some(&m.id) }
        images::ImageCreate { "name" => |m| Some(&m.name) }
        images::ImageUpdate { "name" => |m| Some(&m.name) }
        images::ImageDelete { "name" => |m| Some(&m.name) }
        wire::NamespaceCreate { "name" => |m| Some(&m.name) }
        wire::NamespaceUpdate { "name" => |m| Some(&m.name) }
        wire::NamespaceDelete { "name" => |m| Some(&m.name) }
        wire::TaskCreate {
            "container_id" => |m| Some(&m.container_id), "bundle" => |m| Some(&m.bundle),
            "checkpoint" => |m| Some(&m.checkpoint),
            "io.stdin" => |m| m.io.as_ref().map(|io| &io.stdin),
            "io.stdout" => |m| m.io.as_ref().map(|io| &io.stdout),
            "io.stderr" => |m| m.io.as_ref().map(|io| &io.stderr),
        }
        wire::TaskStart { "container_id" => |m| Some(&m.container_id) }
        wire::TaskDelete { "container_id" => |m| Some(&m.container_id), "id" => |m| Some(&m.id) }
        wire::TaskExit { "container_id" => |m| Some(&m.container_id), "id" => |m| Some(&m.id) }
        wire::TaskOom { "container_id" => |m| Some(&m.container_id) }
        wire::TaskExecAdded { "container_id" => |m| Some(&m.container_id), "exec_id" => |m| Some(&m.exec_id) }
        wire::TaskExecStarted { "container_id" => |m| Some(&m.container_id), "exec_id" => |m| Some(&m.exec_id) }
        wire::TaskPaused { "container_id" => |m| Some(&m.container_id) }
        wire::TaskResumed { "container_id" => |m| Some(&m.container_id) }
        wire::TaskCheckpointed { "container_id" => |m| Some(&m.container_id), "checkpoint" => |m| Some(&m.checkpoint) }
    }
}

fn labels(event: &Any) -> Option<BTreeMap<String, String>> {
    macro_rules! labels_of {
        ($($message:ty),*) => {
            $(if type_name(event) == <$message>::full_name() {
                return Some(<$message>::decode(event.value.as_slice()).ok()?.labels);
            })*
        };
    }
    labels_of!(
        wire::ContainerUpdate,
        images::ImageCreate,
        images::ImageUpdate,
        wire::NamespaceCreate,
        wire::NamespaceUpdate
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_slashes_and_identifiers() {
        assert!(check_topic("/tasks/exec-added").is_ok());
        for topic in ["", "tasks", "/", "/tasks/", "//tasks", "/tasks/a b"] {
            assert!(check_topic(topic).is_err(), "{topic}");
        }
    }

    #[test]
    fn fields_of_known_events() {
        let exit = wire::TaskExit { container_id: "web".into(), id: "web".into(), ..Default::default() };
        let envelope = Envelope {
            namespace: "moby".into(),
            topic: "/tasks/exit".into(),
            event: Some(Any { type_url: "containerd.events.TaskExit".into(), value: exit.encode_to_vec() }),
            ..Default::default()
        };
        let look = |path: &str| field(&envelope, &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(look("event.container_id").as_deref(), Some("web"));
        assert_eq!(look("namespace").as_deref(), Some("moby"));
        assert_eq!(look("event.pid"), None);
        assert_eq!(look("event"), None);
    }
}
