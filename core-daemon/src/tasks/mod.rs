//! Tasks: containers that are, or were just now, running. Each is held by a shim; the daemon only asks.
//!
//! Nothing is remembered that can be asked for: a task's state comes from the shim whenever somebody asks, its exit
//! from the shim's Wait or, if the shim is gone, from cleaning up after it. The table here only says which shim holds
//! which container.

mod begin;
mod bundle;
mod checkpoint;
mod create;
mod delete;
mod exec;
mod features;
mod list;
mod monitor;
mod process;
mod recover;
mod restart;
mod restore;
mod rootfs;
mod sandboxes;
pub mod streams;
mod wait;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_proto::namespace::Namespace;
use tokio::sync::watch;

pub use begin::Begun;
pub use bundle::{Bundle, Bundles};
pub use checkpoint::Checkpoint;
pub use create::CreateTask;
pub use exec::StartedExec;
pub use process::{ExecTask, ProcessState};
pub use restore::{Report, Restored};
pub use sandboxes::{CreateSandbox, Sandboxes, Started as StartedSandbox, Status as SandboxStatus};

use crate::config::{Runtime, Timeouts};
use crate::content::Content;
use crate::error::{Doing as _, Error, Result};
use crate::events::Events;
use crate::id::ContainerId;
use crate::mounts::Mounts;
use crate::records::Containers;
use crate::shims::{Instance, Launcher, Shim, ShimLog};
use crate::snapshots::{InUse, Snapshotters};

/// All tasks of the daemon; clones are the same.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

/// What tasks are made with.
pub struct Parts {
    /// Container records.
    pub containers: Containers,
    /// Where checkpoints are kept.
    pub content: Content,
    /// What shims cannot mount themselves.
    pub mounts: Mounts,
    /// Where root file systems come from.
    pub snapshots: Snapshotters,
    /// Where bundles are.
    pub bundles: Bundles,
    /// Runs shims.
    pub launcher: Launcher,
    /// Where events go.
    pub events: Events,
    /// Which runtime, and how many calls a shim is asked at once.
    pub runtime: Runtime,
    /// How long shims may take.
    pub timeouts: Timeouts,
}

struct Shared {
    parts: Parts,
    table: Mutex<HashMap<Key, Slot>>,
    sandboxes: Mutex<HashMap<Key, sandboxes::Slot>>,
}

type Key = (Namespace, ContainerId);

enum Slot {
    /// Somebody is creating it.
    Creating,
    /// It cannot be asked, and is not gone: its shim does not answer, is dead and not cleaned up after yet, or has a
    /// creation to undo. The text says which.
    Silent(&'static str),
    Live(Arc<Task>),
}

/// Why a task cannot be asked: its shim is slow, or stopped.
const NO_ANSWER: &str = "its shim does not answer";
/// Why a task cannot be asked: its shim is dead, and cleaning up after it failed so far.
const NOT_CLEAN: &str = "its shim is dead, and what it left is not cleaned up yet";
/// Why a task cannot be asked: its creation failed, and what that has made cannot be deleted so far.
const NOT_UNDONE: &str = "its creation failed and is not undone yet";

/// A container and the shim that holds it.
pub struct Task {
    namespace: Namespace,
    id: ContainerId,
    bundle: Bundle,
    program: PathBuf,
    shim: Shim,
    pid: AtomicU32,
    oom_killed: AtomicBool,
    paused: AtomicBool,
    /// It is made from a checkpoint.
    restored: AtomicBool,
    /// Keeps its root file system from being collected, whatever becomes of the container's record.
    #[expect(dead_code, reason = "a guard: it has its effect by being dropped with the task")]
    rootfs: Option<InUse>,
    /// The init process's exit, once the shim has published it, and with it everything before that.
    reported: watch::Sender<Option<Exit>>,
    /// Set by the first who ends the task, before the shim is asked to leave. Others then leave the shim alone, and the
    /// end of its connection is not taken for a failure.
    leaving: AtomicBool,
    ended: watch::Sender<Option<Exit>>,
    /// Held while it is deleted.
    deleting: tokio::sync::Mutex<()>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its pid in the daemon's namespace; 0 where it is not known any more.
    pub pid: u32,
    /// Its code, or 128 plus the signal that ended it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Tasks {
    /// No tasks yet; [`Tasks::restore`] finds those of an earlier daemon.
    pub fn new(parts: Parts) -> Self {
        Self { shared: Arc::new(Shared { parts, table: Mutex::default(), sandboxes: Mutex::default() }) }
    }

    /// The task of a container.
    ///
    /// # Errors
    /// `NotFound` when there is none, or when it is not yet created; `Unavailable` when its shim does not answer.
    pub fn get(&self, namespace: &Namespace, id: &ContainerId) -> Result<Arc<Task>> {
        match self.table().get(&(namespace.clone(), id.clone())) {
            Some(Slot::Live(task)) => Ok(task.clone()),
            Some(Slot::Silent(why)) => Err(Error::unavailable(format!("task {id}: {why}"))),
            _ => Err(Error::not_found(format!("task {id}: not found"))),
        }
    }

    /// Whether a container has a task, including one that is being created and one whose shim does not answer.
    pub fn holds(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        self.table().contains_key(&(namespace.clone(), id.clone()))
    }

    /// The tasks of a namespace, or of all of them, by id.
    pub fn all(&self, namespace: Option<&Namespace>) -> Vec<Arc<Task>> {
        let mut tasks: Vec<_> = self
            .table()
            .values()
            .filter_map(|slot| match slot {
                Slot::Live(task) if namespace.is_none_or(|wanted| *wanted == task.namespace) => Some(task.clone()),
                _ => None,
            })
            .collect();
        tasks.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        tasks
    }

    /// The containers of a namespace that have a task which cannot be asked, by id.
    pub fn silent(&self, namespace: &Namespace) -> Vec<ContainerId> {
        let is_silent = |(key, slot): (&Key, &Slot)| {
            (key.0 == *namespace && matches!(slot, Slot::Silent(_))).then(|| key.1.clone())
        };
        let mut silent: Vec<_> = self.table().iter().filter_map(is_silent).collect();
        silent.sort();
        silent
    }

    /// The program of the runtime called `runtime`, or of the default one; of the runtime which is configured to stand in
    /// for it, where there is one.
    ///
    /// # Errors
    /// As [`crate::shims::locate`].
    pub fn program(&self, runtime: &str) -> Result<PathBuf> {
        let Parts { runtime: config, launcher, .. } = self.parts();
        let runtime = if runtime.is_empty() { &config.default } else { runtime };
        let locate = |runtime: &str| crate::shims::locate(runtime, &launcher.daemon, &launcher.opt);
        match config.aliases.get(runtime) {
            Some(other) => locate(other).doing(|| format!("runtime.aliases: {other} stands in for {runtime}")),
            None => locate(runtime),
        }
    }

    /// Warns of runtimes that cannot stand in for others as they are configured to, because they are not there.
    pub fn warn_of_aliases(&self) {
        for name in self.parts().runtime.aliases.keys() {
            if let Err(error) = self.program(name) {
                tracing::warn!("configuration: {error}");
            }
        }
    }

    /// Runs shims' programs.
    pub fn launcher(&self) -> &Launcher {
        &self.parts().launcher
    }

    fn parts(&self) -> &Parts {
        &self.shared.parts
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<Key, sandboxes::Slot>> {
        self.shared.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a task into the table and watches over its shim from now on.
    fn adopt(&self, task: Arc<Task>, log: Option<ShimLog>) {
        self.table().insert(task.key(), Slot::Live(task.clone()));
        let tasks = self.clone();
        tokio::spawn(async move {
            if let Some(log) = log {
                log.pass_on(&task.namespace, &task.id, task.shim.closed()).await;
            }
            task.shim.closed().await;
            tasks.shim_lost(&task).await;
        });
    }

    /// Takes a task out of the table, if it is still that one.
    fn forget(&self, task: &Arc<Task>) {
        let mut table = self.table();
        if matches!(table.get(&task.key()), Some(Slot::Live(live)) if Arc::ptr_eq(live, task)) {
            table.remove(&task.key());
        }
    }
}

impl Task {
    /// The container's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The container.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Pid of the init process.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Whether the kernel killed one of its processes for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.oom_killed.load(Ordering::SeqCst)
    }

    /// Whether it is frozen.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Returns once the shim has published the exit of the init process, and with it everything that came before.
    pub async fn exit_reported(&self) {
        let mut reported = self.reported.subscribe();
        let _ = reported.wait_for(Option::is_some).await;
    }

    /// The directory in which its shim and runtime find it.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    fn new(key: Key, bundle: Bundle, program: PathBuf, shim: Shim, rootfs: Option<InUse>) -> Self {
        let (namespace, id) = key;
        Self {
            namespace,
            id,
            bundle,
            program,
            shim,
            pid: AtomicU32::new(0),
            oom_killed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            restored: AtomicBool::new(false),
            rootfs,
            reported: watch::Sender::new(None),
            leaving: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            deleting: tokio::sync::Mutex::default(),
        }
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.id.clone())
    }

    fn instance(&self) -> Instance<'_> {
        Instance { program: &self.program, namespace: &self.namespace, id: &self.id, bundle: self.bundle.path() }
    }
}
