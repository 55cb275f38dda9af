//! What happens to the engine's containers and to images, in docker's words, and the last of it for whoever comes later.
//!
//! Most of it the engine does, or waits for, and notes here itself; the rest is read off the daemon's events, each at the
//! moment it is published. So the order is the one in which things happened.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_proto::any;
use gantry_proto::containerd::events as wire;
use gantry_proto::containerd::services::images::v1 as images;
use gantry_proto::containerd::types::Envelope;
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::namespace::Namespace;
use gantry_proto::time;
use tokio::sync::{broadcast, mpsc};

use super::images::familiar;
use super::{Engine, Key, Known};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::id::ContainerId;

/// Events that are remembered.
const KEPT: usize = 256;
/// Events that a follower may be behind.
const BEHIND: usize = 1024;

/// What belongs to an event, by name.
pub(super) type Attributes = BTreeMap<String, String>;

/// The events of all namespaces.
pub(super) struct Journal {
    state: Mutex<State>,
}

struct State {
    kept: VecDeque<Arc<Noted>>,
    followers: broadcast::Sender<Arc<Noted>>,
    /// What is said of each container that has run: its end may be told when its record is gone.
    known: HashMap<Key, Attributes>,
}

struct Noted {
    namespace: Namespace,
    event: api::Event,
}

impl Default for Journal {
    fn default() -> Self {
        let state = State {
            kept: VecDeque::with_capacity(KEPT),
            followers: broadcast::Sender::new(BEHIND),
            known: HashMap::new(),
        };
        Self { state: Mutex::new(state) }
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what is to be said of a container.
    pub(super) fn learn(&self, namespace: &Namespace, known: &Known) {
        let attributes = described(&known.container.labels, &known.record.name, &known.record.image);
        self.lock().known.insert((namespace.clone(), known.id.clone()), attributes);
    }

    /// Notes something that happens to a container now. Its removal is the last that is told of it.
    pub(super) fn container(&self, namespace: &Namespace, id: &ContainerId, action: &str, attributes: Attributes) {
        let mut state = self.lock();
        if action == DESTROY {
            state.known.remove(&(namespace.clone(), id.clone()));
        }
        state.note(namespace, event("container", action, id.to_string(), attributes));
    }

    /// Notes something that happens to a container that runs, or has run; of other clients' containers nothing is known
    /// here.
    pub(super) fn of_run(&self, namespace: &Namespace, id: &ContainerId, action: &str, more: &[(&str, &str)]) {
        let mut state = self.lock();
        if let Some(mut attributes) = state.known.get(&(namespace.clone(), id.clone())).cloned() {
            attributes.extend(owned(more));
            state.note(namespace, event("container", action, id.to_string(), attributes));
        }
    }

    /// Notes something that happens to an image now.
    pub(super) fn image(&self, namespace: &Namespace, action: &str, id: &str) {
        let name = familiar(id);
        let attributes = Attributes::from([("name".to_owned(), name.clone())]);
        let id = if name.is_empty() { id.to_owned() } else { name };
        self.lock().note(namespace, event("image", action, id, attributes));
    }

    /// Reads an event of the daemon's.
    pub(super) fn observe(&self, envelope: &Envelope) {
        let Ok(namespace) = Namespace::parse(&envelope.namespace) else { return };
        let Some(data) = &envelope.event else { return };
        match envelope.topic.as_str() {
            "/images/create" => {
                if let Ok(created) = any::unpack::<images::ImageCreate>(data) {
                    self.image(&namespace, "tag", &created.name);
                }
            }
            "/images/update" => {
                if let Ok(updated) = any::unpack::<images::ImageUpdate>(data) {
                    self.image(&namespace, "tag", &updated.name);
                }
            }
            "/images/delete" => {
                if let Ok(deleted) = any::unpack::<images::ImageDelete>(data) {
                    self.image(&namespace, "untag", &deleted.name);
                }
            }
            topic => {
                let Some((id, action)) = of_task(topic, data) else { return };
                let Ok(id) = ContainerId::parse(&id) else { return };
                self.of_run(&namespace, &id, action, &[]);
            }
        }
    }

    /// What is remembered of a namespace since then, and whatever follows.
    fn follow(
        &self,
        namespace: &Namespace,
        since: Option<SystemTime>,
    ) -> (Vec<Arc<Noted>>, broadcast::Receiver<Arc<Noted>>) {
        let state = self.lock();
        let is_wanted = |noted: &&Arc<Noted>| noted.namespace == *namespace && since.is_some_and(|it| noted.at() >= it);
        (state.kept.iter().filter(is_wanted).cloned().collect(), state.followers.subscribe())
    }
}

/// The action that ends what is told of a container.
pub(super) const DESTROY: &str = "destroy";

impl State {
    fn note(&mut self, namespace: &Namespace, event: api::Event) {
        let noted = Arc::new(Noted { namespace: namespace.clone(), event });
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(noted.clone());
        // Nobody may be there to follow.
        let _ = self.followers.send(noted);
    }
}

impl Noted {
    fn at(&self) -> SystemTime {
        self.event.at.as_ref().map_or(SystemTime::UNIX_EPOCH, time::system_time)
    }
}

fn event(kind: &str, action: &str, id: String, attributes: Attributes) -> api::Event {
    let at = Some(time::timestamp(SystemTime::now()));
    api::Event { at, r#type: kind.to_owned(), action: action.to_owned(), id, attributes }
}

fn owned(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
}

/// What is said of a container in each of its events.
pub(super) fn described(labels: &BTreeMap<String, String>, name: &str, image: &str) -> Attributes {
    let mut attributes = labels.clone();
    attributes.insert("name".to_owned(), name.to_owned());
    attributes.insert("image".to_owned(), image.to_owned());
    attributes
}

/// What a task's event says of its container. Its start and end the engine notes itself: a shim's events come on another
/// way than what the engine waits for, and may come later.
fn of_task(topic: &str, data: &prost_types::Any) -> Option<(String, &'static str)> {
    Some(match topic {
        "/tasks/oom" => (any::unpack::<wire::TaskOom>(data).ok()?.container_id, "oom"),
        "/tasks/paused" => (any::unpack::<wire::TaskPaused>(data).ok()?.container_id, "pause"),
        "/tasks/resumed" => (any::unpack::<wire::TaskResumed>(data).ok()?.container_id, "unpause"),
        _ => return None,
    })
}

impl Engine {
    /// Notes something that happens to a container now.
    pub(super) fn note(&self, namespace: &Namespace, known: &Known, action: &str, more: &[(&str, &str)]) {
        let mut attributes = described(&known.container.labels, &known.record.name, &known.record.image);
        attributes.extend(owned(more));
        self.shared.journal.container(namespace, &known.id, action, attributes);
    }

    /// Notes something that happens to an image now.
    pub(super) fn note_image(&self, context: &Context, action: &str, id: &str) {
        self.shared.journal.image(&context.namespace, action, id);
    }

    /// Sends what has happened since then, and what happens until the other time comes or the client goes.
    ///
    /// # Errors
    /// `ResourceExhausted` for a client that does not read as fast as things happen.
    pub async fn events(
        &self,
        context: &Context,
        request: &api::EventsRequest,
        sender: mpsc::Sender<Result<api::Event>>,
    ) -> Result<()> {
        let (since, until) =
            (request.since.as_ref().map(time::system_time), request.until.as_ref().map(time::system_time));
        let (before, mut after) = self.shared.journal.follow(&context.namespace, since);
        for noted in before {
            if until.is_none_or(|until| noted.at() <= until) && sender.send(Ok(noted.event.clone())).await.is_err() {
                return Ok(());
            }
        }
        let end = async {
            match until {
                Some(until) => tokio::time::sleep(until.duration_since(SystemTime::now()).unwrap_or_default()).await,
                None => std::future::pending().await,
            }
        };
        let following = async {
            loop {
                match after.recv().await {
                    Ok(noted) if noted.namespace == context.namespace => {
                        let _ = sender.send(Ok(noted.event.clone())).await;
                    }
                    Ok(_) => {}
                    Err(_) => {
                        let problem = format!("events: fell {BEHIND} behind: ask again");
                        return Err(Error::new(Kind::ResourceExhausted, problem));
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = sender.closed() => Ok(()),
            () = self.parts().stopping.cancelled() => Err(Error::unavailable("the daemon is stopping")),
            () = end => Ok(()),
            fallen = following => fallen,
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::containerd::services::containers::v1::Container;
    use prost::Name;

    use super::*;
    use crate::engine::Record;

    fn known() -> Known {
        let id = ContainerId::parse("c").expect("id");
        let container = Container { labels: [("a".to_owned(), "b".to_owned())].into(), ..Container::default() };
        Known { id, container, record: Record { name: "web".into(), image: "alpine".into(), ..Record::default() } }
    }

    fn envelope<M: Name>(namespace: &Namespace, topic: &str, message: &M) -> Envelope {
        let event = Some(any::pack(message));
        Envelope { namespace: namespace.to_string(), topic: topic.into(), event, ..Envelope::default() }
    }

    #[test]
    fn a_run_in_dockers_words() {
        let (journal, namespace) = (Journal::default(), Namespace::parse("n").expect("namespace"));
        let oom = wire::TaskOom { container_id: "c".into() };
        // Nobody knows it yet.
        journal.observe(&envelope(&namespace, "/tasks/oom", &oom));
        let (id, said) = (known().id, described(&known().container.labels, "web", "alpine"));
        journal.container(&namespace, &id, "create", said.clone());
        journal.learn(&namespace, &known());
        journal.of_run(&namespace, &id, "start", &[]);
        journal.observe(&envelope(&namespace, "/tasks/oom", &oom));
        journal.of_run(&namespace, &id, "die", &[("exitCode", "3")]);
        journal.container(&namespace, &id, DESTROY, said);
        journal.of_run(&namespace, &id, "die", &[]);
        let image = images::ImageDelete { name: "docker.io/library/alpine:latest".into() };
        journal.observe(&envelope(&namespace, "/images/delete", &image));
        let (all, _) = journal.follow(&namespace, Some(SystemTime::UNIX_EPOCH));
        let actions: Vec<&str> = all.iter().map(|noted| noted.event.action.as_str()).collect();
        assert_eq!(actions, ["create", "start", "oom", "die", "destroy", "untag"]);
        let of = |place: usize, key: &str| all[place].event.attributes.get(key).map(String::as_str);
        assert_eq!((of(3, "exitCode"), of(3, "name"), of(3, "a")), (Some("3"), Some("web"), Some("b")));
        assert_eq!(of(5, "name"), Some("alpine:latest"));
        let elsewhere = Namespace::parse("m").expect("namespace");
        assert!(journal.follow(&elsewhere, Some(SystemTime::UNIX_EPOCH)).0.is_empty());
        assert!(journal.follow(&namespace, None).0.is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let (journal, namespace) = (Journal::default(), Namespace::parse("n").expect("namespace"));
        for number in 0..=KEPT {
            journal.image(&namespace, "pull", &format!("i:{number}"));
        }
        let (all, _) = journal.follow(&namespace, Some(SystemTime::UNIX_EPOCH));
        assert_eq!((all.len(), all[0].event.id.as_str()), (KEPT, "i:1"));
    }
}
