//! Deleting tasks, and cleaning up after shims: those that did their work and those that died.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gantry_proto::containerd::events::{TaskDelete, TaskExit};
use gantry_proto::containerd::task::v3 as shim;
use gantry_proto::namespace::Namespace;
use gantry_proto::time;
use prost_types::Timestamp;

use super::{Bundle, Exit, Key, NO_ANSWER, NOT_CLEAN, NOT_UNDONE, Slot, Task, Tasks};
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::id::{ContainerId, ExecId, exec_field};
use crate::shims::{Instance, Patience};
use crate::signals::SIGKILL;

/// What a process is said to have ended with when nobody saw its end.
const UNKNOWN_STATUS: u32 = 255;

/// Attempts to clean up after a dead shim before the container's end is announced all the same.
pub(super) const TRIES: u32 = 3;
/// Attempts after that, before what is left is given up.
pub(super) const MORE_TRIES: u32 = 10;
/// Pause before the second attempt. It doubles with each further one, up to the second value.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a killed task may take to end.
pub(super) const DYING: Duration = Duration::from_secs(10);

impl Tasks {
    /// Deletes a stopped task, its shim and its bundle, and returns how it ended.
    ///
    /// # Errors
    /// `NotFound` without such a task, `FailedPrecondition` while it runs.
    pub async fn delete(&self, namespace: &Namespace, id: &ContainerId) -> Result<Exit> {
        self.delete_and(namespace, id, std::future::ready(())).await.map(|(exit, ())| exit)
    }

    /// Deletes a task as [`Tasks::delete`] does, and runs `beside` while its shim leaves: work that needs only that the
    /// container is gone. After an error it does not run.
    ///
    /// # Errors
    /// As [`Tasks::delete`].
    pub async fn delete_and<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        beside: impl Future<Output = T> + Send + 'static,
    ) -> Result<(Exit, T)> {
        let task = self.get(namespace, id)?;
        let tasks = self.clone();
        // Half a deletion would leave a shim without a container, so the caller's going does not stop it.
        let work = tokio::spawn(async move {
            // A second deletion must neither return the first one's answer nor delete a later task of the same name.
            let _turn = task.deleting.lock().await;
            tasks.get(&task.namespace, &task.id).and_then(|now| match Arc::ptr_eq(&now, &task) {
                true => Ok(()),
                false => Err(Error::not_found(format!("task {}: not found", task.id))),
            })?;
            let exit = match task.delete_process(None).await {
                Ok(response) => Exit::of(response.pid, response.exit_status, response.exited_at.as_ref()),
                // The shim has no such container: a delete that was interrupted got as far as that.
                Err(error) if error.kind() == Kind::NotFound => {
                    let seen = *task.reported.borrow();
                    seen.unwrap_or_else(|| Exit::unseen(task.pid()))
                }
                // The shim is gone. Cleaning up after it tells how the container ended.
                Err(error) if error.kind() == Kind::Unavailable => return Ok((task.end().await?, beside.await)),
                Err(error) => return Err(error),
            };
            failpoint::hit("delete.process");
            // Where the shim went away meanwhile, it is cleaned up after already.
            let done = if task.leaving.swap(true, Ordering::SeqCst) {
                task.end().await?;
                beside.await
            } else {
                let done = if tasks.parts().mounts.holds(&task.namespace, task.id.as_str()) {
                    tasks.leave(&task).await;
                    tasks.deactivate(&task.namespace, &task.id).await;
                    beside.await
                } else {
                    tokio::join!(tasks.leave(&task), beside).1
                };
                tasks.forget(&task);
                task.ended.send_replace(Some(exit));
                done
            };
            failpoint::hit("delete.done");
            Ok((exit, done))
        });
        work.await.map_err(|error| Error::internal(format!("delete task {id}: {error}")))?
    }

    /// Deletes the task of a container that has ended, where there still is one: the deletion that followed its end may
    /// have failed.
    ///
    /// # Errors
    /// As [`Tasks::delete`].
    pub async fn delete_left(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        // One that cannot be asked is cleaned up after in the background, as far as that can be done.
        if self.get(namespace, id).is_err() {
            return Ok(());
        }
        match self.delete(namespace, id).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Goes on deleting a task that has ended and could not be deleted, until it is gone: whoever waited for its end does
    /// not ask again.
    pub async fn delete_in_the_end(&self, task: &Arc<Task>) {
        let mut pause = PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let is_there = self.get(&task.namespace, &task.id).is_ok_and(|now| Arc::ptr_eq(&now, task));
            if !is_there {
                return;
            }
            match self.delete_left(&task.namespace, &task.id).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(namespace = %task.namespace, id = %task.id, %error, "delete a task that has ended");
                }
            }
        }
    }

    /// Deletes a stopped exec, and returns how it ended.
    ///
    /// # Errors
    /// `NotFound` without such a process, `FailedPrecondition` while it runs.
    pub async fn delete_exec(&self, namespace: &Namespace, id: &ContainerId, exec: &ExecId) -> Result<Exit> {
        let response = self.get(namespace, id)?.delete_process(Some(exec)).await?;
        Ok(Exit::of(response.pid, response.exit_status, response.exited_at.as_ref()))
    }

    /// Kills and deletes a task that nobody wants any more.
    pub async fn discard(&self, task: &Arc<Task>) {
        if task.kill(None, SIGKILL, true).await.is_ok() {
            let _ = tokio::time::timeout(DYING, task.wait(None)).await;
        }
        if let Err(error) = self.delete(&task.namespace, &task.id).await {
            tracing::warn!(namespace = %task.namespace, id = %task.id, %error, "delete an abandoned task");
        }
    }

    /// Undoes a task whose creation in its shim failed.
    pub(super) async fn dismiss(&self, task: &Arc<Task>) {
        // Most failures leave nothing in the shim, and then these calls fail.
        let _ = task.kill(None, SIGKILL, true).await;
        match task.delete_process(None).await {
            Err(error) if error.kind() == Kind::Unavailable => match self.clean_up_dead(task.instance(), 0, 1).await {
                Ok(_) => task.bundle.remove(),
                Err(_) => self.clean_up_later(task.key(), &task.bundle, &task.program),
            },
            // A shim that does not answer at all is waited for until it leaves.
            Err(error) if is_left(&error) && error.kind() != Kind::DeadlineExceeded => {
                self.dismiss_later(task.clone(), error);
            }
            _ => self.leave(task).await,
        }
    }

    /// Has a shim delete a container that its runtime could not delete so far. Until it can, the container's name stays
    /// taken, and the bundle stays so that a later daemon finds the shim.
    fn dismiss_later(&self, task: Arc<Task>, mut error: Error) {
        self.table().insert(task.key(), Slot::Silent(NOT_UNDONE));
        let tasks = self.clone();
        tokio::spawn(async move {
            let mut pause = PAUSE;
            while is_left(&error) {
                tracing::warn!(namespace = %task.namespace, id = %task.id, %error, "undo a creation that failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let _ = task.kill(None, SIGKILL, true).await;
                match task.delete_process(None).await {
                    Ok(_) => break,
                    Err(again) => error = again,
                }
            }
            task.leaving.store(true, Ordering::SeqCst);
            if error.kind() == Kind::Unavailable {
                tasks.clean_up_later(task.key(), &task.bundle, &task.program);
            } else if task.shut_down().await {
                tasks.is_clean(&task.key(), &task.bundle).await;
            } else {
                tasks.leave_later(task);
            }
        });
    }

    /// Tells a shim that one of its containers is done with, and removes that one's bundle. The shim leaves unless it
    /// holds others.
    pub(super) async fn leave(&self, task: &Arc<Task>) {
        task.leaving.store(true, Ordering::SeqCst);
        if !task.shut_down().await {
            return self.leave_later(task.clone());
        }
        failpoint::hit("delete.shim");
        task.bundle.remove();
    }

    /// Waits for a shim that does not answer: it may still do what it was asked before, even start the container. Until
    /// it answers or is gone, the container's name stays taken, and the bundle stays so that a later daemon finds the
    /// shim.
    fn leave_later(&self, task: Arc<Task>) {
        self.table().insert(task.key(), Slot::Silent(NO_ANSWER));
        let tasks = self.clone();
        tokio::spawn(async move {
            let mut pause = PAUSE;
            while !task.shut_down().await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            if let Err(error) = tasks.clean_up_dead(task.instance(), 0, TRIES).await {
                tracing::error!(namespace = %task.namespace, id = %task.id, %error, "clean up after a slow shim");
            }
            tasks.is_clean(&task.key(), &task.bundle).await;
        });
    }

    /// Handles the unexpected end of the connection to a shim: the shim crashed or was killed. What it held is killed
    /// and cleaned up, and everybody who waits is told.
    pub(super) async fn shim_lost(&self, task: &Arc<Task>) {
        if task.leaving.swap(true, Ordering::SeqCst) {
            return;
        }
        tracing::warn!(namespace = %task.namespace, id = %task.id, "shim is gone; cleaning up after it");
        let exit = self.bury(&task.key(), &task.bundle, &task.program, task.pid(), TRIES).await;
        self.forget(task);
        self.announce_end(&task.namespace, &task.id, exit);
        task.ended.send_replace(Some(exit));
    }

    /// Cleans up after a dead shim and says how its container ended. After `tries` failures the name stays taken and the
    /// bundle where it is, and further attempts are made in the background.
    pub(super) async fn bury(&self, key: &Key, bundle: &Bundle, program: &Path, pid: u32, tries: u32) -> Exit {
        let (namespace, id) = key;
        let exit = self.clean_up_dead(Instance { program, namespace, id, bundle: bundle.path() }, pid, tries).await;
        match &exit {
            Ok(_) => self.is_clean(key, bundle).await,
            Err(_) => self.clean_up_later(key.clone(), bundle, program),
        }
        exit.unwrap_or_else(|_| Exit::unseen(pid))
    }

    /// Runs a dead shim's `delete`, up to `tries` times, and says how its container ended.
    ///
    /// # Errors
    /// What it said the last time: then processes, a cgroup or mounts may be left.
    pub(super) async fn clean_up_dead(&self, instance: Instance<'_>, pid: u32, tries: u32) -> Result<Exit> {
        let mut pause = PAUSE;
        for again in (0..tries).rev() {
            match self.parts().launcher.delete(instance).await {
                Ok(response) => {
                    let known = if response.pid == 0 { pid } else { response.pid };
                    return Ok(Exit::of(known, response.exit_status, response.exited_at.as_ref()));
                }
                Err(error) => {
                    let (namespace, id) = (instance.namespace, instance.id);
                    tracing::warn!(%namespace, %id, %error, "clean up after a dead shim");
                    if again == 0 {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Error::internal("clean up after a dead shim: not tried"))
    }

    fn clean_up_later(&self, key: Key, bundle: &Bundle, program: &Path) {
        self.table().insert(key.clone(), Slot::Silent(NOT_CLEAN));
        let (tasks, bundle, program) = (self.clone(), bundle.clone(), program.to_owned());
        tokio::spawn(async move {
            let (namespace, id) = &key;
            tokio::time::sleep(PAUSE).await;
            let instance = Instance { program: &program, namespace, id, bundle: bundle.path() };
            if let Err(error) = tasks.clean_up_dead(instance, 0, MORE_TRIES).await {
                tracing::error!(%namespace, %id, %error, "what a dead shim left stays: cleaning up after it is given up");
            }
            tasks.is_clean(&key, &bundle).await;
        });
    }

    /// Removes what the daemon itself kept of a dead shim's container, and frees its name.
    async fn is_clean(&self, key: &Key, bundle: &Bundle) {
        bundle.remove();
        self.deactivate(&key.0, &key.1).await;
        let mut table = self.table();
        if matches!(table.get(key), Some(Slot::Silent(_))) {
            table.remove(key);
        }
    }

    /// Publishes the events that a dead shim cannot.
    pub(super) fn announce_end(&self, namespace: &Namespace, id: &ContainerId, exit: Exit) {
        let (id, exited_at) = (id.to_string(), Some(time::timestamp(exit.at)));
        let (pid, exit_status) = (exit.pid, exit.status);
        let events = &self.parts().events;
        let message = TaskExit { container_id: id.clone(), id: id.clone(), pid, exit_status, exited_at };
        events.announce(namespace, "/tasks/exit", &message);
        let message = TaskDelete { container_id: id, pid, exit_status, exited_at, id: String::new() };
        events.announce(namespace, "/tasks/delete", &message);
    }
}

/// Whether a container is still in its shim that says this about its deletion.
fn is_left(error: &Error) -> bool {
    !matches!(error.kind(), Kind::NotFound | Kind::Unavailable)
}

impl Task {
    /// Asks the shim to leave; `false` where it does not answer.
    async fn shut_down(&self) -> bool {
        let request = shim::ShutdownRequest { id: self.id.to_string(), now: false };
        let answer: Result<()> = self.shim.call("Shutdown", &request, Patience::Leave).await;
        match answer {
            // A shim may leave before it has answered.
            Err(error) if error.kind() != Kind::Unavailable => {
                tracing::warn!(namespace = %self.namespace, id = %self.id, %error, "shut down a shim");
                error.kind() != Kind::DeadlineExceeded
            }
            _ => true,
        }
    }

    async fn delete_process(&self, exec: Option<&ExecId>) -> Result<shim::DeleteResponse> {
        let request = shim::DeleteRequest { id: self.id.to_string(), exec_id: exec_field(exec) };
        let response = self.shim.call("Delete", &request, Patience::Change).await;
        response.doing(|| format!("delete {}", self.process_name(exec)))
    }
}

impl Exit {
    /// The end, taken for now, of a process whose status nobody knows.
    pub fn unseen(pid: u32) -> Self {
        Self { pid, status: UNKNOWN_STATUS, at: SystemTime::now() }
    }

    /// An exit as messages carry it.
    pub fn of(pid: u32, status: u32, at: Option<&Timestamp>) -> Self {
        Self { pid, status, at: at.map_or_else(SystemTime::now, time::system_time) }
    }
}
