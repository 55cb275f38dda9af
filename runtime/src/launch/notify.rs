//! Handing a seccomp listener to the agent that answers it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rung_sys::fd_pass;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Answers;
use crate::error::{Doing as _, Error, Kind, Result};

/// Where a listener goes.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The agent's socket.
    pub path: PathBuf,
    /// Opaque text for the agent.
    pub metadata: String,
    /// `creating` for a container's first process, `running` for an exec.
    pub status: &'static str,
    /// The number of the container's first process, when it is another one.
    pub init_pid: Option<i32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: Box<RawValue>,
}

/// Sends the listener of process `pid` with the container's state.
pub fn send(answers: &Answers<'_>, pid: i32, listener: &OwnedFd) -> Result<()> {
    let Some(destination) = &answers.listener else {
        return Err(Error::invalid("linux.seccomp.listenerPath: a profile with SCMP_ACT_NOTIFY needs one"));
    };
    let broken = |error: serde_json::Error| Error::new(Kind::Internal, error.to_string());
    let state = answers.state.to_json(destination.status, Some(destination.init_pid.unwrap_or(pid)))?;
    let message = Message {
        oci_version: &answers.state.version,
        fds: ["seccompFd"],
        pid,
        metadata: &destination.metadata,
        state: RawValue::from_string(String::from_utf8_lossy(&state).into_owned()).map_err(broken)?,
    };
    let text = serde_json::to_vec(&message).map_err(broken)?;
    let what = || format!("hand the seccomp listener to {}", destination.path.display());
    let socket = UnixStream::connect(&destination.path).doing(what)?;
    fd_pass::send(socket.as_fd(), &text, &[listener.as_fd()]).doing(what)
}
