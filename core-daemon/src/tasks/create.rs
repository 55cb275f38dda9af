//! Creating a task: bundle, shim, container, in that order.
//!
//! Each step leaves behind what finds it again: the bundle is there before the shim is started, the shim's address is
//! written before it is asked for anything. A failure undoes the steps that were taken, in reverse.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::containerd::task::v3 as shim;
use gantry_proto::containerd::types::Mount;
use gantry_proto::namespace::Namespace;
use prost_types::Any;
use tokio::sync::oneshot;

use super::begin::{Begun, Starting};
use super::{Bundle, Checkpoint, Key, Slot, Task, Tasks};
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::id::ContainerId;
use crate::shims::{Address, Instance, Patience, Shim, ShimLog};

/// What a task is created with, besides its container's record.
#[derive(Debug, Clone, Default)]
pub struct CreateTask {
    /// Mounts of the root file system; none: those of the container's snapshot, if it has one.
    pub rootfs: Vec<Mount>,
    /// Where standard input comes from.
    pub stdin: String,
    /// Where standard output goes.
    pub stdout: String,
    /// Where standard error goes.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// What to restore from.
    pub checkpoint: Option<Checkpoint>,
    /// The runtime's options, over those of the container.
    pub options: Option<Any>,
    /// The shim's program, or a runtime's name, instead of the container's.
    pub runtime: String,
    /// A shim that runs already and is to hold this container too, as sandboxes do.
    pub shim: Option<Address>,
}

/// What is in a specification that labels mounts.
const LABEL: &[u8] = b"\"mountLabel\"";

impl Tasks {
    /// Creates the task of a container. If the caller stops waiting, the task is created all the same and then deleted,
    /// because nobody would know of it.
    ///
    /// # Errors
    /// `NotFound` without such a container, `AlreadyExists` when it has a task, else what the shim says.
    pub async fn create(&self, context: &Context, id: &ContainerId, request: CreateTask) -> Result<Arc<Task>> {
        self.create_begun(context, id, request, None).await
    }

    /// As [`Tasks::create`], where the task may have been begun with [`Tasks::begin`].
    ///
    /// # Errors
    /// As [`Tasks::create`].
    pub async fn create_begun(
        &self,
        context: &Context,
        id: &ContainerId,
        request: CreateTask,
        begun: Option<Begun>,
    ) -> Result<Arc<Task>> {
        let (tasks, context, id) = (self.clone(), context.clone(), id.clone());
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let result = tasks.create_now(&context, &id, request, begun).await;
            if let Err(Ok(task)) = sender.send(result) {
                tracing::warn!(namespace = %context.namespace, %id, "task was created for a client that is gone");
                tasks.discard(&task).await;
            }
        });
        answer.await.unwrap_or_else(|_| Err(Error::internal("creation of the task was cut short")))
    }

    async fn create_now(
        &self,
        context: &Context,
        id: &ContainerId,
        request: CreateTask,
        begun: Option<Begun>,
    ) -> Result<Arc<Task>> {
        let key = (context.namespace.clone(), id.clone());
        let (reservation, starting) = match begun.and_then(Begun::split) {
            Some((reservation, starting)) => (reservation, Some(starting)),
            None => (Reservation::make(self, &key)?, None),
        };
        let made = self.create_reserved(context, &key, request, starting).await;
        match &made {
            Ok(_) => reservation.fulfilled(),
            // Before the name is free: who takes it next may activate mounts under it.
            Err(_) if reservation.holds() => self.deactivate(&context.namespace, id).await,
            // Whoever cleans up later deactivates them too.
            Err(_) => {}
        }
        made
    }

    async fn create_reserved(
        &self,
        context: &Context,
        key: &Key,
        request: CreateTask,
        starting: Option<Starting>,
    ) -> Result<Arc<Task>> {
        let id = &key.1;
        let prepared = self.prepare(context, id, &request).await;
        let (container, program, rootfs) = match (prepared, starting) {
            (Ok((container, _, rootfs)), Some(mut starting)) => {
                let shim = starting.shim().await;
                let Starting { bundle, program, log, .. } = starting;
                let task = self.launch(key, &container, bundle, program, request, (rootfs, Some(shim))).await?;
                self.adopt(task.clone(), Some(log));
                failpoint::hit("create.done");
                return Ok(task);
            }
            (Err(error), Some(starting)) => {
                starting.undo().await;
                return Err(error);
            }
            (prepared, None) => prepared?,
        };
        let bundle = self.parts().bundles.of(&context.namespace, id);
        bundle.create(container.spec.as_ref().map(|spec| spec.value.as_slice()), &program)?;
        failpoint::hit("create.bundle");
        let checkpoint = self.unpacked(context, &bundle, request.checkpoint).await.inspect_err(|_| bundle.remove())?;
        let request = CreateTask { checkpoint, ..request };
        let request =
            self.in_sandbox(&context.namespace, &container, &bundle, request).inspect_err(|_| bundle.remove())?;
        // A shim that is shared has its log in the bundle it was started for.
        let log = request
            .shim
            .is_none()
            .then(|| ShimLog::open(bundle.path()))
            .transpose()
            .inspect_err(|_| bundle.remove())?;
        bundle.note_rootfs(&container.snapshotter, &container.snapshot_key).inspect_err(|_| bundle.remove())?;
        let task = self.launch(key, &container, bundle, program, request, (rootfs, None)).await?;
        self.adopt(task.clone(), log);
        failpoint::hit("create.done");
        Ok(task)
    }

    /// What is known before there is a bundle: the container, the shim's program, and the root file system's mounts.
    async fn prepare(
        &self,
        context: &Context,
        id: &ContainerId,
        request: &CreateTask,
    ) -> Result<(Container, PathBuf, Vec<Mount>)> {
        let container = self.parts().containers.get(&context.namespace, id)?;
        let rootfs = self.rootfs(context, &container, request)?;
        let runtime = if request.runtime.is_empty() { runtime_of(&container) } else { &request.runtime };
        let program = self.program(runtime)?;
        let spec = container.spec.as_ref().ok_or_else(|| Error::invalid(format!("container {id}: has no spec")))?;
        self.check_features(&program, options_of(request, &container), &spec.value).await?;
        let rootfs = self.activate(context, id, &program, rootfs).await?;
        Ok((container, program, rootfs))
    }

    /// Has a sandbox's container created in the sandbox's shim, if that shim can be reached without running its program
    /// again.
    fn in_sandbox(
        &self,
        namespace: &Namespace,
        container: &Container,
        bundle: &Bundle,
        request: CreateTask,
    ) -> Result<CreateTask> {
        if container.sandbox.is_empty() {
            return Ok(request);
        }
        bundle.mark_sandbox(&container.sandbox)?;
        let shim = match request.shim {
            Some(shim) => Some(shim),
            None => self.sandbox_endpoint(namespace, &container.sandbox)?,
        };
        Ok(CreateTask { shim, ..request })
    }

    /// The root file system's mounts: the request's, else those of the container's snapshot.
    fn rootfs(&self, context: &Context, container: &Container, request: &CreateTask) -> Result<Vec<Mount>> {
        if !request.rootfs.is_empty() || container.snapshot_key.is_empty() {
            return Ok(request.rootfs.clone());
        }
        let mounts = self.parts().snapshots.get(&container.snapshotter)?.mounts(context, &container.snapshot_key);
        let mounts = mounts.doing(|| format!("root file system of container {}", container.id))?;
        let label = mount_label(container).map(|label| format!("context=\"{label}\""));
        let labelled = |mut mount: Mount| {
            mount.options.extend(label.clone().filter(|_| mount.r#type == "overlay"));
            mount
        };
        Ok(mounts.into_iter().map(Mount::from).map(labelled).collect())
    }

    async fn launch(
        &self,
        key: &Key,
        container: &Container,
        bundle: Bundle,
        program: PathBuf,
        request: CreateTask,
        (rootfs, started): (Vec<Mount>, Option<Result<Shim>>),
    ) -> Result<Arc<Task>> {
        let (namespace, id) = key;
        let options = options_of(&request, container).cloned();
        let shim = match started {
            Some(shim) => shim,
            None => self.shim(namespace, id, &bundle, &program, options.as_ref(), &request).await,
        };
        let shim = match shim {
            Ok(shim) => shim,
            Err(error) => {
                self.undo_launch(namespace, id, &bundle, &program, request.shim.is_none()).await;
                return Err(error);
            }
        };
        let rootfs_in_use = self.rootfs_in_use(namespace, id, &bundle);
        let task = Arc::new(Task::new(key.clone(), bundle, program, shim, rootfs_in_use));
        task.restored.store(request.checkpoint.is_some(), Ordering::Relaxed);
        match create_in_shim(&task, request, rootfs, options).await {
            Ok(pid) => {
                task.pid.store(pid, Ordering::Relaxed);
                Ok(task)
            }
            Err(error) => {
                self.dismiss(&task).await;
                Err(error)
            }
        }
    }

    pub(super) async fn shim(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        bundle: &Bundle,
        program: &Path,
        options: Option<&Any>,
        request: &CreateTask,
    ) -> Result<Shim> {
        let parts = self.parts();
        let address = match &request.shim {
            Some(address) => address.clone(),
            None => {
                let instance = Instance { program, namespace, id, bundle: bundle.path() };
                parts.launcher.start(instance, options).await.doing(|| format!("start shim of {id}"))?
            }
        };
        failpoint::hit("create.shim");
        bundle.record(&address)?;
        let shim = Shim::connect(&address, namespace, &parts.timeouts, parts.runtime.shim_calls).await?;
        failpoint::hit("create.connected");
        Ok(shim)
    }

    /// Cleans up after a shim that was started, perhaps, but never answered.
    pub(super) async fn undo_launch(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        bundle: &Bundle,
        program: &Path,
        own_shim: bool,
    ) {
        if own_shim {
            let instance = Instance { program, namespace, id, bundle: bundle.path() };
            if let Err(error) = self.parts().launcher.delete(instance).await {
                tracing::debug!(%namespace, %id, %error, "clean up after a shim that did not start");
            }
        }
        bundle.remove();
    }
}

/// The runtime's options: those of the request, else the container's.
fn options_of<'a>(request: &'a CreateTask, container: &'a Container) -> Option<&'a Any> {
    request.options.as_ref().or_else(|| container.runtime.as_ref()?.options.as_ref())
}

/// The SELinux label that the container's specification wants its mounts to have.
fn mount_label(container: &Container) -> Option<String> {
    let spec = &container.spec.as_ref()?.value;
    // Few have one, and searching the text is faster than parsing it.
    spec.windows(LABEL.len()).any(|bytes| bytes == LABEL).then_some(())?;
    let spec: serde_json::Value = serde_json::from_slice(spec).ok()?;
    spec.pointer("/linux/mountLabel")?.as_str().filter(|label| !label.is_empty()).map(str::to_owned)
}

pub(super) fn runtime_of(container: &Container) -> &str {
    container.runtime.as_ref().map_or("", |runtime| runtime.name.as_str())
}

async fn create_in_shim(task: &Task, request: CreateTask, rootfs: Vec<Mount>, options: Option<Any>) -> Result<u32> {
    let message = shim::CreateTaskRequest {
        id: task.id.to_string(),
        bundle: task.bundle.path().to_string_lossy().into_owned(),
        rootfs,
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        checkpoint: match request.checkpoint {
            Some(Checkpoint::Directory(path)) => path,
            _ => String::new(),
        },
        parent_checkpoint: String::new(),
        options,
    };
    let response: Result<shim::CreateTaskResponse> = task.shim.call("Create", &message, Patience::Change).await;
    response.map(|response| response.pid).map_err(|error| match error.kind() {
        // The connection ends when the shim dies, which says nothing about why.
        Kind::Unavailable => Error::new(Kind::Unknown, format!("create task {}: shim died: {error}", task.id)),
        Kind::DeadlineExceeded => error.context(format!("create task {}", task.id)),
        // The shim says which container it could not create.
        _ => error,
    })
}

/// Holds a container's place in the table while its task is created.
pub(super) struct Reservation {
    tasks: Tasks,
    key: Key,
    done: bool,
}

impl Reservation {
    pub(super) fn make(tasks: &Tasks, key: &Key) -> Result<Self> {
        let mut table = tasks.table();
        if table.contains_key(key) {
            return Err(Error::already_exists(format!("task {}: already exists", key.1)));
        }
        table.insert(key.clone(), Slot::Creating);
        drop(table);
        Ok(Self { tasks: tasks.clone(), key: key.clone(), done: false })
    }

    fn fulfilled(mut self) {
        self.done = true;
    }

    /// Whether the place is still the reservation. It is not where a failed creation has left something to clean up.
    fn holds(&self) -> bool {
        matches!(self.tasks.table().get(&self.key), Some(Slot::Creating))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.done && self.holds() {
            self.tasks.table().remove(&self.key);
        }
    }
}
