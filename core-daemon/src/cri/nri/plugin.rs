//! One plugin, while it is connected.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Event;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::frame::MAX_MESSAGE;
use gantry_proto::ttrpc::{Client, Context};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// What a plugin answers.
const SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The version of the interface that has these events and fields.
const INTERFACE: &str = "v0.12.0";
/// Bits of the events that there are.
const ALL: i32 = (1 << (Event::Last as i32 - 1)) - 1;
/// Bytes of a message that are kept for what is around its items.
const SPARE: usize = 4096;

/// How a plugin is called, and its place among the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Two digits.
    pub(super) index: String,
    /// The rest.
    pub(super) base: String,
}

impl Name {
    /// The name of these parts.
    ///
    /// # Errors
    /// `InvalidArgument` where the index is not two digits, or the name has other characters than those of file names.
    pub(super) fn new(index: &str, base: &str) -> Result<Self> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::invalid(format!("plugin_idx: {index:?} is not two digits")));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        if base.is_empty() || base.len() > 255 || !base.bytes().all(plain) {
            return Err(Error::invalid(format!("plugin_name: {base:?} is not made of letters, digits, -, _, . and +")));
        }
        Ok(Self { index: index.to_owned(), base: base.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.base)
    }
}

/// A plugin that has registered.
pub(super) struct Plugin {
    pub(super) name: Name,
    events: i32,
    pub(super) client: Client,
    patience: Duration,
    /// It knows one call for all events that are no questions.
    is_old: AtomicBool,
    /// Cancelled once it is not to be asked any more.
    pub(super) dropped: CancellationToken,
}

/// A pod, and a container of it where that is what something happens to.
#[derive(Debug, Clone, Default)]
pub(super) struct Subject {
    pub(super) pod: api::PodSandbox,
    pub(super) container: Option<api::Container>,
}

impl Subject {
    /// The request of an event: all that are no questions have the same form.
    pub(super) fn request(&self) -> Vec<u8> {
        let (pod, container) = (Some(self.pod.clone()), self.container.clone());
        api::PostCreateContainerRequest { pod, container }.encode_to_vec()
    }
}

/// What a plugin is told of the daemon.
pub(super) struct Welcome {
    pub(super) config: String,
    pub(super) registration: Duration,
    pub(super) patience: Duration,
}

impl Plugin {
    /// Asks a plugin that has registered which events it wants.
    ///
    /// # Errors
    /// What it answers, or that it does not.
    pub(super) async fn configure(name: Name, client: Client, welcome: Welcome) -> Result<Self> {
        let patience = welcome.patience;
        let milliseconds = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let mut plugin = Self {
            name,
            events: 0,
            client,
            patience,
            is_old: AtomicBool::new(false),
            dropped: CancellationToken::new(),
        };
        let request = api::ConfigureRequest {
            config: welcome.config,
            runtime_name: "gantryd".to_owned(),
            runtime_version: crate::VERSION.to_owned(),
            registration_timeout: milliseconds(welcome.registration),
            request_timeout: milliseconds(patience),
            nri_version: INTERFACE.to_owned(),
        };
        let answer: api::ConfigureResponse = plugin.question("Configure", &request, patience).await?;
        if answer.events & !ALL != 0 {
            return Err(Error::invalid(format!("events: {:#x} are unknown", answer.events & !ALL)));
        }
        plugin.events = if answer.events == 0 { ALL } else { answer.events };
        Ok(plugin)
    }

    /// Whether it wants to know of such events.
    pub(super) fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0 && !self.dropped.is_cancelled()
    }

    /// Tells it all pods and containers, in as many messages as it takes.
    ///
    /// # Errors
    /// What it answers, or that it does not.
    pub(super) async fn synchronize(
        &self,
        pods: Vec<api::PodSandbox>,
        containers: Vec<api::Container>,
        patience: Duration,
    ) -> Result<Vec<api::ContainerUpdate>> {
        let mut messages = in_parts(pods, containers, MAX_MESSAGE - SPARE)?.into_iter().peekable();
        while let Some(request) = messages.next() {
            let answer: api::SynchronizeResponse = self.question("Synchronize", &request, patience).await?;
            if messages.peek().is_none() {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(Error::unimplemented(
                    "there is more than fits a message, and it does not take it in parts",
                ));
            }
        }
        Ok(Vec::new())
    }

    /// Tells it that it is not needed any more.
    pub(super) async fn shut_down(&self, patience: Duration) {
        let told: Result<api::Empty> = self.question("Shutdown", &api::Empty {}, patience).await;
        if let Err(error) = told {
            tracing::debug!(plugin = %self.name, %error, "tell a plugin that the daemon stops");
        }
    }

    /// Asks it about something that happens. None: it does not want to know, or is not there any more.
    ///
    /// # Errors
    /// What it answers.
    pub(super) async fn ask<A: Message + Default>(&self, event: Event, request: &[u8]) -> Result<Option<A>> {
        if !self.wants(event) {
            return Ok(None);
        }
        let answer = match self.send(method(event), request.to_vec(), self.patience).await {
            Ok(answer) => answer,
            // It was made before there was this.
            Err(status) if status.code == Code::Unimplemented => return Ok(None),
            Err(status) => return self.failed(event, status).map(|()| None),
        };
        match A::decode(answer.as_slice()) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => {
                self.drop_for(method(event), &format!("the answer cannot be read: {error}"));
                Ok(None)
            }
        }
    }

    /// Tells it what happens, by the call that it knows.
    ///
    /// # Errors
    /// What it answers.
    pub(super) async fn tell(&self, event: Event, subject: &Subject, request: &[u8]) -> Result<()> {
        if !self.wants(event) {
            return Ok(());
        }
        if !self.is_old.load(Ordering::Relaxed) {
            match self.send(method(event), request.to_vec(), self.patience).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code == Code::Unimplemented => self.is_old.store(true, Ordering::Relaxed),
                Err(status) => return self.failed(event, status),
            }
            tracing::info!(plugin = %self.name, "plugin knows StateChange instead of {}", method(event));
        }
        let (pod, container) = (Some(subject.pod.clone()), subject.container.clone());
        let change = api::StateChangeEvent { event: event.into(), pod, container };
        match self.send("StateChange", change.encode_to_vec(), self.patience).await {
            Err(status) if status.code != Code::Unimplemented => self.failed(event, status),
            _ => Ok(()),
        }
    }

    async fn send(&self, method: &str, request: Vec<u8>, patience: Duration) -> Result<Vec<u8>, Status> {
        self.client.call_bytes(SERVICE, method, request, &Context::new().with_timeout(patience)).await
    }

    async fn question<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        patience: Duration,
    ) -> Result<A> {
        let context = Context::new().with_timeout(patience);
        let answer = self.client.call(SERVICE, method, request, &context).await;
        answer.map_err(|status| Error::new(Kind::Unknown, format!("{method}: {status}")))
    }

    /// A plugin that is gone or hangs is dropped, and whatever it was asked goes on without it; what it refuses is refused.
    fn failed(&self, event: Event, status: Status) -> Result<()> {
        if self.client.is_closed() || matches!(status.code, Code::DeadlineExceeded) {
            self.drop_for(method(event), &status.to_string());
            return Ok(());
        }
        Err(Error::new(Kind::Unknown, format!("plugin {}: {}: {status}", self.name, method(event))))
    }

    fn drop_for(&self, method: &str, reason: &str) {
        tracing::warn!(plugin = %self.name, method, reason, "plugin of the node resource interface is dropped");
        self.dropped.cancel();
    }
}

/// The call of an event.
pub(super) fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// All pods and then all containers in messages of at most `most` bytes of them, at least one message.
fn in_parts(
    pods: Vec<api::PodSandbox>,
    containers: Vec<api::Container>,
    most: usize,
) -> Result<Vec<api::SynchronizeRequest>> {
    /// Bytes of an item in a list beside its own.
    const AROUND: usize = 8;
    let (mut messages, mut room) = (vec![api::SynchronizeRequest::default()], most);
    let mut place = |id: &str, length: usize, messages: &mut Vec<api::SynchronizeRequest>| {
        if length + AROUND > most {
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("{id}: {length} bytes are too much for a message"),
            ));
        }
        if length + AROUND > room {
            messages.iter_mut().for_each(|message| message.more = true);
            messages.push(api::SynchronizeRequest::default());
            room = most;
        }
        room -= length + AROUND;
        Ok(messages.len() - 1)
    };
    for pod in pods {
        let at = place(&pod.id, pod.encoded_len(), &mut messages)?;
        messages[at].pods.push(pod);
    }
    for container in containers {
        let at = place(&container.id, container.encoded_len(), &mut messages)?;
        messages[at].containers.push(container);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_an_index_and_the_rest() {
        assert_eq!(Name::new("05", "a.b-c").expect("name").to_string(), "05-a.b-c");
        for (index, base) in [("5", "a"), ("a5", "a"), ("05", ""), ("05", "a b"), ("05", "a/b"), ("005", "a")] {
            assert!(Name::new(index, base).is_err(), "{index} {base}");
        }
    }

    #[test]
    fn every_event_has_its_bit_and_its_call() {
        assert_eq!(ALL, 0x3fff);
        for number in 1..Event::Last as i32 {
            let event = Event::try_from(number).expect("known");
            assert_eq!(method(event).to_uppercase(), event.as_str_name().replace('_', ""), "{number}");
        }
    }

    #[test]
    fn what_does_not_fit_a_message_is_split() {
        let pod = |number: usize| api::PodSandbox { id: format!("{number:090}"), ..Default::default() };
        let container = |number: usize| api::Container { id: format!("{number:090}"), ..Default::default() };
        let messages = in_parts((0..3).map(pod).collect(), (0..4).map(container).collect(), 210).expect("parts");
        let counts: Vec<_> = messages.iter().map(|one| (one.pods.len(), one.containers.len(), one.more)).collect();
        assert_eq!(counts, [(2, 0, true), (1, 1, true), (0, 2, true), (0, 1, false)]);
        assert!(messages.iter().all(|message| message.encoded_len() <= 212));
        assert_eq!(in_parts(Vec::new(), Vec::new(), 210).expect("nothing").len(), 1);
        assert!(in_parts(vec![pod(1)], Vec::new(), 50).is_err());
    }
}
