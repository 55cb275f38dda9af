//! Which agent gets a seccomp listener, and what it is told of the container.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{ContainerState, StateBuilder};

use super::Answers;
use crate::error::{Error, Kind, Result};
use crate::seccomp::notify;

/// Where a listener goes.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The agent's socket.
    pub path: PathBuf,
    /// Opaque text for the agent.
    pub metadata: String,
    /// `creating` for a container's first process, `running` for an exec.
    pub status: ContainerState,
    /// The number of the container's first process, when it is another one.
    pub init_pid: Option<i32>,
}

/// Sends the listener of process `pid` with the container's state.
pub fn send(answers: &Answers<'_>, pid: i32, listener: &OwnedFd) -> Result<()> {
    let Some(destination) = &answers.listener else {
        return Err(Error::invalid("linux.seccomp.listenerPath: a profile with SCMP_ACT_NOTIFY needs one"));
    };
    let container = answers.state;
    let state = StateBuilder::default()
        .version(container.version.clone())
        .id(container.id.clone())
        .status(destination.status)
        .pid(destination.init_pid.unwrap_or(pid))
        .bundle(container.bundle.clone())
        .annotations(container.annotations.clone().into_iter().collect::<std::collections::HashMap<_, _>>())
        .build()
        .map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    notify::hand_over(&destination.path, Some(&destination.metadata), state, pid, listener.as_fd())
        .map_err(|error| Error::new(Kind::Internal, error.to_string()))
}
