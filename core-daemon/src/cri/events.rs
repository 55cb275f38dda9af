//! What happens to containers, told to whoever subscribed.
//!
//! A subscriber lists first, then hears what changes. One that does not read in time is told that it missed something,
//! and lists again.

use gantry_proto::runtime::v1;
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;
use tonic::Status;

use super::container::status_of;
use super::runtime::Answers;
use super::sandbox::status::sandbox_status;
use super::store::now;
use super::{Cri, Sandbox};
use crate::error::{Error, Kind, Result};

/// Events that a subscriber may be behind.
const BEHIND: usize = 1024;

/// The way to all subscribers.
pub(super) struct Subscribers {
    sender: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Cri {
    pub(super) async fn get_container_events(
        &self,
        _: v1::GetEventsRequest,
    ) -> Result<Answers<v1::ContainerEventResponse>> {
        let events = BroadcastStream::new(self.subscribers().sender.subscribe());
        let stopping = self.parts().stopping.clone();
        let missed = |_| {
            let text = format!("events: more than {BEHIND} were not read in time; list containers and subscribe again");
            Status::from(Error::new(Kind::DataLoss, text))
        };
        let events = events.map(move |event| event.map_err(missed));
        let ends = stopping.cancelled_owned();
        Ok(Box::pin(futures_util::StreamExt::take_until(events, ends)))
    }

    /// Tells whoever subscribed what happened to a container of the sandbox `pod`, or to the sandbox itself, which counts
    /// as one.
    pub(super) fn announce(&self, id: &str, pod: &str, kind: v1::ContainerEventType) {
        self.announce_of(self.store().sandbox(pod).ok().as_deref(), id, pod, kind);
    }

    /// The same of a sandbox that may be in the store no more: kubelets leave out what comes without its status.
    pub(super) fn announce_of(&self, sandbox: Option<&Sandbox>, id: &str, pod: &str, kind: v1::ContainerEventType) {
        let sender = &self.subscribers().sender;
        // Statuses are worth their making only where somebody reads them.
        if sender.receiver_count() == 0 {
            return;
        }
        let pod_sandbox_status = sandbox.map(sandbox_status);
        let containers = self.store().containers_of(pod);
        let names = self.image_names();
        let containers_statuses = containers.iter().map(|container| status_of(container, &names)).collect();
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status,
            containers_statuses,
        };
        // Fails only where the last subscriber has just gone.
        let _ = sender.send(event);
    }
}
