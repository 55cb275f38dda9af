//! Removing containers. Each step may be repeated. The record goes with its snapshot's, and the container's own directory
//! last: its log says of a record that the container has run.

use std::time::Duration;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::namespace::Namespace;

use super::events::DESTROY;
use super::{Engine, Known, Record};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::id::ContainerId;
use crate::metadata::WriteTx;
use crate::records::Containers;
use crate::signals::SIGKILL;

/// How long a removal waits for the container's end to be recorded and its task to be deleted.
const SETTLED: Duration = Duration::from_secs(10);

impl Engine {
    /// Removes a container, killing it first where the request says so, and returns its id.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs, unless forced.
    pub async fn remove(&self, context: &Context, request: &api::RemoveRequest) -> Result<ContainerId> {
        let known = self.find(context, &request.r#ref)?;
        let _turn = self.shared.turns.take((context.namespace.clone(), known.id.clone())).await;
        if let Some(live) = self.running(&context.namespace, &known.id) {
            if !request.force {
                let name = &known.record.name;
                return Err(Error::precondition(format!(
                    "container {name}: is running; stop it first, or remove it with --force"
                )));
            }
            self.mark_stopped(&context.namespace, &known).await?;
            self.end_run(&known, &live, SIGKILL, Duration::ZERO).await?;
        }
        let live = self.live().get(&(context.namespace.clone(), known.id.clone())).cloned();
        if let Some(live) = live {
            // If the end cannot be recorded, as on a full disk, that does not matter any more.
            let _ = tokio::time::timeout(SETTLED, live.settled()).await;
        }
        match self.remove_now(&context.namespace, &known.id).await {
            // It had `--rm`, and has been removed by that, which waited for no disk.
            Err(error) if error.kind() == Kind::NotFound && known.record.auto_remove => {
                let engine = self.clone();
                blocking(move || engine.parts().containers.flush(engine.parts().containers.undone())).await?;
            }
            removed => removed?,
        }
        Ok(known.id)
    }

    /// Removes a container that does not run.
    pub(super) async fn remove_now(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        self.parts().tasks.delete_left(namespace, id).await?;
        let (engine, namespace, id) = (self.clone(), namespace.clone(), id.clone());
        blocking(move || engine.remove_files(&namespace, &id)).await
    }

    /// Removes a container with `--rm` that has ended. Nobody waits for the disk: if the machine fails first, the container
    /// is there again at the next start, and is removed because it has run.
    pub(super) async fn remove_ended(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        let (engine, of) = (self.clone(), (namespace.clone(), id.clone()));
        blocking(move || {
            let before = engine.parts().containers.undone();
            engine.forget(&of.0, &of.1, true)?;
            // Beside the answer to the caller.
            tokio::task::spawn_blocking(move || engine.surely_forgotten(&of.0, &of.1, before));
            Ok(())
        })
        .await
    }

    pub(super) fn remove_files(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        self.forget(namespace, id, false)?;
        self.forgotten(namespace, id);
        Ok(())
    }

    /// The first half of a removal: there is no such container any more. Where `soon`, that is not flushed.
    fn forget(&self, namespace: &Namespace, id: &ContainerId, soon: bool) -> Result<()> {
        let container = self.parts().containers.get(namespace, id)?;
        // The shim removes its socket; a dead one did not.
        let _ = std::fs::remove_file(self.socket(id));
        self.remove_records(namespace, id, &container, soon)?;
        self.shared.names.forget(namespace, id);
        if let Ok(Some(record)) = Record::of(&container) {
            self.note(namespace, &Known { id: id.clone(), container, record }, DESTROY, &[]);
        }
        Ok(())
    }

    /// The second half: what was kept beside the record goes once that is gone for good.
    fn forgotten(&self, namespace: &Namespace, id: &ContainerId) {
        failpoint::hit("engine.removed.record");
        self.remove_directory(namespace, id);
        self.parts().gc.changed();
    }

    /// As [`Engine::forgotten`], where the first half was not flushed: somebody else's failed write may have undone it.
    fn surely_forgotten(&self, namespace: &Namespace, id: &ContainerId, before: u64) {
        let removed = match self.parts().containers.flush(before) {
            Ok(()) => return self.forgotten(namespace, id),
            Err(error) if self.is_gone(namespace, id) => Err(error),
            Err(_) => self.remove_files(namespace, id),
        };
        if let Err(error) = removed {
            tracing::warn!(%namespace, %id, %error, "a removed container may be there again until the next start");
        }
    }

    /// Removes the records of the container and of its snapshot in one transaction, so that a power failure leaves no
    /// container without its files.
    fn remove_records(&self, namespace: &Namespace, id: &ContainerId, container: &Container, soon: bool) -> Result<()> {
        let containers = &self.parts().containers;
        if container.snapshot_key.is_empty() {
            return containers.delete(namespace, id);
        }
        let snapshotter = self.parts().snapshotters.get(&container.snapshotter)?;
        let context = Context::new(namespace.clone());
        let mut also = |tx: &WriteTx| Containers::delete_in(tx, namespace, id);
        match snapshotter.remove_with(&context, &container.snapshot_key, soon, &mut also) {
            Err(error) if error.kind() == Kind::NotFound => containers.delete(namespace, id),
            removed => removed.map(|()| containers.announce_deleted(namespace, id)),
        }
    }

    /// Removes what is kept of a container beside its record. What cannot be removed now waits for the next start.
    pub(super) fn remove_directory(&self, namespace: &Namespace, id: &ContainerId) {
        let directory = self.directory(namespace, id);
        if let Err(error) = rung_sys::beneath::remove(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %directory.display(), %error, "left the directory of a removed container");
        }
        self.shared.cap.ended(&(namespace.clone(), id.clone()));
    }
}
