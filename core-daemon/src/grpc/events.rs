//! `containerd.services.events.v1.Events`.

use gantry_proto::containerd::services::events::v1::events_server::Events;
use gantry_proto::containerd::services::events::v1::{ForwardRequest, PublishRequest, SubscribeRequest};
use gantry_proto::containerd::types::Envelope;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Answers;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::events;
use crate::filter::Filter;

/// The service.
pub struct EventsService {
    events: events::Events,
    stopping: CancellationToken,
}

impl EventsService {
    /// The service over this bus. Subscriptions end when the daemon stops.
    pub fn new(events: events::Events, stopping: CancellationToken) -> Self {
        Self { events, stopping }
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    type SubscribeStream = Answers<Envelope>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(request.metadata())?;
        let request = request.into_inner();
        events::check_topic(&request.topic)?;
        self.events.publish(&context.namespace, &request.topic, request.event.unwrap_or_default());
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = request.into_inner().envelope.ok_or_else(|| Error::invalid("envelope is required"))?;
        self.events.forward(envelope)?;
        Ok(Response::new(()))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let filter = Filter::parse(&request.get_ref().filters)?;
        let state = (self.events.subscribe(filter), self.stopping.clone());
        let answers = futures_util::stream::try_unfold(state, |(mut subscription, stopping)| async move {
            tokio::select! {
                event = subscription.next() => {
                    let event = event.map_err(Status::from)?;
                    Ok(Some(((*event).clone(), (subscription, stopping))))
                }
                () = stopping.cancelled() => Err(Status::unavailable("the daemon is stopping")),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
