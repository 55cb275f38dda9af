//! The ttrpc services: decode, ask the container's mailbox, encode. No decisions.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gantry_proto::containerd::task::v3 as task;
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::exit::EXIT_CODE_TTRPC;
use gantry_proto::gantry::shim::v1::{OomRequest, OomResponse, ReopenLogRequest};
use gantry_proto::namespace::check_identifier;
use gantry_proto::status::Status;
use gantry_proto::time::timestamp;
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Context, Service, Stream};
use prost::Message;
use tokio::sync::oneshot;

use crate::bootstrap::Setting;
use crate::containers::Containers;
use crate::events::Events;
use crate::io::streams::Streams;
use crate::lifetime::Lifetime;
use crate::options::Options;
use crate::reaper::Reaper;
use crate::sandbox::Sandboxes;
use crate::task::delete::delete;
use crate::task::kill::kill;
use crate::task::{Mailbox, Shim};
use crate::{Error, Result};

/// Everything the shim answers.
#[derive(Debug)]
pub struct Services {
    shim: Arc<Shim>,
    sandboxes: Sandboxes,
}

/// An encoded answer.
type Answer = Result<Vec<u8>>;

impl Services {
    /// The services of a fresh shim. Needs a running tokio runtime.
    pub fn new(setting: Setting) -> Self {
        let reaper = Reaper::default();
        let shim = Arc::new(Shim {
            events: Events::start(&setting, reaper.clone()),
            reaper,
            containers: Containers::default(),
            streams: Streams::default(),
            lifetime: Lifetime::default(),
            has_left: AtomicBool::default(),
            setting,
        });
        Self { sandboxes: Sandboxes::new(shim.clone()), shim }
    }

    /// What keeps the shim alive.
    pub fn lifetime(&self) -> &Lifetime {
        &self.shim.lifetime
    }

    /// Collects exits.
    pub fn reaper(&self) -> &Reaper {
        &self.shim.reaper
    }

    /// The way to the daemon.
    pub fn events(&self) -> &Events {
        &self.shim.events
    }

    /// Ends the shim.
    pub fn leave(&self) {
        self.shim.leave();
    }

    /// Logs every container's state: what SIGUSR1 asks for.
    pub fn dump(&self) {
        tracing::info!(reaper = ?self.shim.reaper, clients = self.shim.lifetime.clients(), "dump");
        for id in self.shim.containers.ids() {
            let Ok(mailbox) = self.shim.containers.get(&id) else { continue };
            mailbox.tell(|container| {
                tracing::info!(container = container.describe(), "dump");
                Box::pin(std::future::ready(()))
            });
        }
    }

    async fn task(&self, method: &str, payload: &[u8]) -> Option<Answer> {
        Some(match method {
            "State" => self.state(payload).await,
            "Create" => self.create(payload).await,
            "Start" => self.start(payload).await,
            "Delete" => self.delete(payload).await,
            "Pids" => self.pids(payload).await,
            "Pause" => self.pause(payload).await,
            "Resume" => self.resume(payload).await,
            "Checkpoint" => self.checkpoint(payload).await,
            "Kill" => self.kill(payload).await,
            "Exec" => self.exec(payload).await,
            "ResizePty" => self.resize(payload).await,
            "CloseIO" => self.close_io(payload).await,
            "Update" => self.update(payload).await,
            "Wait" => self.wait(payload).await,
            "Stats" => self.stats(payload).await,
            "Connect" => self.connect(payload).await,
            "Shutdown" => self.shutdown(payload).await,
            _ => return None,
        })
    }

    fn mailbox(&self, id: &str) -> Result<Mailbox> {
        self.shim.containers.get(id)
    }

    async fn create(&self, payload: &[u8]) -> Answer {
        let request: task::CreateTaskRequest = decode(payload)?;
        let pid = create(&self.shim, request).await?;
        answer(&task::CreateTaskResponse { pid })
    }

    async fn start(&self, payload: &[u8]) -> Answer {
        let task::StartRequest { id, exec_id } = decode(payload)?;
        let ask = self.mailbox(&id)?;
        let pid = ask.ask(move |container| Box::pin(async move { container.start(&exec_id).await })).await?;
        answer(&task::StartResponse { pid })
    }

    async fn state(&self, payload: &[u8]) -> Answer {
        let task::StateRequest { id, exec_id } = decode(payload)?;
        answer(&self.mailbox(&id)?.peek(move |container| container.state(&exec_id)).await?)
    }

    async fn delete(&self, payload: &[u8]) -> Answer {
        let task::DeleteRequest { id, exec_id } = decode(payload)?;
        answer(&delete(&self.mailbox(&id)?, exec_id).await?)
    }

    async fn pids(&self, payload: &[u8]) -> Answer {
        let task::PidsRequest { id } = decode(payload)?;
        let mailbox = self.mailbox(&id)?;
        let processes = match mailbox.peek(|container| container.pids()).await? {
            Some(processes) => processes,
            None => mailbox.ask(|container| Box::pin(async move { container.pids_by_runtime().await })).await?,
        };
        answer(&task::PidsResponse { processes })
    }

    async fn pause(&self, payload: &[u8]) -> Answer {
        let task::PauseRequest { id } = decode(payload)?;
        let mailbox = self.mailbox(&id)?;
        answer(&mailbox.ask(|container| Box::pin(async move { container.pause().await })).await?)
    }

    async fn resume(&self, payload: &[u8]) -> Answer {
        let task::ResumeRequest { id } = decode(payload)?;
        let mailbox = self.mailbox(&id)?;
        answer(&mailbox.ask(|container| Box::pin(async move { container.resume().await })).await?)
    }

    async fn checkpoint(&self, payload: &[u8]) -> Answer {
        let request: task::CheckpointTaskRequest = decode(payload)?;
        let mailbox = self.mailbox(&request.id)?;
        answer(&mailbox.ask(move |container| Box::pin(async move { container.checkpoint(&request).await })).await?)
    }

    async fn kill(&self, payload: &[u8]) -> Answer {
        let task::KillRequest { id, exec_id, signal, all } = decode(payload)?;
        answer(&kill(&self.mailbox(&id)?, exec_id, signal, all).await?)
    }

    async fn exec(&self, payload: &[u8]) -> Answer {
        let request: task::ExecProcessRequest = decode(payload)?;
        answer(&self.mailbox(&request.id)?.look(move |container| container.add_exec(request)).await?)
    }

    async fn resize(&self, payload: &[u8]) -> Answer {
        let task::ResizePtyRequest { id, exec_id, width, height } = decode(payload)?;
        answer(&self.mailbox(&id)?.peek(move |container| container.resize(&exec_id, width, height)).await?)
    }

    async fn close_io(&self, payload: &[u8]) -> Answer {
        let task::CloseIoRequest { id, exec_id, stdin } = decode(payload)?;
        let mailbox = self.mailbox(&id)?;
        let close = move |container: &mut crate::task::Container| {
            if stdin { container.close_stdin(&exec_id) } else { Ok(()) }
        };
        answer(&mailbox.peek(close).await?)
    }

    async fn update(&self, payload: &[u8]) -> Answer {
        let request: task::UpdateTaskRequest = decode(payload)?;
        let mailbox = self.mailbox(&request.id)?;
        answer(&mailbox.ask(move |container| Box::pin(async move { container.update(&request).await })).await?)
    }

    async fn wait(&self, payload: &[u8]) -> Answer {
        let task::WaitRequest { id, exec_id } = decode(payload)?;
        let mailbox = self.mailbox(&id)?;
        let mut waiter = mailbox.peek(move |container| Ok(container.process(&exec_id)?.waiter())).await?;
        // The mailbox would keep the container's owner alive for as long as somebody waits.
        drop(mailbox);
        let exited = waiter.wait_for(Option::is_some).await.ok().and_then(|exited| *exited);
        let exited = exited.ok_or_else(|| Error::not_found("the process was deleted before it ended"))?;
        answer(&task::WaitResponse { exit_status: exited.status, exited_at: Some(timestamp(exited.at)) })
    }

    async fn stats(&self, payload: &[u8]) -> Answer {
        let task::StatsRequest { id } = decode(payload)?;
        let stats = self.mailbox(&id)?.peek(|container| container.stats()).await?;
        answer(&task::StatsResponse { stats: Some(stats) })
    }

    async fn connect(&self, payload: &[u8]) -> Answer {
        let task::ConnectRequest { id } = decode(payload)?;
        let task_pid = match self.mailbox(&id) {
            Ok(mailbox) => mailbox.peek(|container| Ok(container.process("")?.wire_pid())).await?,
            // A shim without that container is still a shim.
            Err(_) => 0,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        answer(&task::ConnectResponse { shim_pid: std::process::id(), task_pid, version })
    }

    async fn shutdown(&self, payload: &[u8]) -> Answer {
        let task::ShutdownRequest { now, .. } = decode(payload)?;
        if self.shim.lifetime.is_empty() || now && self.has_only_leftovers().await {
            self.shim.leave();
        }
        answer(&())
    }

    /// Whether every container has ended, and there is no sandbox into which more could come.
    async fn has_only_leftovers(&self) -> bool {
        for id in self.shim.containers.ids() {
            let Ok(mailbox) = self.shim.containers.get(&id) else { continue };
            if mailbox.peek(|container| container.state("")).await.is_ok_and(|it| it.status() != TaskStatus::Stopped) {
                return false;
            }
        }
        !self.sandboxes.is_there()
    }

    async fn reopen_log(&self, payload: &[u8]) -> Answer {
        let ReopenLogRequest { id, exec_id } = decode(payload)?;
        answer(&self.mailbox(&id)?.peek(move |container| container.reopen_log(&exec_id)).await?)
    }

    async fn oom(&self, payload: &[u8]) -> Answer {
        let OomRequest { id } = decode(payload)?;
        let killed = self.mailbox(&id)?.peek(|container| Ok(container.was_oom_killed())).await?;
        answer(&OomResponse { killed })
    }
}

/// Makes a container and its mailbox; a failed one leaves neither, unless the runtime cannot delete it.
pub(crate) async fn create(shim: &Arc<Shim>, request: task::CreateTaskRequest) -> Result<u32> {
    let id = request.id.clone();
    check_identifier(&id).map_err(|error| Error::invalid(format!("id: {error}")))?;
    let bundle = PathBuf::from(&request.bundle);
    if !bundle.is_absolute() {
        return Err(Error::invalid(format!("bundle: {:?} is not an absolute path", request.bundle)));
    }
    let options = Options::from_any(request.options.as_ref())?;
    let mailbox = shim.containers.insert(&id, || Mailbox::start(shim.clone(), &id, bundle, options))?;
    let containers = shim.containers.clone();
    let (mut sender, answer) = oneshot::channel();
    mailbox.tell(move |container| {
        Box::pin(async move {
            // A client that stops waiting for Create will use the identifier again, so the container is undone.
            let made = tokio::select! {
                made = container.create(request) => Some(made),
                () = sender.closed() => None,
            };
            if made.is_none() {
                tracing::warn!(id, "nobody waits for this create any more; it is undone");
                if let Err(error) = container.abandon().await {
                    tracing::warn!(id, %error, "delete a container that nobody waits for");
                }
            }
            if !matches!(made, Some(Ok(_))) && !container.has_leftovers() {
                containers.remove(&id);
            }
            let _ = sender.send(made.unwrap_or_else(|| Err(Error::internal("abandoned"))));
        })
    });
    answer.await.unwrap_or_else(|_| Err(Error::internal("the container's owner is gone")))
}

/// The task's state of a sandbox's container, for its status.
pub(crate) async fn status(shim: &Shim, id: &str) -> Result<(TaskStatus, task::StateResponse)> {
    let state = shim.containers.get(id)?.peek(|container| container.state("")).await?;
    Ok((state.status(), state))
}

fn answer<M: Message>(message: &M) -> Answer {
    Ok(message.encode_to_vec())
}

impl Service for Services {
    async fn call(&self, service: &str, method: &str, payload: &[u8], context: &Context) -> Result<Vec<u8>, Status> {
        let answer = match service {
            // The second and the third version differ in nothing but the name.
            "containerd.task.v3.Task" | "containerd.task.v2.Task" => self.task(method, payload).await,
            "containerd.runtime.sandbox.v1.Sandbox" => self.sandboxes.call(method, payload).await,
            "gantry.shim.v1.Shim" if method == "ReopenLog" => Some(self.reopen_log(payload).await),
            "gantry.shim.v1.Shim" if method == "Oom" => Some(self.oom(payload).await),
            _ => None,
        };
        match answer {
            None => Err(unknown(service, method)),
            Some(Ok(payload)) => Ok(payload),
            Some(Err(error)) => {
                tracing::debug!(method, kind = ?error.kind(), %error, "call failed");
                let mut status = Status::from(error);
                if context.get(EXIT_CODE_TTRPC).is_none() {
                    status.details.clear();
                }
                Err(status)
            }
        }
    }

    async fn stream(&self, service: &str, method: &str, stream: Stream) -> Result<(), Status> {
        if (service, method) != ("containerd.services.streaming.v1.Streaming", "Stream") {
            return Err(unknown(service, method));
        }
        let streams = self.shim.streams.clone();
        // What a client has sent before it went is passed on all the same.
        let served = tokio::spawn(async move { streams.serve(stream).await });
        served.await.unwrap_or_else(|error| Err(Error::internal(format!("stream: {error}")).into()))
    }
}
