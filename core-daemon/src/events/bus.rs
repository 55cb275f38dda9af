//! Publish and subscribe inside the daemon.
//!
//! A subscriber gets what is published after it subscribed, in order. Its queue is bounded: one that does not read is
//! cut off and told so, because silently leaving out an exit is worse than an ended stream, after which a client looks
//! at the state of things anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_proto::containerd::types::Envelope;
use gantry_proto::namespace::Namespace;
use prost_types::Any;
use tokio::sync::mpsc;

use super::topics::{check_topic, field};
use crate::error::{Error, Kind, Result};
use crate::filter::Filter;

/// Events a subscriber may be behind.
const QUEUE: usize = 4096;

/// Where events are published; clones are the same bus.
#[derive(Debug, Clone, Default)]
pub struct Events {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Subscriber>,
    observer: Option<Observer>,
}

/// A function that sees every event, without a queue that could overflow.
type Observer = Box<dyn Fn(&Envelope) + Send>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("subscribers", &self.subscribers).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Arc<Envelope>>,
}

/// A subscriber's end.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<Arc<Envelope>>,
}

impl Events {
    /// A bus without subscribers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes an event of the daemon's own, now.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) {
        self.send(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(event),
        });
    }

    /// Publishes `message` under its protobuf name, which is how containerd's clients know it.
    pub fn announce<M: prost::Name>(&self, namespace: &Namespace, topic: &str, message: &M) {
        // Packing is skipped where nobody listens.
        let is_wanted = {
            let state = self.lock();
            state.observer.is_some() || !state.subscribers.is_empty()
        };
        if is_wanted {
            self.publish(namespace, topic, Any { type_url: M::full_name(), value: message.encode_to_vec() });
        }
    }

    /// Publishes what a shim or a client observed, with its own time.
    ///
    /// # Errors
    /// `InvalidArgument` naming what the envelope lacks.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        Namespace::parse(&envelope.namespace).map_err(|error| Error::invalid(format!("event namespace: {error}")))?;
        check_topic(&envelope.topic)?;
        if envelope.timestamp.is_none() {
            return Err(Error::invalid(format!("event {}: timestamp is missing", envelope.topic)));
        }
        self.send(envelope);
        Ok(())
    }

    /// Subscribes to what passes `filter` from now on.
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut state = self.lock();
        // While nothing happens, nobody else forgets those that have gone.
        state.subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        state.subscribers.push(Subscriber { filter, queue: sender });
        drop(state);
        Subscription { queue: receiver }
    }

    /// Lets `observer` see every event from now on, in order and before it is published on. It must be quick, and must
    /// not publish anything itself. There is one observer; another takes its place.
    pub fn observe(&self, observer: impl Fn(&Envelope) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    fn send(&self, envelope: Envelope) {
        let envelope = Arc::new(envelope);
        // Sending under the lock gives every subscriber the same order.
        let mut state = self.lock();
        if let Some(observer) = &state.observer {
            observer(&envelope);
        }
        state.subscribers.retain(|subscriber| {
            let wanted = subscriber.filter.matches(|path| field(&envelope, path));
            // A full or closed queue drops the subscriber; its receiver then sees the end.
            if wanted { subscriber.queue.try_send(envelope.clone()).is_ok() } else { !subscriber.queue.is_closed() }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `ResourceExhausted` once everything queued is read, where the subscriber fell too far behind.
    pub async fn next(&mut self) -> Result<Arc<Envelope>> {
        self.queue.recv().await.ok_or_else(|| {
            Error::new(Kind::ResourceExhausted, format!("subscriber fell {QUEUE} events behind: subscribe again"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_proto::containerd::events::ContainerDelete;

    fn namespace() -> Namespace {
        Namespace::parse("test").expect("namespace")
    }

    #[tokio::test]
    async fn subscribers_get_what_passes_their_filter_in_order() {
        let events = Events::new();
        let mut some = events.subscribe(Filter::parse(&["event.id!=b".to_owned()]).expect("filter"));
        let mut all = events.subscribe(Filter::everything());
        for id in ["a", "b", "c"] {
            events.announce(&namespace(), "/containers/delete", &ContainerDelete { id: id.into() });
        }
        let id = |envelope: Arc<Envelope>| field(&envelope, &["event".into(), "id".into()]).expect("id");
        assert_eq!([id(some.next().await.expect("a")), id(some.next().await.expect("c"))], ["a", "c"]);
        assert_eq!(id(all.next().await.expect("a")), "a");
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_is_cut_off_and_told() {
        let events = Events::new();
        let mut slow = events.subscribe(Filter::everything());
        for _ in 0..=QUEUE {
            events.announce(&namespace(), "/containers/delete", &ContainerDelete { id: "x".into() });
        }
        assert!(events.lock().subscribers.is_empty());
        for _ in 0..QUEUE {
            slow.next().await.expect("queued event");
        }
        assert_eq!(slow.next().await.expect_err("cut off").kind(), Kind::ResourceExhausted);
    }

    #[test]
    fn those_that_have_gone_are_forgotten_while_nothing_happens() {
        let events = Events::new();
        for _ in 0..3 {
            drop(events.subscribe(Filter::everything()));
        }
        let _stays = events.subscribe(Filter::everything());
        assert_eq!(events.lock().subscribers.len(), 1);
    }

    #[test]
    fn an_observer_sees_what_nobody_subscribed_to() {
        let (events, seen) = (Events::new(), Arc::new(Mutex::new(Vec::new())));
        let noted = seen.clone();
        events.observe(move |envelope| noted.lock().expect("seen").push(envelope.topic.clone()));
        events.announce(&namespace(), "/containers/delete", &ContainerDelete { id: "x".into() });
        assert_eq!(*seen.lock().expect("seen"), ["/containers/delete"]);
    }

    #[test]
    fn forwarded_envelopes_are_checked() {
        let events = Events::new();
        let whole = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: "n".into(),
            topic: "/tasks/exit".into(),
            event: Some(Any::default()),
        };
        assert!(events.forward(whole.clone()).is_ok());
        assert!(events.forward(Envelope { event: None, ..whole.clone() }).is_ok());
        assert!(events.forward(Envelope { timestamp: None, ..whole.clone() }).is_err());
        assert!(events.forward(Envelope { namespace: String::new(), ..whole.clone() }).is_err());
        assert!(events.forward(Envelope { topic: "exit".into(), ..whole }).is_err());
    }
}
