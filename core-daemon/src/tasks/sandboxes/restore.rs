//! Finding the sandboxes of an earlier daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use gantry_proto::containerd::runtime::sandbox::v1 as wire;
use gantry_proto::containerd::task::v3 as task;
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::namespace::Namespace;
use tokio::sync::watch;

use super::super::Bundle;
use super::super::delete::MORE_TRIES;
use super::control::READY;
use super::{Held, Key, Sandbox, Sandboxes, Slot};
use crate::config::Timeouts;
use crate::error::{Kind, Result};
use crate::id::ContainerId;
use crate::shims::{Address, Instance, Patience, Shim, ShimLog};

/// How long to wait before asking a shim again that did not answer.
const AGAIN: Duration = Duration::from_secs(5);

enum Found {
    /// It is there; and whether it was started.
    Alive(Arc<Sandbox>, bool),
    /// The shim answers, but has no sandbox.
    Empty(Arc<Sandbox>),
    Dead,
    /// It does not answer, and is not certainly gone.
    Silent,
}

impl Sandboxes {
    /// Adopts the sandbox of `bundle`, or cleans up after its shim. One that does not answer is asked again later.
    pub(in crate::tasks) async fn restore(
        self,
        namespace: Namespace,
        id: ContainerId,
        bundle: Bundle,
        program: PathBuf,
    ) {
        let key = (namespace, id);
        let mut tries = MORE_TRIES;
        if self.restore_once(&key, &bundle, &program, &mut tries).await {
            return;
        }
        self.tasks.sandboxes().insert(key.clone(), Slot::Reserved);
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            while !self.restore_once(&key, &bundle, &program, &mut tries).await {
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// `false` where the shim did not answer, or what a dead one left is not cleaned up, which is tried `tries` times.
    async fn restore_once(&self, key: &Key, bundle: &Bundle, program: &Path, tries: &mut u32) -> bool {
        let (namespace, id) = key;
        match self.look(key, bundle, program).await {
            Found::Alive(sandbox, started) => {
                match ShimLog::open(bundle.path()) {
                    Ok(log) => {
                        let (watched, namespace, id) = (sandbox.clone(), namespace.clone(), id.clone());
                        tokio::spawn(async move { log.pass_on(&namespace, &id, watched.shim.closed()).await });
                    }
                    Err(error) => tracing::warn!(%namespace, %id, %error, "read a shim's log again"),
                }
                self.adopt(sandbox.clone());
                if started {
                    self.watch_end(sandbox);
                }
            }
            Found::Empty(sandbox) => {
                tracing::info!(%namespace, %id, "shim without a sandbox; shutting it down");
                self.leave(&sandbox).await;
                self.tasks.sandboxes().remove(key);
            }
            Found::Dead => {
                tracing::info!(%namespace, %id, "sandbox's shim died while no daemon ran; cleaning up after it");
                let instance = Instance { program, namespace, id, bundle: bundle.path() };
                *tries = tries.saturating_sub(1);
                if self.tasks.clean_up_dead(instance, 0, 1).await.is_err() && *tries > 0 {
                    return false;
                }
                bundle.remove();
                self.tasks.sandboxes().remove(key);
            }
            Found::Silent => return false,
        }
        true
    }

    async fn look(&self, key: &Key, bundle: &Bundle, program: &Path) -> Found {
        let (namespace, id) = key;
        let Ok(Some(address)) = Address::load(bundle.path()) else { return Found::Dead };
        let parts = self.tasks.parts();
        let shim = match Shim::connect(&address, namespace, &parts.timeouts, parts.runtime.shim_calls).await {
            Ok(shim) => shim,
            // Refused, or no socket: nobody listens, and a shim listens as long as it lives.
            Err(error) if error.kind() == Kind::Unavailable => return Found::Dead,
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "sandbox's shim does not answer");
                return Found::Silent;
            }
        };
        let mut sandbox = Sandbox {
            namespace: namespace.clone(),
            id: id.clone(),
            bundle: bundle.clone(),
            program: program.to_owned(),
            address,
            shim,
            held: Held::Service,
            created_at: bundle.created_at(),
            pid: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            ending: tokio::sync::Mutex::default(),
        };
        match sandbox.find(Timeouts::of(parts.timeouts.shim_load)).await {
            Ok((held, pid, started)) => {
                sandbox.held = held;
                sandbox.pid = AtomicU32::new(pid);
                Found::Alive(Arc::new(sandbox), started)
            }
            Err(error) if error.kind() == Kind::NotFound => Found::Empty(Arc::new(sandbox)),
            Err(error) if error.kind() == Kind::Unavailable => Found::Dead,
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "sandbox's shim does not answer");
                Found::Silent
            }
        }
    }
}

impl Sandbox {
    /// How the shim holds it, its process, and whether it was started.
    async fn find(&self, limit: Duration) -> Result<(Held, u32, bool)> {
        let request = wire::SandboxStatusRequest { sandbox_id: self.id.to_string(), verbose: false };
        match self.ask::<_, wire::SandboxStatusResponse>("SandboxStatus", &request, Some(limit)).await {
            Ok(status) => {
                let started = status.state == READY || status.exited_at.is_some();
                Ok((Held::Service, status.pid, started))
            }
            Err(error) if error.kind() == Kind::Unimplemented => {
                let request = task::StateRequest { id: self.id.to_string(), exec_id: String::new() };
                let state: task::StateResponse = self.shim.call("State", &request, Patience::Load).await?;
                Ok((Held::Task, state.pid, state.status() != TaskStatus::Created))
            }
            Err(error) => Err(error),
        }
    }
}
