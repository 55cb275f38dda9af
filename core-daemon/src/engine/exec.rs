//! One more process in a running container.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::any;
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::stdio::LogUri;
use oci_spec::runtime::{Box as ConsoleBox, BoxBuilder, Capabilities, LinuxCapabilities, Process as OciProcess};
use rung_spec::builder;
use rung_spec::user::User;

use super::attach::{Input, Output, Process, exec_end, not_running};
use super::{Engine, Known, Live, binds, create};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::id::ExecId;
use crate::image::users;
use crate::tasks::{ExecTask, StartedExec};

/// How long the files of a container may take to name a user.
const LOOK: Duration = Duration::from_secs(10);

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
        let mut started = self.begin_exec(&known, &live, &request).await?;
        if request.detach {
            return Ok(());
        }
        let stream = started.take_stream()?;
        let (end, started_at) = (started.end(), started.started_at);
        let end = async move { end.await.map(|exit| exec_end(exit, started_at)) };
        let process = Process { task: started.task, exec: Some(started.id), closes_input: request.open_stdin };
        self.session(&process, end, stream, input, &output).await
    }

    /// Adds the process and starts it, joined to its streams unless it is detached.
    ///
    /// # Errors
    /// Why it cannot be started; then nothing of it is left.
    pub(super) async fn begin_exec(
        &self,
        known: &Known,
        live: &Arc<Live>,
        request: &api::ExecRequest,
    ) -> Result<StartedExec> {
        let user = match request.user.as_str() {
            "" => None,
            text => Some(user_in(live, text).await?),
        };
        let process = self.process(known, request, user)?;
        let spec = serde_json::to_vec(&process).map_err(|error| Error::internal(format!("encode process: {error}")))?;
        let exec = ExecId::new()?;
        let socket = (!request.detach).then(|| self.sockets().join(&exec.as_str()[..super::SOCKET_NAME]));
        let exec_task = exec_task(request, spec, socket.as_ref());
        let command = request.args.join(" ");
        for action in ["exec_create", "exec_start"] {
            let action = format!("{action}: {command}");
            self.note(live.task.namespace(), known, &action, &[("execID", exec.as_str())]);
        }
        let started = self.parts().tasks.run_exec(&live.task, exec, exec_task, socket).await?;
        let (end, engine, of) = (started.end(), self.clone(), (live.task.clone(), started.id.to_string()));
        tokio::spawn(async move {
            if let Ok(exit) = end.await {
                let code = exit.status.to_string();
                let more = [("execID", of.1.as_str()), ("exitCode", code.as_str())];
                engine.shared.journal.of_run(of.0.namespace(), of.0.id(), "exec_die", &more);
            }
        });
        Ok(started)
    }

    /// The process to run: the container's own, changed as the request says.
    fn process(&self, known: &Known, request: &api::ExecRequest, user: Option<User>) -> Result<OciProcess> {
        let spec = binds::spec_of(known)?;
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
        if let Some(found) = user {
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

/// Looks a user up in the files of a running container. What lies there is the container's, and need not answer.
async fn user_in(live: &Arc<Live>, text: &str) -> Result<User> {
    let (name, pid) = (text.to_owned(), live.task.pid());
    let looked = tokio::time::timeout(LOOK, blocking(move || users::resolve_running(&name, pid))).await;
    let late = |_| Error::new(Kind::DeadlineExceeded, format!("user {text}: the container's files do not answer"));
    let found = looked.map_err(late)??;
    // The process may have ended meanwhile, and another have its number: then these are not the container's files.
    if live.ended.borrow().is_some() {
        return Err(Error::precondition(format!("container {}: has ended", live.task.id())));
    }
    Ok(found)
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

/// The capability sets of a process. Root starts with all that are allowed. Another user starts with none, but a
/// set-user-id program may gain those of the bounding set.
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
