//! One more process in a running container.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_proto::any;
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::stdio::LogUri;
use oci_spec::runtime::{Box as ConsoleBox, BoxBuilder, Capabilities, LinuxCapabilities, Process as OciProcess, Spec};
use rung_spec::builder;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::attach::{Input, Output, Process, exec_end, not_running};
use super::{Ended, Engine, Known, Live, create};
use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::id::ExecId;
use crate::image::users;
use crate::tasks::{ExecTask, Task};

impl Engine {
    /// Runs one more process in a container, and stays with it until it ends or the client goes, unless the request says
    /// not to.
    ///
    /// # Errors
    /// `FailedPrecondition` when the container does not run, else why the process cannot be started.
    pub async fn exec<T>(
        &self,
        context: &Context,
        request: api::ExecRequest,
        input: impl Input,
        output: Output<T>,
    ) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let live = self.running(&context.namespace, &known.id).ok_or_else(|| not_running(&known.record.name))?;
        let exec = ExecId::new()?;
        let (ended, stream) = self.begin_exec(&known, &live, &request, &exec).await?;
        let Some(stream) = stream else { return Ok(()) };
        let process = Process { task: live.task.clone(), exec: Some(exec) };
        self.session(&process, end_of(ended), stream, input, &output).await
    }

    /// Adds the process and starts it, joined to its streams unless it is detached.
    ///
    /// # Errors
    /// Why it cannot be started; then nothing of it is left.
    pub(super) async fn begin_exec(
        &self,
        known: &Known,
        live: &Live,
        request: &api::ExecRequest,
        exec: &ExecId,
    ) -> Result<(watch::Receiver<Option<Ended>>, Option<UnixStream>)> {
        let process = self.process(known, request, live.task.pid())?;
        let spec = serde_json::to_vec(&process).map_err(|error| Error::internal(format!("encode process: {error}")))?;
        let socket = (!request.detach).then(|| self.sockets().join(&exec.as_str()[..super::SOCKET_NAME]));
        let exec_task = exec_task(request, spec, socket.as_ref());
        live.task.exec(exec, exec_task).await?;
        let started = self.start_exec(&live.task, exec, socket).await;
        if started.is_err() {
            let _ = self.parts().tasks.delete_exec(live.task.namespace(), &known.id, exec).await;
        }
        started
    }

    /// Starts an exec that was added. Its end is waited for from before the start on, whatever becomes of the client.
    async fn start_exec(
        &self,
        task: &Arc<Task>,
        exec: &ExecId,
        socket: Option<PathBuf>,
    ) -> Result<(watch::Receiver<Option<Ended>>, Option<UnixStream>)> {
        let stream = match socket {
            Some(path) => Some(self.connect(&path).await?),
            None => None,
        };
        let started_at = SystemTime::now();
        task.start(Some(exec)).await?;
        let (ending, ended) = watch::channel(None);
        let (engine, task, exec) = (self.clone(), task.clone(), exec.clone());
        tokio::spawn(async move {
            // The shim keeps the exit until it is asked to delete the process, so it cannot be missed here.
            match task.wait(Some(&exec)).await {
                Ok(exit) => drop(ending.send_replace(Some(exec_end(exit, started_at)))),
                Err(error) => tracing::warn!(id = %task.id(), %exec, %error, "end of an exec is unknown"),
            }
            let _ = engine.parts().tasks.delete_exec(task.namespace(), task.id(), &exec).await;
        });
        Ok((ended, stream))
    }

    /// The process to run: the container's own, changed as the request says.
    fn process(&self, known: &Known, request: &api::ExecRequest, pid: u32) -> Result<OciProcess> {
        let spec = known.container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: Spec = serde_json::from_slice(spec)
            .map_err(|error| Error::internal(error.to_string()))
            .doing(|| format!("specification of container {}", known.record.name))?;
        let mut process = spec.process().clone().unwrap_or_default();
        if request.args.is_empty() {
            return Err(Error::invalid("exec: a command is required"));
        }
        let env = builder::merge_environment(process.env().as_deref().unwrap_or_default(), &request.env);
        process.set_args(Some(request.args.clone())).set_env(Some(env)).set_terminal(Some(request.terminal));
        process.set_console_size(console(request).filter(|_| request.terminal));
        if !request.workdir.is_empty() {
            if !request.workdir.starts_with('/') {
                return Err(Error::invalid(format!("working directory {:?} is not an absolute path", request.workdir)));
            }
            process.set_cwd(PathBuf::from(&request.workdir));
        }
        if !request.user.is_empty() {
            let found = users::resolve_running(&request.user, pid)?;
            let mut user = oci_spec::runtime::User::default();
            user.set_uid(found.uid).set_gid(found.gid).set_additional_gids(Some(found.additional_gids));
            process.set_user(user);
        }
        let bounding = match request.privileged {
            true => Some(self.all_capabilities()),
            false => process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()),
        };
        if let Some(bounding) = bounding {
            let root = process.user().uid() == 0;
            process.set_capabilities(Some(capability_sets(&bounding, root)));
        }
        Ok(process)
    }

    fn all_capabilities(&self) -> Capabilities {
        let all = || rung_spec::defaults::capabilities::ALL.iter().copied().collect();
        self.shared.host.capabilities.clone().unwrap_or_else(all)
    }
}

pub(super) async fn end_of(mut ended: watch::Receiver<Option<Ended>>) -> Result<Ended> {
    let end = ended.wait_for(Option::is_some).await;
    end.ok().and_then(|end| *end).ok_or_else(|| Error::internal("the end of the process is unknown"))
}

fn exec_task(request: &api::ExecRequest, spec: Vec<u8>, socket: Option<&PathBuf>) -> ExecTask {
    let uri = socket.map(|path| LogUri { attach: path.to_string_lossy().into_owned(), ..LogUri::new("") }.to_string());
    ExecTask {
        spec: Some(any::json(any::PROCESS, spec)),
        stdin: uri.clone().filter(|_| request.open_stdin).unwrap_or_default(),
        stdout: uri.unwrap_or_default(),
        stderr: String::new(),
        terminal: request.terminal,
    }
}

fn console(request: &api::ExecRequest) -> Option<ConsoleBox> {
    let (width, height) = create::size_of(request.console_size.as_ref()?)?;
    BoxBuilder::default().width(width).height(height).build().ok()
}

/// Root starts with what is allowed; others could get it through a set-user-id program, but do not start with it.
fn capability_sets(bounding: &Capabilities, root: bool) -> LinuxCapabilities {
    let held = root.then(|| bounding.clone());
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(bounding.clone()))
        .set_effective(held.clone())
        .set_permitted(held)
        .set_inheritable(None)
        .set_ambient(None);
    sets
}
