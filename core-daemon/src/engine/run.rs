//! `gantry run`: create, attach, start and wait over one stream, so that no byte and no exit falls between two calls.

use std::sync::Arc;

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::run_output::Event;
use gantry_proto::namespace::Namespace;

use super::attach::{Input, Output, Process};
use super::{Created, Engine};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::id::ContainerId;
use crate::image::Progress;

impl Engine {
    /// Makes a container, starts it attached, and stays with it until it ends or the client goes.
    ///
    /// # Errors
    /// What keeps the container from being made or started.
    pub async fn run(
        &self,
        context: &Context,
        request: api::CreateRequest,
        progress: Arc<dyn Progress>,
        input: impl Input,
        output: Output<api::RunOutput>,
    ) -> Result<()> {
        let (auto_remove, closes_input) = (request.auto_remove, request.open_stdin);
        let gone_away = output.sender.closed();
        let (created, begun) = self.create_perhaps_begun(context, request, progress, gone_away, true).await?;
        let tell = |event| output.sender.send(Ok(api::RunOutput { event: Some(event) }));
        if tell(Event::Created(announcement(&created))).await.is_err() {
            // The client has gone before it was told of the container: nobody else knows of it.
            drop(begun);
            self.remove_unwanted(&context.namespace, &created.id).await;
            return Err(gone());
        }
        // Carried out to the end even if the client goes now, so that no start is left half done.
        let (live, socket) = self.start_begun(&context.namespace, &created.id, true, begun).await?;
        let _ = tell(Event::Started(api::Started { pid: live.task.pid() })).await;
        match socket {
            Some(socket) => {
                let process = Process { task: live.task.clone(), exec: None, closes_input };
                self.container_session(&live, process, auto_remove, socket, input, output).await
            }
            None => Ok(()),
        }
    }

    pub(super) async fn remove_unwanted(&self, namespace: &Namespace, id: &ContainerId) {
        if let Err(error) = self.remove_now(namespace, id).await {
            tracing::warn!(%id, %error, "remove a container that did not start");
        }
    }
}

/// The error of a call that was given up because its client has gone.
pub(super) fn gone() -> Error {
    Error::new(Kind::Canceled, "the client has gone")
}

/// A new container, as messages announce it.
pub(super) fn announcement(created: &Created) -> api::Created {
    api::Created { id: created.id.to_string(), name: created.name.clone() }
}

impl From<Created> for api::Created {
    fn from(created: Created) -> Self {
        announcement(&created)
    }
}
