//! Letting a created container's program go.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rung_sys::pidfd;

use super::id::ContainerId;
use super::readiness::{self, Readiness};
use super::status::Status;
use super::store::Store;
use super::{Container, delete};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::hooks;
use crate::launch::gate;
use crate::log;

/// An exec needs no time; only startContainer hooks may take theirs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the `create` of a container that somebody starts meanwhile may still take.
const CREATION: Duration = Duration::from_secs(10);

/// `start`.
pub fn start(store: &Store, id: &ContainerId) -> Result<()> {
    let container = &created(store, id)?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => return Err(Error::new(Kind::WrongState, "cannot start a container that has stopped")),
        Status::Paused => return Err(Error::new(Kind::Paused, "cannot start a paused container: resume it first")),
        Status::Creating => return Err(Error::new(Kind::WrongState, "cannot start a container that is being created")),
        Status::Running => return Err(running()),
    }
    let hooks = container.record.hooks()?;
    let readiness = bind_readiness(container)?;
    let waits = hooks.start_container().as_ref().is_some_and(|list| !list.is_empty());
    let path = container.entry.fifo();
    let opened = gate::open(&path, (!waits).then_some(PATIENCE));
    // Open or broken, it is a gate no more.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(running()),
        other => other.doing(|| format!("remove {}", path.display()))?,
    }
    opened?;
    let poststart = hooks.poststart().as_deref().unwrap_or_default();
    let pid = Some(container.pid().as_raw());
    hooks::run("poststart", poststart, &container.hook_state(), "running", pid).inspect_err(|_| {
        // The specification has such a container stopped and destroyed, and its poststop hooks run.
        if let Err(error) = delete::end_and_destroy(container) {
            log::warning(&error.to_string());
        }
    })?;
    let Some(readiness) = readiness else { return Ok(()) };
    match pidfd::open(container.pid()) {
        Ok(process) if container.is_alive() => readiness.proxy(process.as_fd(), container.pid().as_raw()),
        // It has ended already: what it said before still counts.
        _ => readiness.ready_line().map_or(Ok(()), |line| readiness.tell(&line, container.pid().as_raw()).map(drop)),
    }
}

/// The container, once it is made: who sees it in the list may start it, whether or not its `create` has returned.
fn created(store: &Store, id: &ContainerId) -> Result<Container> {
    let begun = Instant::now();
    loop {
        let container = Container::load(store, id)?;
        if container.status() != Status::Creating || begun.elapsed() > CREATION {
            return Ok(container);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Also where another `start` of the same moment was first.
fn running() -> Error {
    Error::new(Kind::WrongState, "cannot start an already running container")
}

/// The socket that `create` has shown to the program, when a service manager waits for `start`.
fn bind_readiness(container: &Container) -> Result<Option<Readiness>> {
    let Some(manager) = readiness::manager() else { return Ok(None) };
    let directory = container.entry.readiness();
    if !directory.is_dir() {
        log::warning("NOTIFY_SOCKET: the container was created without it, so its program cannot say that it is ready");
        return Ok(None);
    }
    Readiness::bind(&directory, manager).map(Some)
}
