//! What shims report: kept where the daemon needs it, and passed on to whoever subscribed.

use std::sync::atomic::Ordering;

use gantry_proto::any;
use gantry_proto::containerd::events::{TaskExit, TaskOom, TaskPaused, TaskResumed};
use gantry_proto::containerd::types::Envelope;
use gantry_proto::namespace::Namespace;
use prost_types::Any;

use super::{Exit, Tasks};
use crate::error::Result;
use crate::id::ContainerId;

impl Tasks {
    /// Takes an event from a shim.
    ///
    /// # Errors
    /// `InvalidArgument` naming what the envelope lacks.
    pub fn observe(&self, envelope: Envelope) -> Result<()> {
        if let (Ok(namespace), Some(event)) = (Namespace::parse(&envelope.namespace), &envelope.event) {
            self.note(&namespace, event);
        }
        self.parts().events.forward(envelope)
    }

    /// Keeps what the daemon itself needs of an event.
    fn note(&self, namespace: &Namespace, event: &Any) {
        let task = |id: &str| self.get(namespace, &ContainerId::parse(id).ok()?).ok();
        // Shims report a memory kill before the exit it causes, so it is known when the exit is looked at.
        if let Ok(oom) = any::unpack::<TaskOom>(event) {
            if let Some(task) = task(&oom.container_id) {
                task.oom_killed.store(true, Ordering::SeqCst);
            }
        } else if let Ok(exit) = any::unpack::<TaskExit>(event) {
            if let Some(task) = task(&exit.container_id).filter(|_| exit.id == exit.container_id) {
                let exit = Exit::of(exit.pid, exit.exit_status, exit.exited_at.as_ref());
                task.reported.send_replace(Some(exit));
            }
        } else if let Ok(paused) = any::unpack::<TaskPaused>(event) {
            if let Some(task) = task(&paused.container_id) {
                task.paused.store(true, Ordering::SeqCst);
            }
        } else if let Ok(resumed) = any::unpack::<TaskResumed>(event)
            && let Some(task) = task(&resumed.container_id)
        {
            task.paused.store(false, Ordering::SeqCst);
        }
    }
}
