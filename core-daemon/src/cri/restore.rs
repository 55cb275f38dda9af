//! Finding pods and containers again after a restart of the daemon, or of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use gantry_proto::containerd::v1::types::Status;
use tokio::sync::mpsc;

use super::container::{OURS, lost, unseen};
use super::store::{Run, boot_id, nanos, now};
use super::{Container, Cri, Sandbox};
use crate::blocking::blocking;
use crate::error::{Doing as _, Result};
use crate::tasks::{Restored, Task};

/// Containers that are settled at the same time.
const AT_ONCE: usize = 32;
/// How long one of them may keep the daemon from being ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before trying again to remove what is left of a pod. It doubles, up to the second value.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

impl Cri {
    /// Reads the records, takes over the tasks that `found` names, and settles containers that ended unseen. Tasks that are
    /// named later are dealt with in the background. What pods left behind that are none is removed.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn restore(&self, mut found: mpsc::UnboundedReceiver<Restored>) -> Result<()> {
        let cri = self.clone();
        blocking(move || cri.store().load()).await?;
        let held = self.store().sandboxes().into_iter().filter(|sandbox| sandbox.record().has_shim);
        let find = |sandbox: std::sync::Arc<Sandbox>| async move {
            let cri = self.clone();
            let found = tokio::spawn(async move { cri.find_pod(&sandbox).await });
            // What does not answer is looked for in the background.
            let _ = tokio::time::timeout(PATIENCE, found).await;
        };
        stream::iter(held).for_each_concurrent(AT_ONCE, find).await;
        let mut reported = BTreeMap::new();
        while let Ok(restored) = found.try_recv() {
            reported.insert(restored.id().to_string(), restored);
        }
        let work = self.store().containers().into_iter().map(|container| {
            let restored = reported.remove(container.id().as_str());
            (container, restored)
        });
        let settle = |(container, restored): (std::sync::Arc<Container>, Option<Restored>)| async move {
            let (cri, id) = (self.clone(), container.id().clone());
            let settled = tokio::spawn(async move { cri.take_over(&container, restored).await });
            // It goes on in the background: half taken over, nobody would wait for the container's end.
            if tokio::time::timeout(PATIENCE, settled).await.is_err() {
                tracing::warn!(%id, "container is not settled yet");
            }
        };
        stream::iter(work).for_each_concurrent(AT_ONCE, settle).await;
        self.settle_interrupts_again().await;
        // Before anybody can ask for a pod: one that is being made looks like one that was never whole.
        let left = Mutex::default();
        match tokio::time::timeout(2 * PATIENCE, self.sweep(&left)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "remove what pods left behind that are gone"),
            Err(_) => tracing::warn!("what pods left behind that are gone is not removed yet"),
        }
        for id in left.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.take_down_later(id);
        }
        let cri = self.clone();
        tokio::spawn(async move {
            while let Some(restored) = found.recv().await {
                if let Ok(container) = cri.store().container(restored.id().as_str()) {
                    cri.take_over(&container, Some(restored)).await;
                }
            }
        });
        Ok(())
    }

    async fn take_over(&self, container: &std::sync::Arc<Container>, restored: Option<Restored>) {
        let record = container.record();
        match restored {
            Some(Restored::Alive(task)) if record.end.is_none() => match started(&task).await {
                Some(started_at) => {
                    self.forget_checkpoints(&task);
                    container.set_run(Run::Going { task: task.clone(), started_at });
                    self.watch_calls_again(container);
                    self.supervise(container, task, started_at);
                }
                // It was being started when the daemon went, and nobody was told that it had.
                None => self.parts().tasks.discard(&task).await,
            },
            // Its end is written down; only the task was left.
            Some(Restored::Alive(task)) => self.parts().tasks.discard(&task).await,
            Some(Restored::Dead { exit, .. }) if record.end.is_none() => {
                let end = lost(if record.started_at > 0 { record.started_at } else { record.created_at }, exit);
                self.settle(container, None, end).await;
            }
            Some(Restored::Dead { .. }) => {}
            None if record.end.is_some() => {}
            // A shim that does not answer yet will be reported later.
            None if self.parts().tasks.holds(&self.context().namespace, container.id()) => {
                container.set_run(Run::Unknown);
            }
            None => {
                // The namespaces of another run of the machine are gone, and what was in them.
                let pod = self.store().sandbox(&record.sandbox_id);
                if record.started_at > 0 || pod.is_ok_and(|pod| pod.record().boot_id != boot_id()) {
                    self.settle(container, None, unseen(record.started_at, now())).await;
                }
            }
        }
    }

    /// Takes down what is left of a pod that was never whole, as often as it takes: no kubelet knows of it, and so nobody
    /// else will.
    fn take_down_later(&self, id: String) {
        let cri = self.clone();
        tokio::spawn(async move {
            let mut pause = AGAIN;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = cri.parts().stopping.cancelled() => return,
                }
                if !cri.store().lacks_sandbox(&id) {
                    return;
                }
                pause = (pause * 2).min(LONGEST);
                match cri.take_down(&id).await {
                    Ok(()) => return tracing::info!(id, "what was left of a pod is removed"),
                    Err(error) => tracing::warn!(id, %error, "what is left of a pod is not removed yet"),
                }
            }
        });
    }

    /// Removes what belongs to no pod or container: the daemon was ended while it made or removed them. `left` has the pods
    /// of which something is left.
    async fn sweep(&self, left: &Mutex<BTreeSet<String>>) -> Result<()> {
        let left = || left.lock().unwrap_or_else(PoisonError::into_inner);
        let cri = self.clone();
        // The directory comes before everything else of a pod, and only this daemon's pods are in it: namespaces lie where
        // other daemons have theirs.
        let unknown = move || {
            let mut ids = names(&cri.pods_dir())?;
            ids.retain(|id| cri.store().lacks_sandbox(id));
            Ok(ids)
        };
        let take_down = |id: String| async move {
            tracing::info!(id, "pod that was never whole; removing it");
            match tokio::time::timeout(PATIENCE, self.take_down(&id)).await {
                Ok(Ok(())) => drop(left().remove(&id)),
                Ok(removed) => warn_left(removed, &id),
                Err(_) => tracing::warn!(id, "what is left of a pod is not removed yet"),
            }
        };
        let unknown = blocking(unknown).await?;
        left().extend(unknown.iter().cloned());
        stream::iter(unknown).for_each_concurrent(AT_ONCE, take_down).await;
        let cri = self.clone();
        let swept = blocking(move || cri.sweep_now()).await;
        let connected = |id: &str| match self.store().sandbox(id) {
            Ok(pod) => {
                let record = pod.record();
                record.network.as_ref().is_some_and(|network| !network.removed) && record.boot_id == boot_id()
            }
            Err(_) => !self.store().lacks_sandbox(id),
        };
        // A pod with a record is its kubelet's to remove.
        let unknown = |id: String| {
            if self.store().lacks_sandbox(&id) {
                left().insert(id);
            }
        };
        swept.and(self.shared.cni.collect(connected, unknown).await.doing(|| "networks"))
    }

    fn sweep_now(&self) -> Result<()> {
        // What somebody wrote down is somebody's, be it that it cannot be read now.
        let (gone, lost) = (|id: &str| self.store().lacks_sandbox(id), |id: &str| self.store().lacks_container(id));
        for id in names(&self.containers_dir())?.iter().filter(|id| lost(id)) {
            warn_left(self.remove_container_dir(id), id);
        }
        for snapshotter in self.all_snapshotters()? {
            for info in snapshotter.list(self.context())?.iter().filter(|info| info.labels.contains_key(OURS)) {
                let left = match info.name.split_once('-') {
                    Some((pod, _)) => gone(pod),
                    None => lost(&info.name),
                };
                if left {
                    warn_left(snapshotter.remove(self.context(), &info.name), &info.name);
                }
            }
        }
        Ok(())
    }
}

/// What cannot be removed now keeps nothing else from being removed.
fn warn_left(removed: Result<()>, id: &str) {
    if let Err(error) = removed {
        tracing::warn!(id, %error, "remove what belongs to no pod or container");
    }
}

/// When the process of a task was started, if it was: the note of that is made before.
async fn started(task: &Task) -> Option<i64> {
    let noted = nanos(task.bundle().started_at()?);
    match task.state(None).await {
        Ok(state) if state.status == Status::Created => None,
        // A shim that does not say is asked again by whoever waits for the end.
        _ => Some(noted),
    }
}

/// Names in a directory that may not be there.
fn names(dir: &std::path::Path) -> Result<Vec<String>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).doing(|| format!("read {}", dir.display())),
    }
}
