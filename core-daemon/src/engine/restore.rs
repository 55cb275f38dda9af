//! Finding the engine's containers again after a restart of the daemon.

use std::path::Path;
use std::time::{Duration, SystemTime};

use gantry_proto::containerd::v1::types::Status;
use gantry_proto::namespace::Namespace;
use tokio::sync::mpsc;

use super::create::OURS;
use super::{Ended, Engine, Known, Record};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Kind, Result};
use crate::id::ContainerId;
use crate::snapshots::Snapshotter;
use crate::tasks::{Exit, Restored};

impl Engine {
    /// Learns the names of all containers. Comes before anything is asked of the engine.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn learn_names(&self) -> Result<()> {
        for (namespace, known) in self.everything()? {
            self.shared.names.learn(&namespace, &known.id, &known.record.name);
        }
        Ok(())
    }

    /// Takes over the runs that tasks were found for, and settles those that ended unseen. `found` has what
    /// [`crate::tasks::Tasks::restore`] reported; what it reports later is dealt with in the background.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn restore(&self, mut found: mpsc::UnboundedReceiver<Restored>) -> Result<()> {
        while let Ok(restored) = found.try_recv() {
            self.take_over(restored).await;
        }
        let engine = self.clone();
        blocking(move || engine.settle_unseen()).await?;
        self.restart_after_restore()?;
        let engine = self.clone();
        tokio::spawn(async move {
            while let Some(restored) = found.recv().await {
                if let Some((namespace, id, ended)) = engine.take_over(restored).await {
                    engine.restart_later(&namespace, &id, ended);
                }
            }
        });
        Ok(())
    }

    /// Answers with what ended, and how.
    async fn take_over(&self, restored: Restored) -> Option<(Namespace, ContainerId, Ended)> {
        match restored {
            Restored::Alive(task) => {
                let known = self.find(&Context::new(task.namespace().clone()), task.id().as_str()).ok()?;
                if task.state(None).await.is_ok_and(|state| state.status == Status::Created) {
                    // The client that asked for this start has got an error; a restart policy will start it again.
                    tracing::warn!(namespace = %task.namespace(), id = %task.id(), "start was cut short; undoing it");
                    self.parts().tasks.discard(&task).await;
                    let exit = Exit::unseen(0);
                    return self.settle_end(task.namespace(), task.id(), exit.at, exit).await;
                }
                self.shared.journal.learn(task.namespace(), &known);
                let started_at = task.bundle().started_at().unwrap_or_else(|| task.bundle().created_at());
                self.supervise(task, started_at, known.record.health, true);
                None
            }
            Restored::Dead { namespace, id, since, exit } => self.settle_end(&namespace, &id, since, exit).await,
        }
    }

    /// Writes down an end that nobody of this daemon waited for.
    async fn settle_end(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        since: SystemTime,
        exit: Exit,
    ) -> Option<(Namespace, ContainerId, Ended)> {
        let ended = Ended { started_at: exit.at, at: exit.at, code: exit.status, oom_killed: false };
        let (engine, of) = (self.clone(), (namespace.clone(), id.clone()));
        let settled = blocking(move || engine.end_unseen(&of.0, &of.1, since, ended)).await;
        if let Err(error) = settled {
            tracing::warn!(%namespace, %id, %error, "settle a container that ended unseen");
        }
        Some((namespace.clone(), id.clone(), ended))
    }

    /// Settles a container that ended while no daemon ran. An end that was recorded after `since` is the end of this
    /// run.
    fn end_unseen(&self, namespace: &Namespace, id: &ContainerId, since: SystemTime, ended: Ended) -> Result<()> {
        // Containers of other clients are their own business.
        let Ok(known) = self.find(&Context::new(namespace.clone()), id.as_str()) else { return Ok(()) };
        if known.record.auto_remove {
            return self.remove_files(namespace, id);
        }
        if known.record.ended.is_none_or(|seen| seen.at < since) {
            self.record_end(namespace, id, ended)?;
        }
        Ok(())
    }

    /// Settles containers that ran when the machine went down: they have a log, but neither a task nor an end. And
    /// removes what is left of containers whose creation or removal was cut short.
    fn settle_unseen(&self) -> Result<()> {
        for (namespace, known) in self.everything()? {
            let log = self.log_path(&namespace, &known.id);
            let Ok(written) = std::fs::metadata(&log).and_then(|metadata| metadata.modified()) else { continue };
            // A log may get its last line a moment after the process was reaped.
            let lost = known.record.ended.is_none_or(|ended| written > ended.at + LAST_LINE);
            let running = self.parts().tasks.holds(&namespace, &known.id);
            if lost && !running && known.record.error.is_empty() {
                let code = Exit::unseen(0).status;
                let ended = Ended { started_at: written, at: written, code, oom_killed: false };
                if let Err(error) = self.end_unseen(&namespace, &known.id, written, ended) {
                    tracing::warn!(%namespace, id = %known.id, %error, "settle a container that ended unseen");
                }
            }
        }
        self.sweep_directories();
        self.sweep_snapshots()
    }

    /// Removes directories of containers that have no record.
    fn sweep_directories(&self) {
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        for space in names(&self.root()) {
            let Ok(namespace) = Namespace::parse(&space) else { continue };
            for id in names(&self.root().join(&space)).iter().filter_map(|name| ContainerId::parse(name).ok()) {
                if self.is_gone(&namespace, &id) && !self.parts().tasks.holds(&namespace, &id) {
                    self.remove_directory(&namespace, &id);
                }
            }
        }
    }

    fn sweep_snapshots(&self) -> Result<()> {
        for namespace in self.parts().containers.namespaces()? {
            let context = Context::new(namespace);
            // Of all: another may have been the default.
            for (name, snapshotter) in self.parts().snapshotters.iter() {
                if let Err(error) = self.sweep_snapshots_of(&context, snapshotter.as_ref()) {
                    tracing::warn!(snapshotter = name, %error, "look for snapshots of containers that were never made");
                }
            }
        }
        Ok(())
    }

    fn sweep_snapshots_of(&self, context: &Context, snapshotter: &dyn Snapshotter) -> Result<()> {
        for info in snapshotter.list(context)? {
            let Ok(id) = ContainerId::parse(&info.name) else { continue };
            if !info.labels.contains_key(OURS) || !self.is_gone(&context.namespace, &id) {
                continue;
            }
            if let Err(error) = snapshotter.remove(context, &info.name) {
                let namespace = &context.namespace;
                tracing::warn!(%namespace, %id, %error, "remove the snapshot of a container that was never made");
            }
        }
        Ok(())
    }

    /// Whether there is certainly no record of a container.
    pub(super) fn is_gone(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        let record = self.parts().containers.get(namespace, id);
        record.is_err_and(|error| error.kind() == Kind::NotFound)
    }

    /// The engine's containers of all namespaces.
    pub(super) fn everything(&self) -> Result<Vec<(Namespace, Known)>> {
        let mut everything = Vec::new();
        for namespace in self.parts().containers.namespaces()? {
            for container in self.parts().containers.list(&namespace, &crate::filter::Filter::everything())? {
                match Record::of(&container) {
                    Ok(Some(record)) => {
                        let id = ContainerId::parse(&container.id)?;
                        everything.push((namespace.clone(), Known { id, container, record }));
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%namespace, id = container.id, %error, "read a container"),
                }
            }
        }
        Ok(everything)
    }
}

/// How long after the recorded end of a process its log may still have been written.
const LAST_LINE: Duration = Duration::from_secs(5);
