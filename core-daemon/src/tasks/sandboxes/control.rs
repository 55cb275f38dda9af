//! What is asked of a sandbox once it is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gantry_proto::containerd::events as event;
use gantry_proto::containerd::runtime::sandbox::v1 as wire;
use gantry_proto::containerd::task::v3 as task;
use gantry_proto::containerd::types::{Metric, Platform};
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::namespace::Namespace;
use gantry_proto::{any, time};
use prost_types::Any;

use super::super::delete::TRIES;
use super::create::PATIENCE;
use super::{Exit, Held, Sandbox, Sandboxes};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::id::ContainerId;
use crate::shims::{Address, Patience};

/// The state of a sandbox whose process, or shim, runs.
pub(super) const READY: &str = "SANDBOX_READY";
/// The state of every other.
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// How long a process may take to end where the caller does not say.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait before a shim is asked once more to end its sandbox.
const MOMENT: Duration = Duration::from_millis(100);
/// How long questions may take.
const LOOK: Duration = Duration::from_secs(5);

/// What a started sandbox is like.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its process, or the shim where it has none.
    pub pid: u32,
    /// When it was made.
    pub created_at: SystemTime,
    /// Where its shim listens.
    pub address: Address,
    /// The specification that the shim used.
    pub spec: Option<Any>,
}

/// How a sandbox is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its process, or the shim where it has none; 0 where neither is left.
    pub pid: u32,
    /// Whether it is up.
    pub ready: bool,
    /// What the shim says besides, where that was wanted.
    pub info: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it ended, once it has.
    pub exited_at: Option<SystemTime>,
    /// What the shim says for programs.
    pub extra: Option<Any>,
    /// Where its shim listens.
    pub address: Address,
}

impl Status {
    /// The state as messages have it.
    pub fn state(&self) -> &'static str {
        if self.ready { READY } else { NOT_READY }
    }
}

impl Sandboxes {
    /// Starts the sandbox's process.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, `FailedPrecondition` where it was started before, else what the shim says.
    pub async fn start(&self, namespace: &Namespace, id: &ContainerId) -> Result<Started> {
        let sandbox = self.get(namespace, id)?;
        let doing = || format!("start sandbox {id}");
        let (pid, created_at, spec) = match sandbox.held {
            Held::Service => {
                let request = wire::StartSandboxRequest { sandbox_id: id.to_string() };
                let answer = sandbox.ask("StartSandbox", &request, Some(PATIENCE)).await;
                let answer: wire::StartSandboxResponse = answer.doing(doing)?;
                (answer.pid, answer.created_at.as_ref().map(time::system_time), answer.spec)
            }
            Held::Task => {
                let request = task::StartRequest { id: id.to_string(), exec_id: String::new() };
                let answer = sandbox.shim.call("Start", &request, Patience::Change).await;
                let answer: task::StartResponse = answer.doing(doing)?;
                (answer.pid, None, None)
            }
        };
        sandbox.pid.store(pid, Ordering::Relaxed);
        self.watch_end(sandbox.clone());
        let message = event::SandboxStart { sandbox_id: id.to_string() };
        self.tasks.parts().events.announce(namespace, "/sandboxes/start", &message);
        let created_at = created_at.unwrap_or(sandbox.created_at);
        Ok(Started { pid, created_at, address: sandbox.address.clone(), spec })
    }

    /// The platform of the sandbox's containers.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, else what the shim says.
    pub async fn platform(&self, namespace: &Namespace, id: &ContainerId) -> Result<Platform> {
        let sandbox = self.get(namespace, id)?;
        if sandbox.held == Held::Task {
            let host = rung_spec::platform::Platform::host();
            let variant = host.variant.unwrap_or_default();
            return Ok(Platform { os: host.os, architecture: host.architecture, variant, ..Platform::default() });
        }
        let request = wire::PlatformRequest { sandbox_id: id.to_string() };
        let answer = sandbox.ask("Platform", &request, Some(LOOK)).await;
        let answer: wire::PlatformResponse = answer.doing(|| format!("platform of sandbox {id}"))?;
        answer.platform.ok_or_else(|| Error::internal(format!("platform of sandbox {id}: the shim names none")))
    }

    /// Ends the sandbox's process: asked first, forced after `grace`. One that has ended, or never was, is no error.
    ///
    /// # Errors
    /// What the shim says.
    pub async fn stop(&self, namespace: &Namespace, id: &ContainerId, grace: Option<Duration>) -> Result<()> {
        let sandbox = match self.get(namespace, id) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            sandbox => sandbox?,
        };
        let grace = grace.unwrap_or(GRACE);
        let stopped = match sandbox.held {
            Held::Service => sandbox.patiently(|| sandbox.stop_by_service(grace)).await,
            Held::Task => sandbox.stop_task(grace).await,
        };
        match stopped {
            Err(error) if !matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => {
                Err(error.context(format!("stop sandbox {id}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the end of the sandbox.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox.
    pub async fn wait(&self, namespace: &Namespace, id: &ContainerId) -> Result<Exit> {
        let mut ended = self.get(namespace, id)?.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| Error::not_found(format!("sandbox {id}: is gone")))
    }

    /// How a sandbox is.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, `DeadlineExceeded` where its shim does not answer.
    pub async fn status(&self, namespace: &Namespace, id: &ContainerId, verbose: bool) -> Result<Status> {
        let sandbox = self.get(namespace, id)?;
        let answer = match sandbox.held {
            Held::Service => sandbox.status_by_service(verbose).await,
            Held::Task => sandbox.status_of_task().await,
        };
        match answer {
            // The shim, or what it held, is gone.
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::NotFound) => Ok(sandbox.status_of_dead()),
            answer => answer.doing(|| format!("status of sandbox {id}")),
        }
    }

    /// Removes the sandbox: its process, its shim once no container is left in it, and its bundle.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox, else what the shim says; then the sandbox stays.
    pub async fn shutdown(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        let sandbox = self.get(namespace, id)?;
        // A second one must not take down a later sandbox of the same name.
        let _turn = sandbox.ending.lock().await;
        if !Arc::ptr_eq(&self.get(namespace, id)?, &sandbox) {
            return Err(Error::not_found(format!("sandbox {id}: not found")));
        }
        sandbox.leaving.store(true, Ordering::SeqCst);
        let ended = match sandbox.patiently(|| sandbox.shut_down_in_shim()).await {
            Err(error) if error.kind() == Kind::Unavailable => self.clean_up(&sandbox).await,
            ended => ended,
        };
        match ended {
            Err(error) if error.kind() != Kind::NotFound => {
                sandbox.leaving.store(false, Ordering::SeqCst);
                return Err(error.context(format!("shut down sandbox {id}")));
            }
            _ => {}
        }
        self.leave(&sandbox).await;
        self.tasks.sandboxes().remove(&sandbox.key());
        let exit = Exit { pid: sandbox.pid.load(Ordering::Relaxed), status: 0, at: SystemTime::now() };
        self.ended(&sandbox, exit);
        Ok(())
    }

    /// The counters of the sandbox's process.
    ///
    /// # Errors
    /// `NotFound` without such a sandbox or process, else what the shim says.
    pub async fn metrics(&self, namespace: &Namespace, id: &ContainerId) -> Result<Metric> {
        let sandbox = self.get(namespace, id)?;
        let doing = || format!("metrics of sandbox {id}");
        if sandbox.held == Held::Task {
            let request = task::StatsRequest { id: id.to_string() };
            let answer: Result<task::StatsResponse> = sandbox.shim.call("Stats", &request, Patience::Look).await;
            let data = answer.doing(doing)?.stats;
            return Ok(Metric { timestamp: Some(time::now()), id: id.to_string(), data });
        }
        let request = wire::SandboxMetricsRequest { sandbox_id: id.to_string() };
        let answer = sandbox.ask("SandboxMetrics", &request, Some(LOOK)).await;
        let answer: wire::SandboxMetricsResponse = answer.doing(doing)?;
        answer.metrics.ok_or_else(|| Error::not_found(format!("metrics of sandbox {id}: there are none")))
    }

    /// Changes the limits of the sandbox's process to those of the specification.
    ///
    /// # Errors
    /// `InvalidArgument` where `spec` is no specification with limits, else what the shim says.
    pub async fn update(&self, namespace: &Namespace, id: &ContainerId, spec: Option<&Any>) -> Result<()> {
        let sandbox = self.get(namespace, id)?;
        let Some(spec) = spec else { return Ok(()) };
        let doing = || format!("update sandbox {id}");
        let document: serde_json::Value = serde_json::from_slice(&spec.value)
            .map_err(|error| Error::invalid(format!("spec: {error}")))
            .doing(doing)?;
        let Some(limits) = document.pointer("/linux/resources") else { return Ok(()) };
        let resources = Some(any::json(any::LINUX_RESOURCES, limits.to_string().into_bytes()));
        let request = task::UpdateTaskRequest { id: id.to_string(), resources, ..task::UpdateTaskRequest::default() };
        sandbox.shim.call::<_, ()>("Update", &request, Patience::Change).await.doing(doing)
    }
}

impl Sandbox {
    async fn stop_task(&self, grace: Duration) -> Result<()> {
        for (signal, patience) in [(nix::libc::SIGTERM, grace), (nix::libc::SIGKILL, GRACE)] {
            let signal = signal.unsigned_abs();
            let request = task::KillRequest { id: self.id.to_string(), exec_id: String::new(), signal, all: false };
            self.shim.call::<_, ()>("Kill", &request, Patience::Change).await?;
            let request = task::WaitRequest { id: self.id.to_string(), exec_id: String::new() };
            let wait = self.shim.wait::<_, task::WaitResponse>("Wait", &request);
            if let Ok(ended) = tokio::time::timeout(patience, wait).await {
                return ended.map(drop);
            }
        }
        Err(Error::new(Kind::DeadlineExceeded, "its process does not end"))
    }

    async fn stop_by_service(&self, grace: Duration) -> Result<()> {
        let timeout_secs = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        let request = wire::StopSandboxRequest { sandbox_id: self.id.to_string(), timeout_secs };
        let limit = grace + PATIENCE;
        self.ask::<_, wire::StopSandboxResponse>("StopSandbox", &request, Some(limit)).await.map(drop)
    }

    async fn shut_down_in_shim(&self) -> Result<()> {
        if self.held == Held::Task {
            return self.delete_task().await;
        }
        let request = wire::ShutdownSandboxRequest { sandbox_id: self.id.to_string() };
        self.ask::<_, wire::ShutdownSandboxResponse>("ShutdownSandbox", &request, Some(PATIENCE)).await.map(drop)
    }

    /// Has the shim end the sandbox. What a runtime cannot do at once, such as removing a cgroup, it often can a moment later.
    async fn patiently<F: Future<Output = Result<()>>>(&self, end: impl Fn() -> F) -> Result<()> {
        for _ in 1..TRIES {
            match end().await {
                Err(error) if !is_for_good(&error) => {
                    tracing::warn!(namespace = %self.namespace, id = %self.id, %error, "end a sandbox in its shim");
                    tokio::time::sleep(MOMENT).await;
                }
                ended => return ended,
            }
        }
        end().await
    }

    async fn delete_task(&self) -> Result<()> {
        match self.stop_task(Duration::ZERO).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
        let request = task::DeleteRequest { id: self.id.to_string(), exec_id: String::new() };
        self.shim.call::<_, task::DeleteResponse>("Delete", &request, Patience::Change).await.map(drop)
    }

    async fn status_by_service(&self, verbose: bool) -> Result<Status> {
        let request = wire::SandboxStatusRequest { sandbox_id: self.id.to_string(), verbose };
        let status: wire::SandboxStatusResponse = self.ask("SandboxStatus", &request, Some(LOOK)).await?;
        Ok(Status {
            pid: status.pid,
            ready: status.state == READY,
            info: status.info,
            created_at: status.created_at.as_ref().map_or(self.created_at, time::system_time),
            exited_at: status.exited_at.as_ref().map(time::system_time).or(self.exit().map(|exit| exit.at)),
            extra: status.extra,
            address: self.address.clone(),
        })
    }

    async fn status_of_task(&self) -> Result<Status> {
        let request = task::StateRequest { id: self.id.to_string(), exec_id: String::new() };
        let state: task::StateResponse = self.shim.call("State", &request, Patience::Look).await?;
        let ready = matches!(state.status(), TaskStatus::Running | TaskStatus::Paused);
        let exited_at = self.exit().map(|exit| exit.at);
        Ok(Status { pid: state.pid, ready, exited_at, ..self.status_of_dead() })
    }

    fn status_of_dead(&self) -> Status {
        Status {
            pid: 0,
            ready: false,
            info: BTreeMap::new(),
            created_at: self.created_at,
            exited_at: Some(self.exit().map_or_else(SystemTime::now, |exit| exit.at)),
            extra: None,
            address: self.address.clone(),
        }
    }
}

/// Whether asking the shim the same once more makes no sense.
fn is_for_good(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Unavailable | Kind::DeadlineExceeded | Kind::Unimplemented)
}
