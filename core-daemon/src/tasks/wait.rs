//! Waiting for processes. Whatever happens to the shim, everybody who waits gets an answer.

use std::time::Duration;

use gantry_proto::containerd::task::v3 as shim;

use super::{Exit, Task};
use crate::error::{Error, Kind, Result};
use crate::id::{ExecId, exec_field};

/// How long cleaning up after a dead shim may take before waiters are told that it failed.
const CLEANUP: Duration = Duration::from_secs(150);

impl Task {
    /// Waits for the init process, or for an exec, and returns how it ended.
    ///
    /// # Errors
    /// `NotFound` without such a process, `Unavailable` when its shim is gone and cannot be cleaned up after.
    pub async fn wait(&self, exec: Option<&ExecId>) -> Result<Exit> {
        let request = shim::WaitRequest { id: self.id.to_string(), exec_id: exec_field(exec) };
        let answer = tokio::select! {
            answer = self.shim.wait::<_, shim::WaitResponse>("Wait", &request) => answer,
            // The task's end is an exec's end too: nothing of the container is left.
            exit = self.end() => return exit,
        };
        match answer {
            Ok(response) => {
                let pid = if exec.is_none() { self.pid() } else { 0 };
                Ok(Exit::of(pid, response.exit_status, response.exited_at.as_ref()))
            }
            Err(error) if error.kind() == Kind::Unavailable => {
                let end = tokio::time::timeout(CLEANUP, self.end());
                end.await.unwrap_or(Err(error.context(format!("wait for {}", self.process_name(exec)))))
            }
            Err(error) => Err(error.context(format!("wait for {}", self.process_name(exec)))),
        }
    }

    /// Waits until the task is gone: deleted, or its shim dead and cleaned up after.
    pub(super) async fn end(&self) -> Result<Exit> {
        let mut ended = self.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| *exit).ok_or_else(|| Error::internal(format!("task {}: end is unknown", self.id)))
    }

    /// How errors call a process of this task.
    pub(super) fn process_name(&self, exec: Option<&ExecId>) -> String {
        match exec {
            None => format!("task {}", self.id),
            Some(exec) => format!("process {exec} of task {}", self.id),
        }
    }
}
