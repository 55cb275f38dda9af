//! Sandboxes: groups of containers that one shim holds, such as the pods of Kubernetes.
//!
//! ```text
//! create ──► start ──► (tasks of containers whose record names the sandbox) ──► stop ──► shutdown
//! ```
//!
//! A sandbox has a bundle beside those of containers, marked by a file `sandbox` that holds its own id. One with a
//! specification has a process of its own, run like a container's. It needs no image: where no root file system is given,
//! the bundle's has [`rung_sys::pause::PATH`], which waits, buries orphans and so holds the group's namespaces.
//!
//! A shim with the Sandbox service is asked by it, and tasks in the sandbox are created in that shim without starting it
//! again. One without it may hold a sandbox as an ordinary task, where the caller says so, and is then started for every
//! container; such shims find their group by an annotation.

mod control;
mod create;
mod restore;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use gantry_proto::containerd::types::Mount;
use gantry_proto::namespace::Namespace;
use prost_types::Any;
use tokio::sync::watch as channel;

pub use control::{Started, Status};

use super::{Bundle, Exit, Key, Tasks};
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::shims::{Address, Instance, Shim};

/// All sandboxes of the daemon; clones are the same.
#[derive(Clone)]
pub struct Sandboxes {
    tasks: Tasks,
}

/// What a sandbox is made of.
#[derive(Debug, Clone, Default)]
pub struct CreateSandbox {
    /// The runtime's name; empty: the default one.
    pub runtime: String,
    /// The runtime's options.
    pub runtime_options: Option<Any>,
    /// The OCI specification of its process as JSON; none: it has no process.
    pub spec: Option<Any>,
    /// Mounts of the process's root file system; none: the pause program alone.
    pub rootfs: Vec<Mount>,
    /// What the shim is told of the sandbox besides; none: the runtime's options.
    pub options: Option<Any>,
    /// The network namespace, for shims that enter it themselves.
    pub netns_path: String,
    /// Annotations for the shim.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// A shim without the Sandbox service may hold the sandbox's process as a task.
    pub as_task: bool,
}

/// How a shim holds a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// It has the Sandbox service.
    Service,
    /// As a task.
    Task,
}

pub(super) enum Slot {
    /// Somebody is creating it, or it does not answer yet.
    Reserved,
    Live(Arc<Sandbox>),
}

/// One sandbox and the shim that holds it.
pub(super) struct Sandbox {
    namespace: Namespace,
    id: ContainerId,
    bundle: Bundle,
    program: PathBuf,
    address: Address,
    shim: Shim,
    held: Held,
    created_at: SystemTime,
    pid: AtomicU32,
    /// Set before the shim is asked to leave, so that its going is not taken for a failure.
    leaving: AtomicBool,
    ended: channel::Sender<Option<Exit>>,
    /// Held while it is shut down, or cleaned up after.
    ending: tokio::sync::Mutex<()>,
}

impl Sandbox {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.id.clone())
    }

    fn instance(&self) -> Instance<'_> {
        Instance { program: &self.program, namespace: &self.namespace, id: &self.id, bundle: self.bundle.path() }
    }

    fn exit(&self) -> Option<Exit> {
        *self.ended.borrow()
    }

    /// Where tasks of the sandbox are created; none where every container needs a `start` of its own.
    fn endpoint(&self) -> Option<Address> {
        (self.held == Held::Service && self.address.version >= 3 && !self.shim.is_closed())
            .then(|| self.address.clone())
    }
}

impl Sandboxes {
    /// The sandboxes whose containers are among `tasks`.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks }
    }

    /// Whether there is a sandbox, be it one whose shim does not answer.
    pub fn holds(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        self.tasks.sandboxes().contains_key(&(namespace.clone(), id.clone()))
    }

    fn get(&self, namespace: &Namespace, id: &ContainerId) -> Result<Arc<Sandbox>> {
        match self.tasks.sandboxes().get(&(namespace.clone(), id.clone())) {
            Some(Slot::Live(sandbox)) => Ok(sandbox.clone()),
            Some(Slot::Reserved) => Err(Error::unavailable(format!("sandbox {id}: its shim does not answer yet"))),
            None => Err(Error::not_found(format!("sandbox {id}: not found"))),
        }
    }
}

impl Tasks {
    /// The shim of a sandbox that may hold more containers without being started again.
    ///
    /// # Errors
    /// `FailedPrecondition` where the sandbox has ended.
    pub(super) fn sandbox_endpoint(&self, namespace: &Namespace, id: &str) -> Result<Option<Address>> {
        let Ok(id) = ContainerId::parse(id) else { return Ok(None) };
        let table = self.sandboxes();
        let Some(Slot::Live(sandbox)) = table.get(&(namespace.clone(), id)) else { return Ok(None) };
        if sandbox.exit().is_some() || sandbox.leaving.load(Ordering::SeqCst) {
            return Err(Error::precondition(format!("sandbox {}: has ended", sandbox.id)));
        }
        Ok(sandbox.endpoint())
    }
}
