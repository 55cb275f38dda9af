//! Acting on the processes of a task: its shim is asked, and its answer returned.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gantry_proto::containerd::task::v3 as shim;
use gantry_proto::containerd::v1::types::{ProcessInfo, Status};
use gantry_proto::gantry::shim::v1::{OomRequest, OomResponse, ReopenLogRequest};
use gantry_proto::time;
use prost_types::Any;

use super::{Exit, Task};
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::id::{ExecId, exec_field};
use crate::shims::Patience;

/// How long a shim may take to open a log again.
const REOPEN: Duration = Duration::from_secs(10);
/// How long a shim that has just answered may take to say whether memory ran out.
const OOM: Duration = Duration::from_secs(2);

/// What a shim says of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessState {
    /// Its pid in the daemon's namespace.
    pub pid: u32,
    /// Whether it runs.
    pub status: Status,
    /// Where its standard input comes from.
    pub stdin: String,
    /// Where its standard output goes.
    pub stdout: String,
    /// Where its standard error goes.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// How it ended, once it has.
    pub exit_status: u32,
    /// When it ended, once it has.
    pub exited_at: Option<SystemTime>,
}

/// One more process for a container.
#[derive(Debug, Clone, Default)]
pub struct ExecTask {
    /// The OCI process, as JSON.
    pub spec: Option<Any>,
    /// Where standard input comes from.
    pub stdin: String,
    /// Where standard output goes.
    pub stdout: String,
    /// Where standard error goes.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

impl Task {
    /// Starts the init process, or an exec, and returns its pid.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn start(&self, exec: Option<&ExecId>) -> Result<u32> {
        failpoint::hit("start.before");
        let request = shim::StartRequest { id: self.id.to_string(), exec_id: exec_field(exec) };
        let restores = exec.is_none() && self.restored.load(Ordering::Relaxed);
        let patience = if restores { Patience::Work } else { Patience::Change };
        let answer: Result<shim::StartResponse> = self.shim.call("Start", &request, patience).await;
        let response = answer.map_err(|error| match error.kind() {
            Kind::Unavailable | Kind::DeadlineExceeded => error.context(format!("start {}", self.process_name(exec))),
            // The shim says which process it could not start.
            _ => error,
        })?;
        if exec.is_none() {
            self.pid.store(response.pid, Ordering::Relaxed);
            self.forget_checkpoint();
        }
        failpoint::hit("start.after");
        Ok(response.pid)
    }

    /// Adds a process, to be started by [`Task::start`].
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of that name.
    pub async fn exec(&self, exec: &ExecId, request: ExecTask) -> Result<()> {
        let request = shim::ExecProcessRequest {
            id: self.id.to_string(),
            exec_id: exec.to_string(),
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            spec: request.spec,
        };
        failpoint::hit("exec.before");
        let answer = self.change("Exec", "add", &request, Some(exec)).await;
        failpoint::hit("exec.after");
        answer
    }

    /// Sends a signal to the container's process, or to all of them; one that has ended needs none.
    ///
    /// # Errors
    /// When the shim cannot send it.
    pub async fn kill_unless_ended(&self, signal: u32, all: bool) -> Result<()> {
        match self.kill(None, signal, all).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            killed => killed,
        }
    }

    /// Sends a signal to a process, or to all of the container's.
    ///
    /// # Errors
    /// `NotFound` when the process has ended.
    pub async fn kill(&self, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        let request = shim::KillRequest { id: self.id.to_string(), exec_id: exec_field(exec), signal, all };
        failpoint::hit("kill.before");
        let answer = self.change("Kill", "kill", &request, exec).await;
        failpoint::hit("kill.after");
        match answer {
            // The shim is gone, and what it held with it.
            Err(error) if error.kind() == Kind::Unavailable => {
                Err(Error::not_found(format!("kill {}: process already finished", self.process_name(exec))))
            }
            answer => answer,
        }
    }

    /// How a process is.
    ///
    /// # Errors
    /// `NotFound` without such a process, `DeadlineExceeded` when the shim does not answer.
    pub async fn state(&self, exec: Option<&ExecId>) -> Result<ProcessState> {
        let request = shim::StateRequest { id: self.id.to_string(), exec_id: exec_field(exec) };
        let answer: Result<shim::StateResponse> = self.shim.call("State", &request, Patience::Look).await;
        match answer {
            Ok(state) => Ok(ProcessState::from(state)),
            Err(error) if error.kind() == Kind::Unavailable => Ok(ProcessState::gone(self.end().await?)),
            Err(error) => Err(error.context(format!("state of {}", self.process_name(exec)))),
        }
    }

    /// Gives a process's terminal another size.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn resize(&self, exec: Option<&ExecId>, width: u32, height: u32) -> Result<()> {
        let request = shim::ResizePtyRequest { id: self.id.to_string(), exec_id: exec_field(exec), width, height };
        self.change("ResizePty", "resize the terminal of", &request, exec).await
    }

    /// Closes a process's standard input.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn close_stdin(&self, exec: Option<&ExecId>) -> Result<()> {
        let request = shim::CloseIoRequest { id: self.id.to_string(), exec_id: exec_field(exec), stdin: true };
        self.change("CloseIO", "close standard input of", &request, exec).await
    }

    /// Freezes all of the container's processes.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn pause(&self) -> Result<()> {
        let request = shim::PauseRequest { id: self.id.to_string() };
        self.change("Pause", "pause", &request, None).await
    }

    /// Thaws them.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn resume(&self) -> Result<()> {
        let request = shim::ResumeRequest { id: self.id.to_string() };
        self.change("Resume", "resume", &request, None).await
    }

    /// Freezes the container for work of the daemon's own, until [`Task::release`]. A daemon that ends before that is followed
    /// by one that lets the container go on. `false` where somebody else has frozen it, and will thaw it.
    ///
    /// # Errors
    /// As [`Task::pause`].
    pub async fn hold(&self) -> Result<bool> {
        if self.paused() {
            return Ok(false);
        }
        self.bundle.note_held()?;
        failpoint::hit("hold.noted");
        self.pause().await.inspect_err(|_| self.bundle.forget_held())?;
        failpoint::hit("hold.paused");
        Ok(true)
    }

    /// Thaws a container that [`Task::hold`] has frozen. One that has ended, or is thawed already, is left alone.
    ///
    /// # Errors
    /// As [`Task::resume`].
    pub async fn release(&self) -> Result<()> {
        self.thaw().await?;
        self.bundle.forget_held();
        Ok(())
    }

    /// Sees to it that the container is not frozen. Somebody else may just have thawed it: the word of that comes from the
    /// shim on another connection.
    ///
    /// # Errors
    /// As [`Task::resume`].
    pub async fn thaw(&self) -> Result<()> {
        let Err(error) = self.resume().await else { return Ok(()) };
        match self.state(None).await {
            Ok(state) if !matches!(state.status, Status::Paused | Status::Pausing) => Ok(()),
            Err(ended) if ended.kind() == Kind::NotFound => Ok(()),
            _ => Err(error),
        }
    }

    /// The container's processes.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let request = shim::PidsRequest { id: self.id.to_string() };
        let answer: Result<shim::PidsResponse> = self.shim.call("Pids", &request, Patience::Change).await;
        answer.map(|answer| answer.processes).doing(|| format!("processes of task {}", self.id))
    }

    /// Changes the container's limits; `resources` is OCI's `LinuxResources` as JSON.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn update(&self, resources: Option<Any>, annotations: BTreeMap<String, String>) -> Result<()> {
        let request = shim::UpdateTaskRequest { id: self.id.to_string(), resources, annotations };
        self.change("Update", "update", &request, None).await
    }

    /// The container's counters.
    ///
    /// # Errors
    /// What the shim says; `DeadlineExceeded` when it does not answer.
    pub async fn stats(&self) -> Result<Any> {
        let request = shim::StatsRequest { id: self.id.to_string() };
        let answer: Result<shim::StatsResponse> = self.shim.call("Stats", &request, Patience::Look).await;
        let stats = answer.doing(|| format!("statistics of task {}", self.id))?.stats;
        stats.ok_or_else(|| Error::new(Kind::Unknown, format!("statistics of task {}: shim sent none", self.id)))
    }

    /// Writes the container's processes into the directory `path`.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()> {
        let request = shim::CheckpointTaskRequest { id: self.id.to_string(), path: path.to_owned(), options };
        let answer = self.shim.call("Checkpoint", &request, Patience::Work).await;
        answer.doing(|| format!("checkpoint {}", self.process_name(None)))
    }

    /// Has the shim open the log of the init process again under its path.
    ///
    /// # Errors
    /// What the shim says; `Unimplemented` from a shim of another kind.
    pub async fn reopen_log(&self) -> Result<()> {
        let request = ReopenLogRequest { id: self.id.to_string(), exec_id: String::new() };
        let answer = self.shim.call_service("gantry.shim.v1.Shim", "ReopenLog", &request, Some(REOPEN)).await;
        answer.doing(|| format!("reopen the log of task {}", self.id))
    }

    /// Whether the kernel killed one of its processes for want of memory, as its shim remembers it. Shims of other kinds do
    /// not say.
    pub(super) async fn was_oom_killed(&self) -> bool {
        let request = OomRequest { id: self.id.to_string() };
        let answer = self.shim.call_service("gantry.shim.v1.Shim", "Oom", &request, Some(OOM)).await;
        answer.is_ok_and(|answer: OomResponse| answer.killed)
    }

    async fn change<Req: prost::Message, Resp: prost::Message + Default>(
        &self,
        method: &str,
        verb: &str,
        request: &Req,
        exec: Option<&ExecId>,
    ) -> Result<Resp> {
        let answer = self.shim.call(method, request, Patience::Change).await;
        answer.doing(|| format!("{verb} {}", self.process_name(exec)))
    }
}

impl ProcessState {
    /// The state of a process whose shim is gone.
    fn gone(exit: Exit) -> Self {
        Self {
            pid: exit.pid,
            status: Status::Stopped,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            terminal: false,
            exit_status: exit.status,
            exited_at: Some(exit.at),
        }
    }
}

impl From<shim::StateResponse> for ProcessState {
    fn from(state: shim::StateResponse) -> Self {
        Self {
            pid: state.pid,
            status: state.status(),
            exited_at: state.exited_at.as_ref().filter(|at| at.seconds > 0).map(time::system_time),
            stdin: state.stdin,
            stdout: state.stdout,
            stderr: state.stderr,
            terminal: state.terminal,
            exit_status: state.exit_status,
        }
    }
}
