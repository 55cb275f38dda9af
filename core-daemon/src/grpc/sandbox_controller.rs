//! `containerd.services.sandbox.v1.Controller`.
//!
//! The sandboxer `shim` wants a shim with the Sandbox service; `podsandbox` also takes one without, which then holds the
//! sandbox's process as a task.

use std::time::Duration;

use gantry_proto::containerd::services::sandbox::v1 as wire;
use gantry_proto::containerd::services::sandbox::v1::controller_server::Controller;
use gantry_proto::time::timestamp;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::tasks::{CreateSandbox, Sandboxes};

/// The service.
pub struct SandboxControllerService {
    sandboxes: Sandboxes,
    stopping: CancellationToken,
}

impl SandboxControllerService {
    /// The service over these sandboxes. Waits end when the daemon stops.
    pub fn new(sandboxes: Sandboxes, stopping: CancellationToken) -> Self {
        Self { sandboxes, stopping }
    }
}

/// Whether the named controller holds sandboxes as tasks where it must.
fn holds_tasks(sandboxer: &str) -> Result<bool> {
    match sandboxer {
        "shim" => Ok(false),
        "podsandbox" => Ok(true),
        "" => Err(Error::invalid("sandboxer is required")),
        _ => Err(Error::not_found(format!("sandboxer {sandboxer}: not found; there are shim and podsandbox"))),
    }
}

/// The sandbox a call is about.
fn named(headers: &MetadataMap, sandboxer: &str, id: &str) -> Result<(Context, ContainerId)> {
    holds_tasks(sandboxer)?;
    Ok((Context::of(headers)?, ContainerId::parse(id)?))
}

/// The address as clients hand it back with the tasks of the sandbox.
fn endpoint(address: &crate::shims::Address) -> String {
    format!("{}+{}", address.protocol, address.address)
}

#[tonic::async_trait]
impl Controller for SandboxControllerService {
    async fn create(
        &self,
        request: Request<wire::ControllerCreateRequest>,
    ) -> Result<Response<wire::ControllerCreateResponse>, Status> {
        let as_task = holds_tasks(&request.get_ref().sandboxer)?;
        let context = Context::of(request.metadata())?;
        let request = request.into_inner();
        let sandbox = request.sandbox.unwrap_or_default();
        let sandbox_id = if request.sandbox_id.is_empty() { sandbox.sandbox_id } else { request.sandbox_id };
        let id = ContainerId::parse(&sandbox_id)?;
        let runtime = sandbox.runtime.unwrap_or_default();
        let wanted = CreateSandbox {
            runtime: runtime.name,
            runtime_options: runtime.options,
            spec: sandbox.spec.filter(|spec| !spec.value.is_empty()),
            rootfs: request.rootfs,
            options: request.options.filter(|options| !options.type_url.is_empty()),
            netns_path: request.netns_path,
            annotations: request.annotations,
            as_task,
        };
        self.sandboxes.create(&context, &id, wanted).await?;
        Ok(Response::new(wire::ControllerCreateResponse { sandbox_id }))
    }

    async fn start(
        &self,
        request: Request<wire::ControllerStartRequest>,
    ) -> Result<Response<wire::ControllerStartResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let started = self.sandboxes.start(&context.namespace, &id).await?;
        Ok(Response::new(wire::ControllerStartResponse {
            sandbox_id: id.to_string(),
            pid: started.pid,
            created_at: Some(timestamp(started.created_at)),
            address: endpoint(&started.address),
            version: started.address.version,
            spec: started.spec,
            ..wire::ControllerStartResponse::default()
        }))
    }

    async fn platform(
        &self,
        request: Request<wire::ControllerPlatformRequest>,
    ) -> Result<Response<wire::ControllerPlatformResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let platform = Some(self.sandboxes.platform(&context.namespace, &id).await?);
        Ok(Response::new(wire::ControllerPlatformResponse { platform }))
    }

    async fn stop(
        &self,
        request: Request<wire::ControllerStopRequest>,
    ) -> Result<Response<wire::ControllerStopResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let grace = (inner.timeout_secs > 0).then(|| Duration::from_secs(inner.timeout_secs.into()));
        self.sandboxes.stop(&context.namespace, &id, grace).await?;
        Ok(Response::new(wire::ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<wire::ControllerWaitRequest>,
    ) -> Result<Response<wire::ControllerWaitResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let exit = tokio::select! {
            exit = self.sandboxes.wait(&context.namespace, &id) => exit?,
            () = self.stopping.cancelled() => return Err(Status::unavailable("the daemon is stopping")),
        };
        let (exit_status, exited_at) = (exit.status, Some(timestamp(exit.at)));
        Ok(Response::new(wire::ControllerWaitResponse { exit_status, exited_at }))
    }

    async fn status(
        &self,
        request: Request<wire::ControllerStatusRequest>,
    ) -> Result<Response<wire::ControllerStatusResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let status = self.sandboxes.status(&context.namespace, &id, inner.verbose).await?;
        Ok(Response::new(wire::ControllerStatusResponse {
            sandbox_id: id.to_string(),
            pid: status.pid,
            state: status.state().to_owned(),
            address: endpoint(&status.address),
            version: status.address.version,
            info: status.info,
            created_at: Some(timestamp(status.created_at)),
            exited_at: status.exited_at.map(timestamp),
            extra: status.extra,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ControllerShutdownRequest>,
    ) -> Result<Response<wire::ControllerShutdownResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        self.sandboxes.shutdown(&context.namespace, &id).await?;
        Ok(Response::new(wire::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<wire::ControllerMetricsRequest>,
    ) -> Result<Response<wire::ControllerMetricsResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let metrics = Some(self.sandboxes.metrics(&context.namespace, &id).await?);
        Ok(Response::new(wire::ControllerMetricsResponse { metrics }))
    }

    async fn update(
        &self,
        request: Request<wire::ControllerUpdateRequest>,
    ) -> Result<Response<wire::ControllerUpdateResponse>, Status> {
        let inner = request.get_ref();
        let (context, id) = named(request.metadata(), &inner.sandboxer, &inner.sandbox_id)?;
        let sandbox = inner.sandbox.as_ref().ok_or_else(|| Error::invalid("sandbox is required"))?;
        let wanted = inner.fields.is_empty() || inner.fields.iter().any(|field| field == "spec");
        let spec = sandbox.spec.as_ref().filter(|_| wanted);
        self.sandboxes.update(&context.namespace, &id, spec).await?;
        Ok(Response::new(wire::ControllerUpdateResponse {}))
    }
}
