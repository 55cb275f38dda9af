//! Containers: their names, states and records, and what can be done with them.

pub mod alive;
mod birth;
pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod exec;
pub mod foreground;
mod host_root;
pub mod id;
pub mod kill;
pub mod mounts;
pub mod readiness;
pub mod record;
pub mod restore;
pub mod sockets;
pub mod start;
pub mod status;
pub mod store;
mod terminal;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rung_sys::process::Pid;

use crate::cgroups::{Cgroup, Unit};
use crate::error::{Error, Kind, Result};
use crate::hooks::{self, HookState};
use crate::log;
use id::ContainerId;
use record::Record;
use status::Status;
use store::{Entry, Store};

/// A container that exists.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub entry: Entry,
    /// Its record.
    pub record: Record,
}

impl Container {
    /// Finds a container by name.
    pub fn load(store: &Store, id: &ContainerId) -> Result<Self> {
        let entry = store.entry(id)?;
        let record = entry.load()?;
        Ok(Self { entry, record })
    }

    /// The number of its first process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.record.init_process_pid)
    }

    /// Whether its first process runs.
    pub fn is_alive(&self) -> bool {
        alive::is_alive(self.pid(), self.record.init_process_start)
    }

    /// Whether that process has ended, or is about to and cannot be joined any more.
    pub fn is_ending(&self) -> bool {
        alive::is_ending(self.pid(), self.record.init_process_start)
    }

    /// Where it is in its life; nothing of this is stored, all of it is looked at.
    pub fn status(&self) -> Status {
        if self.record.init_process_pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        // What cannot be read is taken for not frozen: a cgroup may be gone, or never have been made.
        if self.cgroup().is_frozen().unwrap_or(false) {
            return Status::Paused;
        }
        if self.entry.fifo().exists() { Status::Created } else { Status::Running }
    }

    /// Its cgroups.
    pub fn cgroup(&self) -> Cgroup {
        let made = &self.record.config.cgroups;
        let unit = || Unit::parse(Some(&made.path), &self.record.id, made.rootless).ok();
        Cgroup::from_paths(&self.record.cgroup_paths).managed_by(made.systemd.then(unit).flatten())
    }

    /// What hooks are told.
    pub fn hook_state(&self) -> HookState {
        HookState {
            version: self.record.config.version.clone(),
            id: self.record.id.clone(),
            bundle: self.record.bundle().to_owned(),
            annotations: self
                .record
                .annotations()
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            output: self.hook_output(),
        }
    }

    /// Where the hooks of this container print to. A file that is gone by now is no reason not to run them.
    fn hook_output(&self) -> [Option<Arc<OwnedFd>>; 2] {
        let annotations = self.record.annotations();
        let named = |stream: &str| annotations.get(&*format!("run.oci.hooks.{stream}")).map(PathBuf::from);
        hooks::open_output(&[named("stdout"), named("stderr")]).unwrap_or_else(|error| {
            log::warning(&error.to_string());
            [None, None]
        })
    }

    /// Refuses when the container is stopped.
    pub fn require_alive(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        Err(not_running())
    }
}

fn not_running() -> Error {
    Error::new(Kind::NotRunning, "container not running")
}

/// What the global flags say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The state directory.
    pub store: Store,
    /// Use the systemd driver for cgroups.
    pub systemd: bool,
    /// A new container stays in the runtime's own cgroup.
    pub without_cgroup: bool,
    /// Permission errors of cgroups may be ignored.
    pub rootless: bool,
}
