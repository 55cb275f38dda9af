//! Finding the tasks of an earlier daemon.
//!
//! Every shim has a bundle. One that answers and holds its container is adopted. One that answers but holds nothing is
//! told to leave. Where the bundle is damaged or gone, the shim is looked for among the processes: see `recover`. Where
//! certainly nobody listens, the shim is dead and what it held is killed and cleaned up. A shim that
//! neither answers nor is gone may be slow, or stopped: it is left alone and asked again, because taking a live
//! container for dead is the worst of all mistakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use gantry_proto::containerd::task::v3 as shim;
use gantry_proto::containerd::v1::types::Status;
use gantry_proto::namespace::Namespace;
use tokio::sync::mpsc;

use super::{Bundle, Exit, Key, NO_ANSWER, Sandboxes, Slot, Task, Tasks};
use crate::error::{Kind, Result};
use crate::id::ContainerId;
use crate::shims::{Address, Patience, Shim, ShimLog};

/// Bundles that are looked at at the same time.
const AT_ONCE: usize = 64;
/// How long to wait before asking a shim again that did not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// Where what was found is reported; at most one message comes for each bundle.
pub type Report = mpsc::UnboundedSender<Restored>;

/// What became of a task of an earlier daemon.
pub enum Restored {
    /// Its shim still holds it.
    Alive(Arc<Task>),
    /// Its shim is dead, and this is how its container ended, as far as can be told.
    Dead {
        /// The container's namespace.
        namespace: Namespace,
        /// The container.
        id: ContainerId,
        /// When the task was created: an end that was seen since is the true one.
        since: SystemTime,
        /// What cleaning up after the shim came to.
        exit: Exit,
    },
}

impl Restored {
    /// The container's namespace.
    pub fn namespace(&self) -> &Namespace {
        match self {
            Self::Alive(task) => task.namespace(),
            Self::Dead { namespace, .. } => namespace,
        }
    }

    /// The container.
    pub fn id(&self) -> &ContainerId {
        match self {
            Self::Alive(task) => task.id(),
            Self::Dead { id, .. } => id,
        }
    }
}

enum Found {
    Alive(Arc<Task>),
    /// It answers, but has no container.
    Empty(Arc<Task>),
    Dead,
    /// It does not answer, and is not certainly gone.
    Silent,
}

/// Thaws a container that an earlier daemon has frozen and not thawed. The shim may be busy with what that daemon asked
/// before, so a call that takes too long is repeated.
async fn release(task: Arc<Task>) {
    let (namespace, id) = (task.namespace(), task.id());
    tracing::warn!(%namespace, %id, "container was frozen for work that was cut short; letting it go on");
    while let Err(error) = task.release().await {
        tracing::warn!(%namespace, %id, %error, "let a container go on");
        if error.kind() != Kind::DeadlineExceeded {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Tasks {
    /// Adopts the tasks whose shims are still there, cleans up after the others, and reports each to `report`; those that
    /// do not answer yet, once they do.
    ///
    /// # Errors
    /// When the bundles cannot be listed.
    pub async fn restore(&self, report: Report) -> Result<()> {
        let mut bundles = self.parts().bundles.all()?;
        self.recover(&mut bundles).await;
        let total = bundles.len();
        let work = stream::iter(bundles).for_each_concurrent(AT_ONCE, |(namespace, id, bundle)| {
            self.restore_one(namespace, id, bundle, report.clone())
        });
        work.await;
        self.parts().bundles.sweep_work();
        if total > 0 {
            tracing::info!(bundles = total, running = self.all(None).len(), "found the tasks of an earlier daemon");
        }
        Ok(())
    }

    async fn restore_one(&self, namespace: Namespace, id: ContainerId, bundle: Bundle, report: Report) {
        let Some(program) = self.program_of(&namespace, &id, &bundle) else {
            tracing::warn!(%namespace, %id, "bundle without a known shim; removing it");
            bundle.remove();
            return;
        };
        if bundle.is_sandbox() {
            return Sandboxes::new(self.clone()).restore(namespace, id, bundle, program).await;
        }
        match self.look(&namespace, &id, &bundle, &program).await {
            Found::Alive(task) => self.welcome(task, &report),
            Found::Empty(task) => {
                tracing::info!(%namespace, %id, "shim without a container; shutting it down");
                self.leave(&task).await;
            }
            Found::Dead => self.report_dead((namespace, id), &bundle, &program, &report).await,
            Found::Silent => self.ask_again(namespace, id, bundle, program, report),
        }
    }

    fn program_of(&self, namespace: &Namespace, id: &ContainerId, bundle: &Bundle) -> Option<PathBuf> {
        bundle.shim_program().or_else(|| {
            let container = self.parts().containers.get(namespace, id).ok()?;
            self.program(&container.runtime?.name).ok()
        })
    }

    async fn look(&self, namespace: &Namespace, id: &ContainerId, bundle: &Bundle, program: &Path) -> Found {
        let address = match Address::load(bundle.path()) {
            Ok(Some(address)) => address,
            Ok(None) => return Found::Dead,
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "find the shim of a bundle");
                // A shim that lives has written a file that makes sense. One that cannot be read at the moment proves
                // nothing.
                let is_unread = matches!(error.kind(), Kind::Internal | Kind::PermissionDenied);
                return if is_unread { Found::Silent } else { Found::Dead };
            }
        };
        let parts = self.parts();
        let shim = match Shim::connect(&address, namespace, &parts.timeouts, parts.runtime.shim_calls).await {
            Ok(shim) => shim,
            // Refused, or no socket: nobody listens, and a shim listens as long as it lives.
            Err(error) if error.kind() == Kind::Unavailable => return Found::Dead,
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "shim does not answer");
                return Found::Silent;
            }
        };
        let key = (namespace.clone(), id.clone());
        let rootfs = self.rootfs_in_use(namespace, id, bundle);
        let task = Arc::new(Task::new(key, bundle.clone(), program.to_owned(), shim, rootfs));
        let request = shim::StateRequest { id: id.to_string(), exec_id: String::new() };
        match task.shim.call::<_, shim::StateResponse>("State", &request, Patience::Load).await {
            Ok(state) => {
                task.pid.store(state.pid, Ordering::Relaxed);
                task.paused.store(state.status() == Status::Paused, Ordering::SeqCst);
                task.oom_killed.store(task.was_oom_killed().await, Ordering::SeqCst);
                if state.status() == Status::Stopped {
                    // The shim may have given up telling while nobody listened.
                    let exit = Exit::of(state.pid, state.exit_status, state.exited_at.as_ref());
                    task.reported.send_replace(Some(exit));
                }
                Found::Alive(task)
            }
            Err(error) if error.kind() == Kind::NotFound => Found::Empty(task),
            Err(error) if error.kind() == Kind::Unavailable => Found::Dead,
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "shim does not answer");
                Found::Silent
            }
        }
    }

    fn welcome(&self, task: Arc<Task>, report: &Report) {
        let log = ShimLog::open(task.bundle.path());
        let log = log.inspect_err(|error| tracing::warn!(id = %task.id, %error, "read a shim's log again")).ok();
        self.adopt(task.clone(), log);
        if task.bundle.is_held() {
            tokio::spawn(release(task.clone()));
        }
        let _ = report.send(Restored::Alive(task));
    }

    /// Cleans up after a dead shim and tells the world how its container ended.
    async fn report_dead(&self, key: Key, bundle: &Bundle, program: &Path, report: &Report) {
        tracing::info!(namespace = %key.0, id = %key.1, "shim died while no daemon ran; cleaning up after it");
        let since = bundle.created_at();
        // Once: the daemon's start waits for this.
        let exit = self.bury(&key, bundle, program, 0, 1).await;
        let (namespace, id) = key;
        self.announce_end(&namespace, &id, exit);
        // Nobody may want to know.
        let _ = report.send(Restored::Dead { namespace, id, since, exit });
    }

    /// Keeps asking a shim that did not answer. Until it does, the container's name is taken, and calls get
    /// `Unavailable`: a client that heard `NotFound` would start the container a second time.
    fn ask_again(&self, namespace: Namespace, id: ContainerId, bundle: Bundle, program: PathBuf, report: Report) {
        let key = (namespace.clone(), id.clone());
        self.table().insert(key.clone(), Slot::Silent(NO_ANSWER));
        let tasks = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                match tasks.look(&namespace, &id, &bundle, &program).await {
                    Found::Silent => continue,
                    Found::Alive(task) => tasks.welcome(task, &report),
                    Found::Empty(task) => {
                        tasks.table().remove(&key);
                        tasks.leave(&task).await;
                    }
                    Found::Dead => tasks.report_dead(key, &bundle, &program, &report).await,
                }
                return;
            }
        });
    }
}
