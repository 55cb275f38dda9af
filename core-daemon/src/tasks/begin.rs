//! Starting the shim of a task before its container is recorded: that takes about as long as the record's way to the disk.
//!
//! A daemon that is ended in between finds the bundle, and a shim without a container, which it asks to leave.

use std::path::PathBuf;
use std::sync::Arc;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::namespace::Namespace;
use tokio::task::JoinHandle;

use super::create::{CreateTask, Reservation, runtime_of};
use super::{Bundle, Key, Task, Tasks};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::ContainerId;
use crate::shims::{Shim, ShimLog};

/// A task whose shim is started or being started, without a container in it yet. It is undone when this is dropped.
pub struct Begun {
    parts: Option<(Reservation, Starting)>,
}

/// A shim that is being started.
pub(super) struct Starting {
    tasks: Tasks,
    key: Key,
    pub(super) bundle: Bundle,
    pub(super) program: PathBuf,
    pub(super) log: ShimLog,
    shim: JoinHandle<Result<Shim>>,
}

impl Tasks {
    /// Begins the task of a container that is about to be recorded. Blocks on the disk.
    ///
    /// # Errors
    /// `AlreadyExists` when it has a task; when its bundle cannot be made.
    pub fn begin(&self, namespace: &Namespace, container: &Container) -> Result<Begun> {
        let id = ContainerId::parse(&container.id)?;
        let key = (namespace.clone(), id.clone());
        let program = self.program(runtime_of(container))?;
        let spec = container.spec.as_ref().ok_or_else(|| Error::invalid(format!("container {id}: has no spec")))?;
        let reservation = Reservation::make(self, &key)?;
        let bundle = self.parts().bundles.of(namespace, &id);
        bundle.create(Some(&spec.value), &program)?;
        failpoint::hit("create.bundle");
        let noted = bundle.note_rootfs(&container.snapshotter, &container.snapshot_key);
        let log = noted.and_then(|()| ShimLog::open(bundle.path())).inspect_err(|_| bundle.remove())?;
        let (tasks, of, place, path) = (self.clone(), key.clone(), bundle.clone(), program.clone());
        let options = container.runtime.as_ref().and_then(|runtime| runtime.options.clone());
        let shim = tokio::spawn(async move {
            tasks.shim(&of.0, &of.1, &place, &path, options.as_ref(), &CreateTask::default()).await
        });
        let starting = Starting { tasks: self.clone(), key, bundle, program, log, shim };
        Ok(Begun { parts: Some((reservation, starting)) })
    }
}

impl Begun {
    /// Takes it apart for [`Tasks::create_begun`], which goes on with it.
    pub(super) fn split(mut self) -> Option<(Reservation, Starting)> {
        self.parts.take()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some((reservation, starting)) = self.parts.take() {
            tokio::spawn(async move {
                starting.undo().await;
                drop(reservation);
            });
        }
    }
}

impl Starting {
    /// Waits for the shim.
    pub(super) async fn shim(&mut self) -> Result<Shim> {
        let started = (&mut self.shim).await;
        started.unwrap_or_else(|error| Err(Error::internal(format!("start shim of {}: {error}", self.key.1))))
    }

    /// Asks the shim to leave, and takes the bundle down.
    pub(super) async fn undo(mut self) {
        let started = self.shim().await;
        let Self { tasks, key, bundle, program, .. } = self;
        match started {
            Ok(shim) => tasks.leave(&Arc::new(Task::new(key, bundle, program, shim, None))).await,
            Err(_) => tasks.undo_launch(&key.0, &key.1, &bundle, &program, true).await,
        }
    }
}
