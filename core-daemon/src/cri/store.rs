//! Sandboxes and containers in memory, beside their records on disk.
//!
//! The record is what outlives the daemon; every change of it is on disk before it is seen here. What only a running
//! daemon knows, such as the task, is beside it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1 as containerd;
use gantry_proto::containerd::types;
use gantry_proto::gantry::cri::v1::{ContainerRecord, SandboxRecord};
use gantry_proto::namespace::Namespace;
use gantry_proto::runtime::v1::{ContainerState, PodSandboxState};
use tokio::sync::watch;

use super::labels;
use super::lists::Unchanging;
use crate::error::{Doing, Error, Kind, Result};
use crate::filter::Filter;
use crate::id::ContainerId;
use crate::records::{Containers, Sandboxes};
use crate::tasks::Task;

/// Extension of the record of a sandbox, and of that of a container.
const EXTENSION: &str = "gantry.cri.v1";

/// All sandboxes and containers.
pub struct Store {
    namespace: Namespace,
    sandbox_records: Sandboxes,
    container_records: Containers,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    changes: Changes,
}

/// How often anything has changed that a list shows: counted after the change, so that what was looked at after the count
/// was read is at least as new.
#[derive(Clone, Default)]
struct Changes(Arc<AtomicU64>);

impl Changes {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A pod sandbox.
pub struct Sandbox {
    id: ContainerId,
    record: Mutex<Arc<SandboxRecord>>,
    /// Held while the record changes on disk; whoever reads meanwhile finds the one before.
    editing: Mutex<()>,
    /// Its first process, or what of the shim stands for it where it has none, while that is there.
    pid: Mutex<Option<u32>>,
    /// What `/proc` says of the network of that number is the pod's.
    shows_network: AtomicBool,
    created_at: i64,
    changes: Changes,
    pub(super) unchanging: Unchanging,
    /// That it has stopped is told, once.
    pub(super) stop_told: AtomicBool,
    /// Whoever stops or removes it has the turn.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// A container of a pod.
pub struct Container {
    id: ContainerId,
    record: Mutex<Arc<ContainerRecord>>,
    /// As of a sandbox.
    editing: Mutex<()>,
    run: Mutex<Run>,
    created_at: i64,
    changes: Changes,
    pub(super) unchanging: Unchanging,
    /// Set once the container has ended and everything that follows from it is done.
    ended: watch::Sender<bool>,
    /// It was sent the signal that asks it to stop, or is being sent it.
    pub(super) asked_to_stop: AtomicBool,
    /// The forbidden system calls for which it is ended.
    pub(super) ended_for: OnceLock<String>,
    /// Whoever starts, stops or removes it has the turn.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Whoever makes a checkpoint of it has this one.
    pub(super) checkpoints: tokio::sync::Mutex<()>,
}

/// What the daemon knows of a container's process.
#[derive(Default, Clone)]
pub(super) enum Run {
    /// It was not started yet, or has ended: the record tells which.
    #[default]
    None,
    /// It runs, since the time given.
    Going {
        /// Its task.
        task: Arc<Task>,
        /// When it was started, in nanoseconds since 1970.
        started_at: i64,
    },
    /// Its shim is there but does not answer.
    Unknown,
}

/// Nanoseconds since 1970, as this interface counts time.
pub(super) fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Now, likewise.
pub(super) fn now() -> i64 {
    nanos(SystemTime::now())
}

impl Store {
    /// A store without anything in it.
    pub(super) fn new(namespace: Namespace, sandbox_records: Sandboxes, container_records: Containers) -> Self {
        let (sandboxes, containers, changes) = (Mutex::default(), Mutex::default(), Changes::default());
        Self { namespace, sandbox_records, container_records, sandboxes, containers, changes }
    }

    /// How often anything has changed that a list shows.
    pub(super) fn changes(&self) -> u64 {
        self.changes.0.load(Ordering::SeqCst)
    }

    /// The sandbox with this id, or the one whose id begins with it.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, `InvalidArgument` where the text fits several.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&lock(&self.sandboxes), "sandbox", id)
    }

    /// The container with this id, or the one whose id begins with it.
    ///
    /// # Errors
    /// `NotFound` without such a container, `InvalidArgument` where the text fits several.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&lock(&self.containers), "container", id)
    }

    /// All sandboxes, by id.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    /// All containers, by id.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// The containers of a sandbox, by id.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = lock(&self.containers);
        containers.values().filter(|container| container.record().sandbox_id == sandbox).cloned().collect()
    }

    /// Stores a new sandbox, on disk and here.
    pub(super) fn add_sandbox(&self, mut sandbox: types::Sandbox, record: SandboxRecord) -> Result<Arc<Sandbox>> {
        sandbox.extensions.insert(EXTENSION.to_owned(), any::pack(&record));
        let id = ContainerId::parse(&sandbox.sandbox_id)?;
        self.sandbox_records.create(&self.namespace, sandbox)?;
        let sandbox = Arc::new(Sandbox::new(id, record, self.changes.clone()));
        lock(&self.sandboxes).insert(sandbox.id.to_string(), sandbox.clone());
        self.changes.note();
        Ok(sandbox)
    }

    /// Stores a new container, on disk and here.
    pub(super) fn add_container(
        &self,
        mut container: containerd::Container,
        record: ContainerRecord,
    ) -> Result<Arc<Container>> {
        container.extensions.insert(EXTENSION.to_owned(), any::pack(&record));
        container.extensions.insert(labels::METADATA.to_owned(), labels::metadata(&container.id, &record)?);
        let id = ContainerId::parse(&container.id)?;
        self.container_records.create(&self.namespace, container)?;
        let container = Arc::new(Container::new(id, record, self.changes.clone()));
        lock(&self.containers).insert(container.id.to_string(), container.clone());
        self.changes.note();
        Ok(container)
    }

    /// Changes a sandbox's record.
    pub(super) fn edit_sandbox(&self, sandbox: &Sandbox, edit: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        let _editing = lock(&sandbox.editing);
        let mut record = SandboxRecord::clone(&sandbox.record());
        edit(&mut record);
        let mut stored = self.sandbox_records.get(&self.namespace, sandbox.id.as_str())?;
        stored.extensions.insert(EXTENSION.to_owned(), any::pack(&record));
        self.sandbox_records.update(&self.namespace, &stored, &[format!("extensions.{EXTENSION}")])?;
        *lock(&sandbox.record) = Arc::new(record);
        self.changes.note();
        Ok(())
    }

    /// Changes a container's record and, with it, the containerd record it is an extension of.
    pub(super) fn edit_container(
        &self,
        container: &Container,
        edit: impl FnOnce(&mut ContainerRecord, &mut containerd::Container) -> Result<()>,
    ) -> Result<()> {
        let _editing = lock(&container.editing);
        let mut record = ContainerRecord::clone(&container.record());
        self.container_records.edit(&self.namespace, &container.id, |stored| {
            edit(&mut record, stored)?;
            stored.extensions.insert(EXTENSION.to_owned(), any::pack(&record));
            Ok(())
        })?;
        *lock(&container.record) = Arc::new(record);
        self.changes.note();
        Ok(())
    }

    /// Forgets a sandbox, on disk and here.
    pub(super) fn remove_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        gone_is_fine(self.sandbox_records.delete(&self.namespace, sandbox.id.as_str()))?;
        lock(&self.sandboxes).remove(sandbox.id.as_str());
        self.changes.note();
        Ok(())
    }

    /// Forgets a container, on disk and here.
    pub(super) fn remove_container(&self, container: &Container) -> Result<()> {
        gone_is_fine(self.container_records.delete(&self.namespace, &container.id))?;
        lock(&self.containers).remove(container.id.as_str());
        self.changes.note();
        Ok(())
    }

    /// Whether there is certainly no record of such a container. One that cannot be read is one.
    pub(super) fn lacks_container(&self, id: &str) -> bool {
        let Ok(id) = ContainerId::parse(id) else { return true };
        self.container_records.get(&self.namespace, &id).is_err_and(|error| error.kind() == Kind::NotFound)
    }

    /// The same of a sandbox.
    pub(super) fn lacks_sandbox(&self, id: &str) -> bool {
        self.sandbox_records.get(&self.namespace, id).is_err_and(|error| error.kind() == Kind::NotFound)
    }

    /// Reads all records. One that cannot be read is logged and left out.
    pub(super) fn load(&self) -> Result<()> {
        let mut sandboxes = lock(&self.sandboxes);
        for stored in self.sandbox_records.list(&self.namespace, &Filter::everything())? {
            let Some(extension) = stored.extensions.get(EXTENSION) else { continue };
            match (ContainerId::parse(&stored.sandbox_id), any::unpack::<SandboxRecord>(extension)) {
                (Ok(id), Ok(record)) => {
                    let sandbox = Sandbox::new(id, record, self.changes.clone());
                    sandboxes.insert(stored.sandbox_id, Arc::new(sandbox));
                }
                (Err(error), _) => tracing::error!(id = stored.sandbox_id, %error, "read a sandbox"),
                (_, Err(error)) => tracing::error!(id = stored.sandbox_id, %error, "read a sandbox"),
            }
        }
        let mut containers = lock(&self.containers);
        for stored in self.container_records.list(&self.namespace, &Filter::everything())? {
            let Some(extension) = stored.extensions.get(EXTENSION) else { continue };
            match (ContainerId::parse(&stored.id), any::unpack::<ContainerRecord>(extension)) {
                (Ok(id), Ok(record)) => {
                    let container = Container::new(id, record, self.changes.clone());
                    containers.insert(stored.id, Arc::new(container));
                }
                (Err(error), _) => tracing::error!(id = stored.id, %error, "read a container"),
                (_, Err(error)) => tracing::error!(id = stored.id, %error, "read a container"),
            }
        }
        Ok(())
    }
}

impl Sandbox {
    fn new(id: ContainerId, record: SandboxRecord, changes: Changes) -> Self {
        Self {
            id,
            created_at: record.created_at,
            stop_told: AtomicBool::new(record.stopped),
            record: Mutex::new(Arc::new(record)),
            editing: Mutex::default(),
            pid: Mutex::default(),
            shows_network: AtomicBool::default(),
            changes,
            unchanging: Unchanging::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What is known of it now.
    pub fn record(&self) -> Arc<SandboxRecord> {
        lock(&self.record).clone()
    }

    /// When it was made, in nanoseconds since 1970.
    pub(super) fn created_at(&self) -> i64 {
        self.created_at
    }

    /// Where its containers have their logs; empty: they have none.
    pub(super) fn log_directory(&self) -> String {
        self.record().config.as_ref().map(|config| config.log_directory.clone()).unwrap_or_default()
    }

    /// Whether containers can be made in it.
    pub fn state(&self) -> PodSandboxState {
        let record = self.record();
        let process = !record.has_shim || self.pid().is_some();
        match !record.stopped && process && record.boot_id == boot_id() {
            true => PodSandboxState::SandboxReady,
            false => PodSandboxState::SandboxNotready,
        }
    }

    /// Pid of its first process; where it has none, the number of a thread of its shim, or the shim's. Only while that is there.
    pub fn pid(&self) -> Option<u32> {
        *lock(&self.pid)
    }

    /// That pid, where the network of its process, or thread, is the pod's.
    pub(super) fn pid_in_network(&self) -> Option<u32> {
        self.pid().filter(|_| self.shows_network.load(Ordering::SeqCst))
    }

    pub(super) fn set_shows_network(&self, does: bool) {
        self.shows_network.store(does, Ordering::SeqCst);
    }

    pub(super) fn set_pid(&self, pid: Option<u32>) {
        *lock(&self.pid) = pid;
        self.changes.note();
    }
}

impl Container {
    fn new(id: ContainerId, record: ContainerRecord, changes: Changes) -> Self {
        let ended = watch::Sender::new(record.end.is_some());
        Self {
            id,
            asked_to_stop: AtomicBool::new(record.stop_requested),
            ended_for: OnceLock::new(),
            created_at: record.created_at,
            changes,
            unchanging: Unchanging::default(),
            record: Mutex::new(Arc::new(record)),
            editing: Mutex::default(),
            run: Mutex::default(),
            ended,
            turn: tokio::sync::Mutex::default(),
            checkpoints: tokio::sync::Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What is known of it now.
    pub fn record(&self) -> Arc<ContainerRecord> {
        lock(&self.record).clone()
    }

    /// When it was made, in nanoseconds since 1970.
    pub(super) fn created_at(&self) -> i64 {
        self.created_at
    }

    /// Whether it runs.
    pub fn state(&self) -> ContainerState {
        match (&*lock(&self.run), self.record().end.is_some()) {
            (_, true) => ContainerState::ContainerExited,
            (Run::None, false) => ContainerState::ContainerCreated,
            (Run::Going { .. }, false) => ContainerState::ContainerRunning,
            (Run::Unknown, false) => ContainerState::ContainerUnknown,
        }
    }

    /// Its task, while it runs.
    ///
    /// # Errors
    /// `FailedPrecondition` while it does not.
    pub fn task(&self) -> Result<Arc<Task>> {
        match &*lock(&self.run) {
            Run::Going { task, .. } if self.record().end.is_none() => Ok(task.clone()),
            _ => Err(Error::precondition(format!("container {}: is not running", self.id))),
        }
    }

    /// When it was started, in nanoseconds since 1970; 0: it was not.
    pub fn started_at(&self) -> i64 {
        match (&*lock(&self.run), &self.record().end) {
            (_, Some(end)) => end.started_at,
            (Run::Going { started_at, .. }, None) => *started_at,
            _ => 0,
        }
    }

    pub(super) fn set_run(&self, run: Run) {
        *lock(&self.run) = run;
        self.changes.note();
    }

    /// Tells whoever waits that it has ended.
    pub(super) fn set_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Returns once it has ended and its record says how.
    pub async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// The run of the machine that this is, which no other has.
pub(super) fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| crate::id::boot().unwrap_or_default())
}

fn find<T>(all: &BTreeMap<String, Arc<T>>, what: &str, id: &str) -> Result<Arc<T>> {
    if let Some(found) = all.get(id) {
        return Ok(found.clone());
    }
    if id.is_empty() {
        // Not even one that is gone, which is as good as stopped and removed.
        return Err(Error::invalid(format!("{what}: an id is required")));
    }
    let mut fitting = all
        .range::<str, _>((Bound::Included(id), Bound::Unbounded))
        .take_while(|(whole, _)| whole.starts_with(id))
        .map(|(_, found)| found);
    match (fitting.next(), fitting.next()) {
        (Some(found), None) => Ok(found.clone()),
        (Some(_), Some(_)) => Err(Error::invalid(format!("{what} {id}: fits several; write more of the id"))),
        (None, _) => Err(Error::not_found(format!("{what} {id}: not found"))),
    }
}

fn gone_is_fine(deleted: Result<()>) -> Result<()> {
    match deleted {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        deleted => deleted.doing(|| "remove the record"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
