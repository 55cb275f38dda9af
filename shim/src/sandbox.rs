//! The Sandbox service: a group of containers whose supervisor this shim is.
//!
//! A sandbox whose bundle has a configuration has a process of its own (the pod's pause container), run like every other
//! container under the sandbox's identifier; where no root file system comes with it, its own is the pause program alone.
//! A sandbox without a configuration is the shim itself: it runs until it is stopped. Its number is that of a thread in the
//! sandbox's network, where it has one, so that whoever looks there in `/proc` sees that network.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_proto::any;
use gantry_proto::containerd::runtime::sandbox::v1 as sandbox;
use gantry_proto::containerd::task::v3::CreateTaskRequest;
use gantry_proto::containerd::types::{Metric, Platform};
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::namespace::check_identifier;
use gantry_proto::time::{now, timestamp};
use gantry_proto::ttrpc::server::decode;
use nix::libc;
use prost::Message;
use rung_sys::namespace::Namespace;
use rung_sys::parked::Parked;
use tokio::sync::watch;

use crate::error::Kind;
use crate::lifetime::Hold;
use crate::options::Options;
use crate::reaper::Exited;
use crate::service;
use crate::task::Shim;
use crate::task::delete::delete;
use crate::task::kill::kill;
use crate::{Doing, Error, Result};

const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// How long a stopped sandbox's process may take where the request does not say.
const GRACE: Duration = Duration::from_secs(10);

/// The shim's sandbox, of which there is at most one.
#[derive(Debug)]
pub struct Sandboxes {
    shim: Arc<Shim>,
    one: Mutex<Option<Sandbox>>,
}

#[derive(Debug)]
struct Sandbox {
    request: sandbox::CreateSandboxRequest,
    created_at: SystemTime,
    started: bool,
    /// The thread in its network.
    parked: Option<Parked>,
    /// Set when it has ended.
    exit: watch::Sender<Option<Exited>>,
    /// Keeps the shim alive until the sandbox is dropped.
    _hold: Hold,
}

impl Sandbox {
    fn bundle(&self) -> PathBuf {
        PathBuf::from(&self.request.bundle_path)
    }

    fn has_process(&self) -> bool {
        self.bundle().join("config.json").exists()
    }

    /// What stands for it where it has no process.
    fn number(&self) -> u32 {
        let thread = self.parked.as_ref().map(|parked| parked.tid().as_raw().unsigned_abs());
        thread.unwrap_or_else(std::process::id)
    }

    /// Has a thread be in the sandbox's network, where that is one of its own. Answers with the number that stands for the
    /// sandbox.
    fn enter_network(&mut self) -> Result<u32> {
        let path = &self.request.netns_path;
        if !path.is_empty() {
            let doing = || format!("netns_path: {path}");
            let network = std::fs::File::open(path).doing(doing)?;
            self.parked = match Parked::inside(network.as_fd(), Namespace::Network) {
                Err(error) if error.is(&[libc::ENOSYS]) => {
                    tracing::debug!(%error, "have a thread in the sandbox's network");
                    None
                }
                parked => Some(parked.map_err(std::io::Error::from).doing(doing)?),
            };
        }
        Ok(self.number())
    }
}

impl Sandboxes {
    /// No sandbox yet.
    pub fn new(shim: Arc<Shim>) -> Self {
        Self { shim, one: Mutex::default() }
    }

    /// Answers a method of the service; `None` where there is no such method.
    pub async fn call(&self, method: &str, payload: &[u8]) -> Option<Result<Vec<u8>>> {
        let encoded = match method {
            "CreateSandbox" => self.create(payload).map(|response| response.encode_to_vec()),
            "StartSandbox" => self.start(payload).await.map(|response| response.encode_to_vec()),
            "Platform" => self.platform(payload).map(|response| response.encode_to_vec()),
            "StopSandbox" => self.stop(payload).await.map(|response| response.encode_to_vec()),
            "WaitSandbox" => self.wait(payload).await.map(|response| response.encode_to_vec()),
            "SandboxStatus" => self.status(payload).await.map(|response| response.encode_to_vec()),
            "PingSandbox" => self.ping(payload).map(|response| response.encode_to_vec()),
            "ShutdownSandbox" => self.shutdown(payload).await.map(|response| response.encode_to_vec()),
            "SandboxMetrics" => self.metrics(payload).await.map(|response| response.encode_to_vec()),
            _ => return None,
        };
        Some(encoded)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.one.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.lock().is_some()
    }

    fn with<R>(&self, id: &str, look: impl FnOnce(&mut Sandbox) -> R) -> Result<R> {
        let mut one = self.lock();
        match one.as_mut().filter(|sandbox| sandbox.request.sandbox_id == id) {
            Some(sandbox) => Ok(look(sandbox)),
            None => Err(Error::not_found(format!("sandbox {id} does not exist"))),
        }
    }

    fn create(&self, payload: &[u8]) -> Result<sandbox::CreateSandboxResponse> {
        let request: sandbox::CreateSandboxRequest = decode(payload)?;
        check_identifier(&request.sandbox_id).map_err(|error| Error::invalid(format!("sandbox_id: {error}")))?;
        let mut one = self.lock();
        if let Some(there) = &*one {
            return Err(Error::already_exists(format!("sandbox {} already exists", there.request.sandbox_id)));
        }
        if request.rootfs.is_empty() && Path::new(&request.bundle_path).join("config.json").exists() {
            install_pause(Path::new(&request.bundle_path))?;
        }
        *one = Some(Sandbox {
            request,
            created_at: SystemTime::now(),
            started: false,
            parked: None,
            exit: watch::Sender::default(),
            _hold: self.shim.lifetime.container(),
        });
        Ok(sandbox::CreateSandboxResponse {})
    }

    async fn start(&self, payload: &[u8]) -> Result<sandbox::StartSandboxResponse> {
        let sandbox::StartSandboxRequest { sandbox_id: id } = decode(payload)?;
        let (request, created_at, has_process, started) = self.with(&id, |sandbox| {
            let started = std::mem::replace(&mut sandbox.started, true);
            (sandbox.request.clone(), sandbox.created_at, sandbox.has_process(), started)
        })?;
        if started {
            return Err(Error::precondition(format!("sandbox {id} has been started already")));
        }
        let spec = std::fs::read(Path::new(&request.bundle_path).join("config.json")).ok();
        let pid = match has_process {
            true => self.start_process(request).await,
            false => self.with(&id, Sandbox::enter_network).flatten(),
        };
        let pid = pid.inspect_err(|_| {
            let _ = self.with(&id, |sandbox| sandbox.started = false);
        })?;
        Ok(sandbox::StartSandboxResponse {
            pid,
            created_at: Some(timestamp(created_at)),
            spec: spec.map(|spec| any::json(any::SPEC, spec)),
        })
    }

    async fn start_process(&self, request: sandbox::CreateSandboxRequest) -> Result<u32> {
        let id = request.sandbox_id.clone();
        let create = CreateTaskRequest {
            id: id.clone(),
            bundle: request.bundle_path,
            rootfs: request.rootfs,
            // What comes for other kinds of shims is not the runtime's business.
            options: request.options.filter(Options::understands),
            ..CreateTaskRequest::default()
        };
        service::create(&self.shim, create).await?;
        let mailbox = self.shim.containers.get(&id)?;
        let started = mailbox.ask(|container| Box::pin(async move { container.start("").await })).await;
        if started.is_err() {
            match mailbox.ask(|container| Box::pin(container.abandon())).await {
                // Else the next attempt would find it there.
                Ok(()) => self.shim.containers.remove(&id),
                // What is left of it is the pod's until somebody can end that.
                Err(error) => tracing::warn!(id, %error, "delete a pod's container that could not be started"),
            }
        }
        let pid = started?;
        let mut waiter = mailbox.look(|container| Ok(container.process("")?.waiter())).await?;
        let exit = self.with(&id, |sandbox| sandbox.exit.clone())?;
        tokio::spawn(async move {
            if let Ok(exited) = waiter.wait_for(Option::is_some).await {
                exit.send_replace(*exited);
            }
        });
        Ok(pid)
    }

    fn platform(&self, payload: &[u8]) -> Result<sandbox::PlatformResponse> {
        let sandbox::PlatformRequest { sandbox_id: id } = decode(payload)?;
        self.with(&id, |_| ())?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform { os: "linux".into(), architecture: architecture.into(), ..Platform::default() };
        Ok(sandbox::PlatformResponse { platform: Some(platform) })
    }

    async fn stop(&self, payload: &[u8]) -> Result<sandbox::StopSandboxResponse> {
        let sandbox::StopSandboxRequest { sandbox_id: id, timeout_secs } = decode(payload)?;
        let grace = if timeout_secs == 0 { GRACE } else { Duration::from_secs(timeout_secs.into()) };
        self.end(&id, grace).await?;
        Ok(sandbox::StopSandboxResponse {})
    }

    /// Ends the sandbox's process: asked first, then forced. One without a process just ends.
    async fn end(&self, id: &str, grace: Duration) -> Result<()> {
        let (exit, started) = self.with(id, |sandbox| {
            // Else the network would be there for as long as the shim.
            sandbox.parked = None;
            (sandbox.exit.clone(), sandbox.started)
        })?;
        let Ok(mailbox) = self.shim.containers.get(id) else {
            exit.send_if_modified(|exited| {
                let first = exited.is_none();
                exited.get_or_insert(Exited { status: 0, at: SystemTime::now() });
                first
            });
            return Ok(());
        };
        // One that was never started is ended by its deletion, and nobody waits for its exit.
        let signals = [(libc::SIGTERM, grace), (libc::SIGKILL, GRACE)].into_iter().filter(|_| started);
        for (signal, patience) in signals {
            let signal = signal.unsigned_abs();
            match kill(&mailbox, String::new(), signal, false).await {
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {}
            }
            let mut ended = exit.subscribe();
            if tokio::time::timeout(patience, ended.wait_for(Option::is_some)).await.is_ok() {
                break;
            }
        }
        delete(&mailbox, String::new()).await.map(drop)
    }

    async fn wait(&self, payload: &[u8]) -> Result<sandbox::WaitSandboxResponse> {
        let sandbox::WaitSandboxRequest { sandbox_id: id } = decode(payload)?;
        let mut exit = self.with(&id, |sandbox| sandbox.exit.subscribe())?;
        let exited = exit.wait_for(Option::is_some).await.ok().and_then(|exited| *exited);
        let exited = exited.ok_or_else(|| Error::not_found(format!("sandbox {id} is gone")))?;
        Ok(sandbox::WaitSandboxResponse { exit_status: exited.status, exited_at: Some(timestamp(exited.at)) })
    }

    async fn status(&self, payload: &[u8]) -> Result<sandbox::SandboxStatusResponse> {
        let sandbox::SandboxStatusRequest { sandbox_id: id, verbose } = decode(payload)?;
        let (created_at, exited, started, netns, number) = self.with(&id, |sandbox| {
            let exited = *sandbox.exit.borrow();
            (sandbox.created_at, exited, sandbox.started, sandbox.request.netns_path.clone(), sandbox.number())
        })?;
        let process = service::status(&self.shim, &id).await.ok();
        let runs =
            process.as_ref().is_none_or(|(status, _)| matches!(status, TaskStatus::Running | TaskStatus::Paused));
        let ready = started && exited.is_none() && runs;
        let mut info = std::collections::BTreeMap::new();
        if verbose {
            info.insert("netns_path".to_owned(), netns);
            info.insert("containers".to_owned(), self.shim.containers.ids().join(","));
        }
        Ok(sandbox::SandboxStatusResponse {
            sandbox_id: id,
            pid: process.map_or(number, |(_, state)| state.pid),
            state: if ready { READY } else { NOT_READY }.to_owned(),
            info,
            created_at: Some(timestamp(created_at)),
            exited_at: exited.map(|exited| timestamp(exited.at)),
            extra: None,
        })
    }

    fn ping(&self, payload: &[u8]) -> Result<sandbox::PingResponse> {
        let sandbox::PingRequest { sandbox_id: id } = decode(payload)?;
        self.with(&id, |_| sandbox::PingResponse {})
    }

    async fn shutdown(&self, payload: &[u8]) -> Result<sandbox::ShutdownSandboxResponse> {
        let sandbox::ShutdownSandboxRequest { sandbox_id: id } = decode(payload)?;
        self.end(&id, Duration::ZERO).await?;
        *self.lock() = None;
        if self.shim.lifetime.is_empty() {
            self.shim.leave();
        }
        Ok(sandbox::ShutdownSandboxResponse {})
    }

    async fn metrics(&self, payload: &[u8]) -> Result<sandbox::SandboxMetricsResponse> {
        let sandbox::SandboxMetricsRequest { sandbox_id: id } = decode(payload)?;
        self.with(&id, |_| ())?;
        let data = self.shim.containers.get(&id)?.peek(|container| container.stats()).await?;
        let metrics = Metric { timestamp: Some(now()), id, data: Some(data) };
        Ok(sandbox::SandboxMetricsResponse { metrics: Some(metrics) })
    }
}

/// Fills an empty root file system, so that a sandbox needs no image.
fn install_pause(bundle: &Path) -> Result<()> {
    let rootfs = bundle.join("rootfs");
    match std::fs::read_dir(&rootfs).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir(&rootfs).doing(|| format!("create {}", rootfs.display()))?;
        }
        Err(error) => return Err(error).doing(|| format!("read {}", rootfs.display())),
    }
    rung_sys::pause::install(&rootfs).doing(|| format!("pause program in {}", rootfs.display()))
}
