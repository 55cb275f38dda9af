//! Tells the daemon what happens, in order.
//!
//! Events go through one queue and one sender, so that their order on the wire is the order of their publication. While
//! the daemon is away they are kept, within a bound; when it comes back (it connects to us) they are sent at once.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_proto::containerd::types::Envelope;
use gantry_proto::namespace::NAMESPACE_TTRPC;
use gantry_proto::ttrpc::{Client, Context};
use gantry_proto::{any, time};
use prost::{Message, Name};
use tokio::sync::{Notify, watch};

use crate::bootstrap::Setting;
use crate::error::Kind;
use crate::reaper::{self, Reaper};
use crate::{Doing, Error, Result, memory_file};

/// The daemon's service for events.
const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// Events kept for a daemon that is away; then the oldest are given up, and the daemon asks for states anyway.
const MAX_QUEUE: usize = 2048;
/// How long one event may take to be taken.
const SEND: Duration = Duration::from_secs(5);
/// How often an event that the daemon refuses is sent before it is given up: the next ones wait behind it.
const REFUSALS: u32 = 5;
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A handle to publish with; clones share the queue.
#[derive(Debug, Clone)]
pub struct Events {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    namespace: String,
    events: Mutex<VecDeque<Envelope>>,
    length: watch::Sender<usize>,
    nudge: Notify,
}

/// Where events go.
#[derive(Debug)]
enum Destination {
    Socket { path: String, client: Option<Client> },
    Program { path: PathBuf, address: String, namespace: String, reaper: Reaper },
    Nowhere,
}

impl Events {
    /// Starts the sender.
    pub fn start(setting: &Setting, reaper: Reaper) -> Self {
        let queue = Arc::new(Queue {
            namespace: setting.namespace.clone(),
            events: Mutex::default(),
            length: watch::Sender::default(),
            nudge: Notify::new(),
        });
        tokio::spawn(send_all(queue.clone(), Destination::of(setting, reaper)));
        Self { queue }
    }

    /// Queues an event.
    pub fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(time::now()),
            namespace: self.queue.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(any::pack(event)),
        };
        let mut events = self.queue.lock();
        if events.len() >= MAX_QUEUE {
            let lost = events.pop_front();
            tracing::warn!(topic = lost.map(|lost| lost.topic), "event queue is full; the oldest event is given up");
        }
        events.push_back(envelope);
        self.queue.length.send_replace(events.len());
    }

    /// Tries now what failed before: the daemon is back.
    pub fn nudge(&self) {
        self.queue.nudge.notify_waiters();
    }

    /// Resolves when everything has been sent.
    pub async fn drained(&self) {
        let _ = self.queue.length.subscribe().wait_for(|length| *length == 0).await;
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self) -> Option<Envelope> {
        self.lock().front().cloned()
    }

    /// Takes off `sent`, unless the bound has taken it off meanwhile.
    fn done(&self, sent: &Envelope) {
        let mut events = self.lock();
        if events.front() == Some(sent) {
            events.pop_front();
        }
        self.length.send_replace(events.len());
    }
}

async fn send_all(queue: Arc<Queue>, mut destination: Destination) {
    let mut length = queue.length.subscribe();
    let mut pause = PAUSES.0;
    let mut refusals = 0;
    while length.wait_for(|length| *length > 0).await.is_ok() {
        let Some(event) = queue.first() else { continue };
        match destination.send(&event).await {
            Ok(()) => {
                queue.done(&event);
                (pause, refusals) = (PAUSES.0, 0);
            }
            Err(error) if destination.has_answered() && refusals + 1 >= REFUSALS => {
                tracing::warn!(%error, topic = event.topic, "the daemon does not take an event; it is given up");
                queue.done(&event);
                (pause, refusals) = (PAUSES.0, 0);
            }
            Err(error) => {
                refusals += u32::from(destination.has_answered());
                tracing::debug!(%error, topic = event.topic, "event not delivered yet");
                let _ = tokio::time::timeout(pause, queue.nudge.notified()).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

impl Destination {
    fn of(setting: &Setting, reaper: Reaper) -> Self {
        if !setting.events_address.is_empty() {
            let path = setting.events_address.strip_prefix("unix://").unwrap_or(&setting.events_address).to_owned();
            return Self::Socket { path, client: None };
        }
        if setting.publish_binary.as_os_str().is_empty() {
            return Self::Nowhere;
        }
        Self::Program {
            path: setting.publish_binary.clone(),
            address: setting.grpc_address.clone(),
            namespace: setting.namespace.clone(),
            reaper,
        }
    }

    /// Whether the last event reached the daemon, even if the daemon refused it.
    fn has_answered(&self) -> bool {
        matches!(self, Self::Socket { client: Some(_), .. })
    }

    async fn send(&mut self, event: &Envelope) -> Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Socket { path, client } => {
                let connected = match client.take().filter(|client| !client.is_closed()) {
                    Some(client) => client,
                    None => Client::connect(path.as_str()).await.doing(|| format!("connect to {path}"))?,
                };
                let request = ForwardRequest { envelope: Some(event.clone()) };
                let context = Context::new().with(NAMESPACE_TTRPC, &event.namespace).with_timeout(SEND);
                let answer = connected.call::<_, ()>(SERVICE, "Forward", &request, &context).await;
                // A connection on which nothing came is made again.
                let silent = answer.as_ref().is_err_and(|status| status.code == Kind::DeadlineExceeded);
                *client = Some(connected).filter(|client| !silent && !client.is_closed());
                answer.map_err(Error::from)
            }
            Self::Program { path, address, namespace, reaper } => {
                let payload = event.event.as_ref().map(Message::encode_to_vec).unwrap_or_default();
                let input = memory_file::holding(c"event", &payload)?;
                let mut command = Command::new(&*path);
                command.args(["--address", address, "publish", "--topic", &event.topic, "--namespace", namespace]);
                command.stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::null());
                let child = command.spawn().doing(|| format!("start {}", path.display()))?;
                let pid = reaper::number_of(&child)?;
                let exited = tokio::time::timeout(SEND, reaper.child(pid)).await;
                match exited {
                    Ok(Ok(exited)) if exited.status == 0 => Ok(()),
                    Ok(Ok(exited)) => {
                        Err(Error::internal(format!("{}: exit status {}", path.display(), exited.status)))
                    }
                    _ => {
                        let pid = rung_sys::process::Pid::from_raw(pid);
                        let _ = rung_sys::signal::send(pid, nix::libc::SIGKILL);
                        Err(Error::internal(format!("{}: not done within {SEND:?}", path.display())))
                    }
                }
            }
        }
    }
}
