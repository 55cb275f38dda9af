//! Ends of processes, and the order in which they are announced.
//!
//! The first process's exit is announced after those of all execs: with a process namespace of its own they end with it,
//! without one they are ended here. The wait for them has a bound, so that no exec can keep a container from ending.

use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_proto::containerd::events::{TaskExit, TaskOom};
use gantry_proto::time::timestamp;

use crate::events::Events;
use crate::reaper::Exited;
use crate::rung::Ends;
use crate::task::Container;
use crate::task::state::State;

/// How long the first process's exit waits for those of execs.
const HOLD: Duration = Duration::from_secs(5);

impl Container {
    /// An exec has ended.
    pub(super) fn exec_exited(&mut self, exec_id: &str, exited: Exited) {
        self.announce(exec_id, exited);
        if self.held_exit.is_some() && !self.has_running_execs() {
            self.release_exit();
        }
    }

    /// The first process has ended.
    pub(super) async fn init_exited(&mut self, exited: Exited) {
        self.held_exit = Some(exited);
        if !self.private_pids {
            self.end_the_rest().await;
        }
        if self.has_running_execs() {
            self.later(HOLD, |container| Box::pin(async move { container.release_exit() }));
        } else {
            self.release_exit();
        }
    }

    /// Ends what the first process has left behind in a process namespace that is not its own.
    async fn end_the_rest(&mut self) {
        let left = self.cgroup.as_ref().and_then(|cgroup| cgroup.processes().ok());
        if left.is_some_and(|left| left.is_empty()) {
            return;
        }
        let kill = ["kill", "--all", &self.id.clone(), "KILL"];
        if let Err(error) = self.run(&kill, Ends::default()).await {
            tracing::warn!(id = self.id, %error, "end the processes that the first one left");
        }
    }

    fn has_running_execs(&self) -> bool {
        self.execs.values().any(|exec| exec.is_alive())
    }

    /// Announces the first process's exit, where it is held back.
    pub(super) fn release_exit(&mut self) {
        let Some(exited) = self.held_exit.take() else { return };
        if self.oom.as_ref().is_some_and(|watch| watch.grown()) {
            self.oom_killed.store(true, Ordering::Relaxed);
            publish_oom(&self.shim.events, &self.id);
        }
        self.announce("", exited);
        self.oom = None;
    }

    fn announce(&mut self, exec_id: &str, exited: Exited) {
        let id = if exec_id.is_empty() { self.id.clone() } else { exec_id.to_owned() };
        // An exec that was deleted while it ran: nobody waits for its end.
        let Ok(process) = self.process(exec_id) else { return };
        if process.state == State::Stopped {
            return;
        }
        let pid = process.wire_pid();
        process.stop(exited);
        let event = TaskExit {
            container_id: self.id.clone(),
            id,
            pid,
            exit_status: exited.status,
            exited_at: Some(timestamp(exited.at)),
        };
        self.shim.events.publish("/tasks/exit", &event);
    }
}

pub(super) fn publish_oom(events: &Events, id: &str) {
    events.publish("/tasks/oom", &TaskOom { container_id: id.to_owned() });
}
