//! Pause, resume, update and what else changes a running container.

use gantry_proto::any;
use gantry_proto::containerd::events::{TaskPaused, TaskResumed};
use gantry_proto::containerd::task::v3::{StateResponse, UpdateTaskRequest};
use gantry_proto::time::timestamp;
use prost_types::{Any, Timestamp};

use crate::error::Kind;
use crate::rung::Ends;
use crate::task::Container;
use crate::task::state::State;
use crate::{Error, Result, memory_file, stats};

/// Go's zero time, 1 January of the year 1.
const ZERO: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

impl Container {
    /// The state of the process of `exec_id`.
    ///
    /// # Errors
    /// `NotFound` where there is no such process.
    pub fn state(&mut self, exec_id: &str) -> Result<StateResponse> {
        let paused = self.init.state == State::Paused;
        let (id, bundle) = (self.id.clone(), self.bundle.to_string_lossy().into_owned());
        let process = self.process(exec_id)?;
        let state = if paused && process.state == State::Running { State::Paused } else { process.state };
        // A process whose start failed has an exit for those who wait, but is not reported as stopped.
        let exited = process.exited().filter(|_| state == State::Stopped);
        Ok(StateResponse {
            id,
            bundle,
            pid: process.wire_pid(),
            status: state.status().into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exited.map_or(0, |exited| exited.status),
            // Containerd gives none out as the beginning of 1970, which its clients take for an end.
            exited_at: Some(exited.map_or(ZERO, |exited| timestamp(exited.at))),
            exec_id: exec_id.to_owned(),
        })
    }

    /// Freezes every process.
    ///
    /// # Errors
    /// Where the container does not run, and what the runtime says.
    pub async fn pause(&mut self) -> Result<()> {
        self.init.state.require(&[State::Running], "pause")?;
        self.run(&["pause", &self.id.clone()], Ends::default()).await?;
        self.init.state = State::Paused;
        self.shim.events.publish("/tasks/paused", &TaskPaused { container_id: self.id.clone() });
        Ok(())
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// Where the container is not paused, and what the runtime says.
    pub async fn resume(&mut self) -> Result<()> {
        self.init.state.require(&[State::Paused], "resume")?;
        self.run(&["resume", &self.id.clone()], Ends::default()).await?;
        self.init.state = State::Running;
        self.shim.events.publish("/tasks/resumed", &TaskResumed { container_id: self.id.clone() });
        Ok(())
    }

    /// Changes resource limits.
    ///
    /// # Errors
    /// Where the limits are missing or malformed, and what the runtime says.
    pub async fn update(&mut self, request: &UpdateTaskRequest) -> Result<()> {
        self.init.state.require(&[State::Created, State::Running, State::Paused], "update")?;
        let resources = request.resources.as_ref().ok_or_else(|| Error::invalid("resources: missing"))?;
        let limits = any::json_of(resources, any::LINUX_RESOURCES);
        let limits = limits.map_err(|error| Error::invalid(format!("resources: {error}")))?;
        let input = memory_file::holding(c"resources", limits)?;
        let ends = Ends { stdin: Some(input.into()), ..Ends::default() };
        self.run(&["update", "--resources", "-", &self.id.clone()], ends).await
    }

    /// The cgroup's counters.
    ///
    /// # Errors
    /// `NotFound` where the container has no cgroup of its own.
    pub fn stats(&self) -> Result<Any> {
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.ok_or_else(|| Error::not_found(format!("container {} has no cgroup", self.id)))?;
        stats::read(cgroup)
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    /// Where there is no such process, or it has ended; those of the terminal.
    pub fn resize(&mut self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let process = self.process(exec_id)?;
        if process.state == State::Stopped {
            return Err(Error::new(Kind::Unknown, "cannot resize the terminal of a process that has stopped"));
        }
        match &process.io {
            Some(io) => io.resize(width, height),
            None => Ok(()),
        }
    }

    /// Ends a process's standard input.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn close_stdin(&mut self, exec_id: &str) -> Result<()> {
        if let Some(io) = &mut self.process(exec_id)?.io {
            io.close_stdin();
        }
        Ok(())
    }

    /// Opens a process's log file again.
    ///
    /// # Errors
    /// Where there is no such process or no log.
    pub fn reopen_log(&mut self, exec_id: &str) -> Result<()> {
        match &self.process(exec_id)?.io {
            Some(io) => io.reopen_log(),
            None => Err(Error::precondition("the process has not been started")),
        }
    }
}
