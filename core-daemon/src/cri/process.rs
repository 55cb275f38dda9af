//! One more process in a container, with its streams on a socket of its shim.

use std::path::PathBuf;

use gantry_proto::any;
use gantry_proto::stdio::LogUri;
use oci_spec::runtime::{Process as OciProcess, Spec};
use rung_spec::builder;

use super::{Container, Cri};
use crate::error::{Doing, Error, Result};
use crate::id::{self, ExecId};
use crate::tasks::{ExecTask, StartedExec};

/// Characters of a random name that tell sockets apart; a socket's path must be short.
const SOCKET_NAME: usize = 16;

/// What is to be run.
pub(super) struct Wanted {
    pub(super) command: Vec<String>,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
}

/// A command that a process can have.
///
/// # Errors
/// `InvalidArgument` naming what is wrong.
pub(super) fn check_command(words: &[String]) -> Result<()> {
    if words.is_empty() {
        return Err(Error::invalid("cmd: a command is required"));
    }
    match words.iter().any(|word| word.contains('\0')) {
        true => Err(Error::invalid("cmd: contains a NUL byte")),
        false => Ok(()),
    }
}

impl Cri {
    /// Runs a command in a running container, as the container's own process runs. Once started, it is cleaned up after
    /// its end, whoever waits for that.
    ///
    /// # Errors
    /// `FailedPrecondition` for a container that does not run; why the process cannot be started.
    pub(super) async fn start_process(&self, container: &Container, wanted: Wanted) -> Result<StartedExec> {
        let task = container.task()?;
        let process = self.oci_process(container, &wanted)?;
        let spec = serde_json::to_vec(&process).map_err(|error| Error::internal(format!("encode process: {error}")))?;
        let id = ExecId::parse(&id::random::<16>()?)?;
        let path = self.attach_socket(id.as_str());
        let uri = LogUri { attach: path.to_string_lossy().into_owned(), ..LogUri::new("") }.to_string();
        let request = ExecTask {
            spec: Some(any::json(any::PROCESS, spec)),
            stdin: if wanted.stdin { uri.clone() } else { String::new() },
            stdout: uri,
            stderr: String::new(),
            terminal: wanted.terminal,
        };
        self.parts().tasks.run_exec(&task, id, request, Some(path)).await
    }

    fn oci_process(&self, container: &Container, wanted: &Wanted) -> Result<OciProcess> {
        let id = container.id();
        let record = self.parts().containers.get(&self.context().namespace, id)?;
        let spec = record.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: Spec = serde_json::from_slice(spec)
            .map_err(|error| Error::internal(error.to_string()))
            .doing(|| format!("specification of container {id}"))?;
        let mut process = spec.process().clone().unwrap_or_default();
        let env = process.env().clone().unwrap_or_default();
        let env = match wanted.terminal {
            true => builder::merge_environment(&env, &["TERM=xterm".to_owned()]),
            false => env,
        };
        process.set_args(Some(wanted.command.clone())).set_env(Some(env)).set_terminal(Some(wanted.terminal));
        process.set_console_size(None);
        Ok(process)
    }

    /// The socket on which a shim lets us join the streams of a container's process, or of another in it.
    pub(super) fn attach_socket(&self, id: &str) -> PathBuf {
        self.attach_dir().join(id.get(..SOCKET_NAME).unwrap_or(id))
    }

    /// Where those sockets are.
    pub(super) fn attach_dir(&self) -> PathBuf {
        self.parts().config.state.join("cri/streams")
    }
}
