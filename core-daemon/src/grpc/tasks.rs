//! `containerd.services.tasks.v1.Tasks`.

use std::sync::Arc;

use futures_util::FutureExt as _;
use gantry_proto::any;
use gantry_proto::containerd::runc::v1::CheckpointOptions;
use gantry_proto::containerd::services::tasks::v1::tasks_server::Tasks;
use gantry_proto::containerd::services::tasks::v1::{
    CheckpointTaskRequest, CheckpointTaskResponse, CloseIoRequest, CreateTaskRequest, CreateTaskResponse,
    DeleteProcessRequest, DeleteResponse, DeleteTaskRequest, ExecProcessRequest, GetRequest, GetResponse, KillRequest,
    ListPidsRequest, ListPidsResponse, ListTasksRequest, ListTasksResponse, MetricsRequest, MetricsResponse,
    PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use gantry_proto::containerd::types::Metric;
use gantry_proto::containerd::v1::types::ProcessInfo;
use gantry_proto::namespace::Namespace;
use gantry_proto::time;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::convert::tasks as convert;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::id::{ContainerId, ExecId};
use crate::records::Pods;
use crate::records::pods::refusal;
use crate::tasks::{self, ProcessState, Task};

/// The service.
pub struct TasksService {
    tasks: tasks::Tasks,
    pods: Arc<dyn Pods>,
    stopping: CancellationToken,
}

impl TasksService {
    /// The service over these tasks, and over what follows from pods. Waits end when the daemon stops.
    pub fn new(tasks: tasks::Tasks, pods: Arc<dyn Pods>, stopping: CancellationToken) -> Self {
        Self { tasks, pods, stopping }
    }

    /// The task a call is about.
    fn task(&self, headers: &MetadataMap, id: &str) -> Result<Arc<Task>> {
        let context = Context::of(headers)?;
        let id = ContainerId::known(id)?;
        self.own(&context, &id)?;
        self.tasks.get(&context.namespace, &id)
    }

    /// An error where the task is a pod.
    fn own(&self, context: &Context, id: &ContainerId) -> Result<()> {
        if self.pods.has(&context.namespace, id) { Err(refusal(id)) } else { Ok(()) }
    }

    /// The process that a pod is, where the call is about one.
    fn pod(&self, headers: &MetadataMap, id: &str, exec: &str) -> Result<Option<Pod>> {
        let (context, id) = (Context::of(headers)?, ContainerId::known(id)?);
        if !self.pods.has(&context.namespace, &id) {
            return Ok(None);
        }
        let missing = || Error::not_found(format!("task {id}: not found"));
        let pid = self.pods.pid(&context.namespace, &id).filter(|_| exec.is_empty()).ok_or_else(missing)?;
        Ok(Some(Pod { namespace: context.namespace, id, pid }))
    }
}

/// A pod, as a task.
struct Pod {
    namespace: Namespace,
    id: ContainerId,
    pid: u32,
}

#[tonic::async_trait]
impl Tasks for TasksService {
    async fn create(&self, request: Request<CreateTaskRequest>) -> Result<Response<CreateTaskResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let request = request.into_inner();
        let id = ContainerId::parse(&request.container_id)?;
        self.own(&context, &id)?;
        let task = self.tasks.create(&context, &id, convert::create(request)?).await?;
        Ok(Response::new(CreateTaskResponse { container_id: id.to_string(), pid: task.pid() }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let exec = ExecId::optional(&request.get_ref().exec_id)?;
        Ok(Response::new(StartResponse { pid: task.start(exec.as_ref()).await? }))
    }

    async fn delete(&self, request: Request<DeleteTaskRequest>) -> Result<Response<DeleteResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let id = ContainerId::known(&request.get_ref().container_id)?;
        self.own(&context, &id)?;
        let exit = self.tasks.delete(&context.namespace, &id).await?;
        Ok(Response::new(convert::deleted(None, exit)))
    }

    async fn delete_process(&self, request: Request<DeleteProcessRequest>) -> Result<Response<DeleteResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let id = ContainerId::known(&request.get_ref().container_id)?;
        self.own(&context, &id)?;
        let exec = ExecId::known(&request.get_ref().exec_id)?;
        let exit = self.tasks.delete_exec(&context.namespace, &id, &exec).await?;
        Ok(Response::new(convert::deleted(Some(&exec), exit)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let GetRequest { container_id, exec_id } = request.get_ref();
        if let Some(pod) = self.pod(request.metadata(), container_id, exec_id)? {
            let process = convert::process(&pod.id, None, ProcessState::running(pod.pid));
            return Ok(Response::new(GetResponse { process: Some(process) }));
        }
        let task = self.task(request.metadata(), container_id)?;
        let exec = ExecId::optional(exec_id)?;
        let state = task.state(exec.as_ref()).await?;
        Ok(Response::new(GetResponse { process: Some(convert::process(task.id(), exec.as_ref(), state)) }))
    }

    async fn list(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let states = self.tasks.states(&context.namespace).await;
        let pods = self.pods.pids(&context.namespace).into_iter().map(|(id, pid)| (id, ProcessState::running(pid)));
        let states = states.into_iter().chain(pods);
        let tasks = states.map(|(id, state)| convert::process(&id, None, state)).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<()>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let request = request.get_ref();
        task.kill(ExecId::optional(&request.exec_id)?.as_ref(), request.signal, request.all).await?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Result<Response<()>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let exec = ExecId::parse(&request.get_ref().exec_id)?;
        task.exec(&exec, convert::exec(request.into_inner())).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Result<Response<()>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let request = request.get_ref();
        task.resize(ExecId::optional(&request.exec_id)?.as_ref(), request.width, request.height).await?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<CloseIoRequest>) -> Result<Response<()>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let request = request.get_ref();
        if request.stdin {
            task.close_stdin(ExecId::optional(&request.exec_id)?.as_ref()).await?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Result<Response<()>, Status> {
        self.task(request.metadata(), &request.get_ref().container_id)?.pause().await?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Result<Response<()>, Status> {
        self.task(request.metadata(), &request.get_ref().container_id)?.resume().await?;
        Ok(Response::new(()))
    }

    async fn list_pids(&self, request: Request<ListPidsRequest>) -> Result<Response<ListPidsResponse>, Status> {
        let id = &request.get_ref().container_id;
        let processes = match self.pod(request.metadata(), id, "")? {
            Some(pod) => vec![ProcessInfo { pid: pod.pid, info: None }],
            None => self.task(request.metadata(), id)?.pids().await?,
        };
        Ok(Response::new(ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let options = request.into_inner().options;
        let path = match &options {
            Some(options) if any::is::<CheckpointOptions>(options) => {
                any::unpack::<CheckpointOptions>(options).map_err(|error| Error::invalid(error.to_string()))?.image_path
            }
            _ => String::new(),
        };
        if path.is_empty() {
            let descriptors = self.tasks.checkpoint(&context, &task, options).await?;
            return Ok(Response::new(CheckpointTaskResponse { descriptors }));
        }
        task.checkpoint(&path, options).await?;
        Ok(Response::new(CheckpointTaskResponse { descriptors: Vec::new() }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let task = self.task(request.metadata(), &request.get_ref().container_id)?;
        let request = request.into_inner();
        task.update(request.resources, request.annotations).await?;
        Ok(Response::new(()))
    }

    async fn metrics(&self, request: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let wanted = |task: &Task| {
            filter.matches(|path| match path {
                [name] if name == "id" => Some(task.id().to_string()),
                [name] if name == "namespace" => Some(task.namespace().to_string()),
                _ => None,
            })
        };
        let metrics = self.tasks.metrics(&context.namespace, wanted).await;
        let metrics = metrics.into_iter().map(|(task, at, data)| Metric {
            timestamp: Some(time::timestamp(at)),
            id: task.id().to_string(),
            data: Some(data),
        });
        Ok(Response::new(MetricsResponse { metrics: metrics.collect() }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let WaitRequest { container_id, exec_id } = request.get_ref();
        let ended = match self.pod(request.metadata(), container_id, exec_id)? {
            Some(pod) => {
                let sandboxes = tasks::Sandboxes::new(self.tasks.clone());
                async move { sandboxes.wait(&pod.namespace, &pod.id).await }.boxed()
            }
            None => {
                let task = self.task(request.metadata(), container_id)?;
                let exec = ExecId::optional(exec_id)?;
                async move { task.wait(exec.as_ref()).await }.boxed()
            }
        };
        let exit = tokio::select! {
            exit = ended => exit?,
            () = self.stopping.cancelled() => return Err(Status::unavailable("the daemon is stopping")),
        };
        Ok(Response::new(convert::waited(exit)))
    }
}
