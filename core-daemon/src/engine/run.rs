//! `gantry run`: create, attach, start and wait over one stream, so that no byte and no exit falls between two calls.

use std::sync::Arc;

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::run_output::Event;

use super::attach::{Input, Output};
use super::{Created, Engine};
use crate::context::Context;
use crate::error::Result;
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
        let auto_remove = request.auto_remove;
        let created = self.create(context, request, progress).await?;
        let tell = |event| output.sender.send(Ok(api::RunOutput { event: Some(event) }));
        let _ = tell(Event::Created(announcement(&created))).await;
        let known = self.find(context, created.id.as_str())?;
        let (engine, namespace) = (self.clone(), context.namespace.clone());
        // Started to the end even if the client goes now: half a start is nobody's.
        let start = tokio::spawn(async move {
            let started = engine.start_known(&namespace, &known, true).await;
            if started.is_err()
                && auto_remove
                && let Err(error) = engine.remove_now(&namespace, &known.id).await
            {
                tracing::warn!(id = %known.id, %error, "remove a container that did not start");
            }
            started
        });
        let (live, socket) =
            start.await.map_err(|error| crate::error::Error::internal(format!("start: {error}")))??;
        let _ = tell(Event::Started(api::Started { pid: live.task.pid() })).await;
        match socket {
            Some(socket) => self.container_session(&live, auto_remove, socket, input, output).await,
            None => Ok(()),
        }
    }
}

/// A new container, as messages announce it.
pub(super) fn announcement(created: &Created) -> api::Created {
    api::Created { id: created.id.to_string(), name: created.name.clone(), warnings: created.warnings.clone() }
}

impl From<Created> for api::Created {
    fn from(created: Created) -> Self {
        announcement(&created)
    }
}
