//! What shims report: kept where the daemon needs it, and passed on to whoever subscribed.

use std::sync::atomic::Ordering;

use gantry_proto::any;
use gantry_proto::containerd::events::TaskOom;
use gantry_proto::containerd::types::Envelope;
use gantry_proto::namespace::Namespace;

use super::Tasks;
use crate::error::Result;
use crate::id::ContainerId;

impl Tasks {
    /// Takes an event from a shim.
    ///
    /// # Errors
    /// `InvalidArgument` naming what the envelope lacks.
    pub fn observe(&self, envelope: Envelope) -> Result<()> {
        // Shims report a memory kill before the exit it causes, so it is known when the exit is looked at.
        if envelope.topic == "/tasks/oom"
            && let Some(Ok(oom)) = envelope.event.as_ref().map(any::unpack::<TaskOom>)
            && let (Ok(namespace), Ok(id)) =
                (Namespace::parse(&envelope.namespace), ContainerId::parse(&oom.container_id))
            && let Ok(task) = self.get(&namespace, &id)
        {
            task.oom_killed.store(true, Ordering::SeqCst);
        }
        self.parts().events.forward(envelope)
    }
}
