//! Asking many shims at once. One that does not answer costs the others nothing and is reported as unknown.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use futures_util::stream;
use gantry_proto::containerd::v1::types::Status;
use gantry_proto::namespace::Namespace;
use prost_types::Any;

use super::{ProcessState, Task, Tasks};
use crate::error::{Kind, Result};
use crate::id::ContainerId;

/// Shims that are asked at the same time.
const AT_ONCE: usize = 256;

impl Tasks {
    /// The state of every task of a namespace, in the order of their ids; last those that cannot be asked.
    pub async fn states(&self, namespace: &Namespace) -> Vec<(ContainerId, ProcessState)> {
        let asked = stream::iter(self.all(Some(namespace))).map(|task| async move {
            let state = task.state(None).await;
            (task, state)
        });
        let answers = asked.buffered(AT_ONCE).collect::<Vec<_>>().await;
        let known = answers.into_iter().filter_map(|(task, state)| Some((task.id.clone(), known(&task, state)?)));
        let silent = self.silent(namespace).into_iter().map(|id| (id, ProcessState::unknown(0)));
        known.chain(silent).collect()
    }

    /// The counters of those tasks of a namespace that `wanted` picks, with the time they were read.
    pub async fn metrics(
        &self,
        namespace: &Namespace,
        wanted: impl Fn(&Task) -> bool,
    ) -> Vec<(Arc<Task>, SystemTime, Any)> {
        let tasks: Vec<_> = self.all(Some(namespace)).into_iter().filter(|task| wanted(task)).collect();
        let asked = stream::iter(tasks).map(|task| async move {
            let at = SystemTime::now();
            let stats = task.stats().await;
            (task, at, stats)
        });
        let answers = asked.buffered(AT_ONCE).collect::<Vec<_>>().await;
        let mut metrics = Vec::with_capacity(answers.len());
        for (task, at, stats) in answers {
            match stats {
                Ok(stats) => metrics.push((task, at, stats)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => tracing::warn!(namespace = %task.namespace, id = %task.id, %error, "metrics"),
            }
        }
        metrics
    }
}

/// The state to report of a task; none where it went away while its shim was asked.
fn known(task: &Task, state: Result<ProcessState>) -> Option<ProcessState> {
    match state {
        Ok(state) => Some(state),
        Err(error) if error.kind() == Kind::NotFound => None,
        Err(error) => {
            tracing::warn!(namespace = %task.namespace, id = %task.id, %error, "list tasks");
            Some(ProcessState::unknown(task.pid()))
        }
    }
}

impl ProcessState {
    /// The state of a process whose shim does not answer.
    fn unknown(pid: u32) -> Self {
        Self::of(pid, Status::Unknown)
    }

    /// That of a process without streams of which no more is known than that it is there.
    pub fn running(pid: u32) -> Self {
        Self::of(pid, Status::Running)
    }

    fn of(pid: u32, status: Status) -> Self {
        Self {
            pid,
            status,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            terminal: false,
            exit_status: 0,
            exited_at: None,
        }
    }
}
