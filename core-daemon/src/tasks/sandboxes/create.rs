//! Making a sandbox: bundle, shim, sandbox, in that order, as with tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use gantry_proto::containerd::events as event;
use gantry_proto::containerd::runtime::sandbox::v1 as wire;
use gantry_proto::containerd::task::v3 as task;
use tokio::sync::{oneshot, watch};

use super::super::delete::TRIES;
use super::{CreateSandbox, Held, Key, Sandbox, Sandboxes, Slot};
use crate::context::Context;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::id::ContainerId;
use crate::shims::{Instance, Patience, Shim, ShimLog};

/// The shim's service.
pub(super) const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// How long the calls may take that change something.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

impl Sandboxes {
    /// Makes a sandbox and its shim. The work goes on even if the caller does not wait for it, and is then undone.
    ///
    /// # Errors
    /// `AlreadyExists` where the id is taken, `Unimplemented` where the shim knows no sandboxes, else what it says.
    pub async fn create(&self, context: &Context, id: &ContainerId, request: CreateSandbox) -> Result<()> {
        let (sandboxes, key) = (self.clone(), (context.namespace.clone(), id.clone()));
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let created = sandboxes.create_now(&key, request).await;
            if let Err(Ok(())) = sender.send(created) {
                tracing::warn!(id = %key.1, "sandbox was created for a client that is gone");
                if let Err(error) = sandboxes.shutdown(&key.0, &key.1).await {
                    tracing::warn!(id = %key.1, %error, "undo a sandbox");
                }
            }
        });
        answer.await.unwrap_or_else(|_| Err(Error::internal("creation of the sandbox was cut short")))
    }

    async fn create_now(&self, key: &Key, request: CreateSandbox) -> Result<()> {
        let (namespace, id) = key;
        let tasks = &self.tasks;
        {
            let mut table = tasks.sandboxes();
            if table.contains_key(key) {
                return Err(Error::already_exists(format!("sandbox {id}: already exists")));
            }
            table.insert(key.clone(), Slot::Reserved);
        }
        let made = self.make(key, request).await.doing(|| format!("create sandbox {id}"));
        let sandbox = made.inspect_err(|_| {
            tasks.sandboxes().remove(key);
        })?;
        self.adopt(sandbox);
        let message = event::SandboxCreate { sandbox_id: id.to_string() };
        tasks.parts().events.announce(namespace, "/sandboxes/create", &message);
        Ok(())
    }

    async fn make(&self, key: &Key, request: CreateSandbox) -> Result<Arc<Sandbox>> {
        let (namespace, id) = key;
        let parts = self.tasks.parts();
        let program = self.tasks.program(&request.runtime)?;
        let bundle = parts.bundles.of(namespace, id);
        bundle.create(request.spec.as_ref().map(|spec| spec.value.as_slice()), &program)?;
        let instance = Instance { program: &program, namespace, id, bundle: bundle.path() };
        let connect = async {
            bundle.mark_sandbox(id.as_str())?;
            if request.spec.is_some() && request.rootfs.is_empty() {
                let rootfs = bundle.path().join("rootfs");
                rung_sys::pause::install(&rootfs).doing(|| format!("pause program in {}", rootfs.display()))?;
            }
            let log = ShimLog::open(bundle.path())?;
            let address = parts.launcher.start(instance, request.runtime_options.as_ref()).await?;
            bundle.record(&address)?;
            let shim = Shim::connect(&address, namespace, &parts.timeouts, parts.runtime.shim_calls).await?;
            Ok((log, address, shim))
        };
        let connected: Result<_> = connect.await;
        let (log, address, shim) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                if let Err(error) = parts.launcher.delete(instance).await {
                    tracing::debug!(%namespace, %id, %error, "clean up after a shim that did not start");
                }
                bundle.remove();
                return Err(error);
            }
        };
        let mut sandbox = Sandbox {
            namespace: namespace.clone(),
            id: id.clone(),
            bundle,
            program,
            address,
            shim,
            held: Held::Service,
            created_at: SystemTime::now(),
            pid: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            ending: tokio::sync::Mutex::default(),
        };
        match sandbox.create_in_shim(request).await {
            Ok(held) => sandbox.held = held,
            Err(error) if sandbox.shim.is_closed() => {
                // Else the bundle stays, by which the next daemon finds what the shim left.
                if self.tasks.clean_up_dead(sandbox.instance(), 0, TRIES).await.is_ok() {
                    sandbox.bundle.remove();
                }
                return Err(error);
            }
            Err(error) => {
                self.leave(&sandbox).await;
                return Err(error);
            }
        }
        let sandbox = Arc::new(sandbox);
        let (watched, namespace, id) = (sandbox.clone(), namespace.clone(), id.clone());
        tokio::spawn(async move { log.pass_on(&namespace, &id, watched.shim.closed()).await });
        Ok(sandbox)
    }

    /// Asks the shim of a sandbox that is no more to leave, and removes its bundle. That of a shim which does not answer
    /// stays: it may yet do what it was asked, and by the bundle the next daemon finds it.
    pub(super) async fn leave(&self, sandbox: &Sandbox) {
        sandbox.leaving.store(true, Ordering::SeqCst);
        let request = task::ShutdownRequest { id: sandbox.id.to_string(), now: false };
        let answer: Result<()> = sandbox.shim.call("Shutdown", &request, Patience::Leave).await;
        if let Err(error) = answer
            // A shim may leave before it has answered.
            && error.kind() != Kind::Unavailable
        {
            tracing::warn!(namespace = %sandbox.namespace, id = %sandbox.id, %error, "shut down a sandbox's shim");
            if error.kind() == Kind::DeadlineExceeded {
                return;
            }
        }
        sandbox.bundle.remove();
    }
}

impl Sandbox {
    async fn create_in_shim(&self, request: CreateSandbox) -> Result<Held> {
        let options = request.options.or_else(|| request.runtime_options.clone());
        let bundle_path = self.bundle.path().to_string_lossy().into_owned();
        let message = wire::CreateSandboxRequest {
            sandbox_id: self.id.to_string(),
            bundle_path: bundle_path.clone(),
            rootfs: request.rootfs.clone(),
            options,
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        let answer = self.ask::<_, wire::CreateSandboxResponse>("CreateSandbox", &message, Some(PATIENCE)).await;
        match answer {
            Ok(_) => Ok(Held::Service),
            Err(error) if error.kind() == Kind::Unimplemented && request.as_task && request.spec.is_some() => {
                let message = task::CreateTaskRequest {
                    id: self.id.to_string(),
                    bundle: bundle_path,
                    rootfs: request.rootfs,
                    options: request.runtime_options,
                    ..task::CreateTaskRequest::default()
                };
                let made: task::CreateTaskResponse = self.shim.call("Create", &message, Patience::Change).await?;
                self.pid.store(made.pid, Ordering::Relaxed);
                Ok(Held::Task)
            }
            Err(error) => Err(error),
        }
    }

    /// Calls a method of the shim's Sandbox service.
    pub(super) async fn ask<Q: prost::Message, R: prost::Message + Default>(
        &self,
        method: &str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<R> {
        self.shim.call_service(SERVICE, method, request, limit).await
    }
}
