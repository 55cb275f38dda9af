//! Delete: the end of a process that has ended.

use std::time::{Duration, Instant};

use gantry_proto::containerd::events::TaskDelete;
use gantry_proto::containerd::task::v3::DeleteResponse;
use gantry_proto::time::timestamp;
use rung_sys::process::Pid;
use tokio::sync::watch;

use crate::bundle;
use crate::error::Kind;
use crate::reaper::{Exited, Reaper};
use crate::rootfs;
use crate::rung::Ends;
use crate::task::state::State;
use crate::task::{Container, Mailbox};
use crate::{Error, Result};

/// How long the root of a deleted container is still held, see [`rootfs::detach`]. Most shims end before that.
const ROOT_HELD: Duration = Duration::from_secs(1);
/// How long Delete waits for output that is still being copied, and for the end of a process it has killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Deletes the process of `exec_id`, or the container. The waits are here, outside the mailbox.
///
/// # Errors
/// `FailedPrecondition` where the process runs.
pub async fn delete(mailbox: &Mailbox, exec_id: String) -> Result<DeleteResponse> {
    let id = exec_id.clone();
    let (mut exit, drained) = mailbox.look(move |container| container.before_delete(&id)).await?;
    let _ = tokio::time::timeout(PATIENCE, exit.wait_for(Option::is_some)).await;
    if let Some(drained) = drained
        && tokio::time::timeout(PATIENCE, drained).await.is_err()
    {
        tracing::warn!(exec_id, "delete: output is still held open by a process; it is given up");
    }
    mailbox.ask(move |container| Box::pin(async move { container.delete(&exec_id).await })).await
}

type Drained = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Container {
    /// Checks that the process may be deleted; one that waits for its start is ended first.
    fn before_delete(&mut self, exec_id: &str) -> Result<(watch::Receiver<Option<Exited>>, Option<Drained>)> {
        // A process that has ended but is not reaped yet counts as ended.
        self.shim.reaper.collect();
        let process = self.process(exec_id)?;
        match process.state {
            State::Stopped => {}
            State::Created if process.pid > 0 => {
                let _ = rung_sys::signal::send(Pid::from_raw(process.pid), nix::libc::SIGKILL);
            }
            State::Created => {
                let failed = process.exited();
                process.stop(failed.unwrap_or(Exited { status: 0, at: std::time::SystemTime::now() }));
            }
            // It has ended: its exit is in the mailbox, behind this request. Only a living process is a reason to
            // refuse.
            State::Running | State::Paused if gone(process.pid) => {}
            State::Running | State::Paused => {
                let text = format!("cannot delete a running process: {} is {}", process.pid, process.state.word());
                return Err(Error::precondition(text));
            }
        }
        let drained = process.io.as_ref().map(|io| -> Drained { Box::pin(io.drained()) });
        Ok((process.waiter(), drained))
    }

    async fn delete(&mut self, exec_id: &str) -> Result<DeleteResponse> {
        let process = self.process(exec_id)?;
        process.state.require(&[State::Stopped], "delete")?;
        let exited = process.exited().unwrap_or_else(Exited::unseen);
        let response = DeleteResponse {
            pid: process.wire_pid(),
            exit_status: exited.status,
            exited_at: Some(timestamp(exited.at)),
        };
        if !exec_id.is_empty() {
            self.execs.remove(exec_id);
            return Ok(response);
        }
        self.delete_by_runtime().await.map_err(|error| error.context(format_args!("delete container {}", self.id)))?;
        self.init.io = None;
        if let Some(root) = rootfs::detach(&self.bundle.join("rootfs")) {
            // Most shims end with their container, and the kernel lets go of it then.
            tokio::spawn(async move {
                tokio::time::sleep(ROOT_HELD).await;
                drop(root);
            });
        }
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: String::new(),
        };
        self.shim.events.publish("/tasks/delete", &event);
        self.shim.containers.remove(&self.id);
        Ok(response)
    }

    /// Has the runtime delete the container. With `--force` this can be repeated: what is left is ended, and what is
    /// gone is no error.
    pub(super) async fn delete_by_runtime(&mut self) -> Result<()> {
        let id = self.id.clone();
        let Err(error) = self.run(&["delete", "--force", &id], Ends::default()).await else {
            return Ok(());
        };
        if error.kind() == Kind::NotFound && !self.init_runs() {
            return Ok(());
        }
        // Runtimes other than `rung` do not say in a form for programs that there is nothing to delete. `state` tells, unless
        // the runtime fails at everything while its container is there.
        let recorded = self.options.root(&self.shim.setting.namespace).join(&self.id);
        match self.run(&["state", &id], Ends::default()).await {
            Err(_) if !self.init_runs() && !recorded.exists() => Ok(()),
            _ => Err(error),
        }
    }

    /// Whether the first process is there, be it that of a creation which was cut short.
    fn init_runs(&self) -> bool {
        let made = || bundle::read_pid(&self.bundle.join("init.pid")).unwrap_or(0);
        let pid = if self.init.pid > 0 { self.init.pid } else { made() };
        !self.init_has_ended() && Reaper::collects(pid)
    }

    pub(super) async fn force_delete(&mut self) {
        if let Err(error) = self.delete_by_runtime().await {
            tracing::warn!(id = self.id, %error, "delete a container that could not be created");
            self.keep();
        }
    }
}

impl Container {
    /// Whether the first process has ended, even if its exit is still in the mailbox.
    pub(super) fn init_has_ended(&self) -> bool {
        self.shim.reaper.collect();
        self.init_is_gone || self.init.state == State::Stopped || gone(self.init.pid)
    }

    /// Whether `error`, of another process, has its cause in the end of the first one. When the first one is killed,
    /// the kernel ends all others in its PID namespace before the first can be reaped, so it gets a moment to be seen
    /// as ended.
    pub(super) async fn ended_with_init(&self, error: &Error) -> bool {
        const MOMENT: Duration = Duration::from_secs(1);
        let until = Instant::now() + if error.kind() == Kind::Internal { MOMENT } else { Duration::ZERO };
        while !self.init_has_ended() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

fn gone(pid: i32) -> bool {
    rung_sys::pidfd::open(Pid::from_raw(pid)).is_err()
}
