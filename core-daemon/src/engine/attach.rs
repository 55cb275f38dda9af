//! Sessions: a client's terminal, or pipes, joined to a process's streams through its shim's attach socket.
//!
//! What the client does not read stays in the socket, and the process waits; what the client sends goes to the process in
//! order. The exit comes after the last output.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::session_input::Event as In;
use gantry_proto::gantry::engine::v1::session_output::Event as Out;
use gantry_proto::stdio::FrameKind;
use gantry_proto::time;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Ended, Engine, Known, Live};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::id::ExecId;
use crate::tasks::Task;
use crate::tasks::streams::{self, OUTPUT_AFTER_END, until_end};

/// How long a client waits at most for a container that has ended to be gone.
const REMOVAL: Duration = Duration::from_secs(10);

/// What a client sends to a process.
pub trait Input: Stream<Item = api::SessionInput> + Send + Unpin {}

impl<S: Stream<Item = api::SessionInput> + Send + Unpin> Input for S {}

/// Where a session's output goes, in the messages of the call it belongs to.
pub struct Output<T> {
    /// To the client.
    pub sender: mpsc::Sender<Result<T>>,
    /// Makes the call's message.
    pub wrap: fn(api::SessionOutput) -> T,
}

/// The process of a session.
pub(super) struct Process {
    pub(super) task: Arc<Task>,
    pub(super) exec: Option<ExecId>,
}

impl Engine {
    /// Joins the streams of a running container, or of one that is to be started, until it ends or the client goes.
    ///
    /// # Errors
    /// `FailedPrecondition` when it does not run and is not to be started, else why it cannot be.
    pub async fn attach<T>(
        &self,
        context: &Context,
        request: &api::AttachRequest,
        input: impl Input,
        output: Output<T>,
    ) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let auto_remove = known.record.auto_remove;
        let (live, socket) = match self.running(&context.namespace, &known.id) {
            Some(live) => (live, self.connect(&self.socket(&known.id)).await?),
            None if request.start => self.start_attached(context, known).await?,
            None => return Err(not_running(&known.record.name)),
        };
        let input = input.filter(|input| {
            let to_stdin = matches!(input.event, Some(In::Stdin(_) | In::CloseStdin(_)));
            std::future::ready(request.stdin || !to_stdin)
        });
        self.container_session(&live, auto_remove, socket, input, output).await
    }

    /// Starts a container to the end even if the client goes now: half a start is nobody's.
    async fn start_attached(&self, context: &Context, known: Known) -> Result<(Arc<Live>, UnixStream)> {
        let (engine, namespace) = (self.clone(), context.namespace.clone());
        let start = tokio::spawn(async move { engine.start_known(&namespace, &known, true).await });
        let (live, socket) = start.await.map_err(|error| Error::internal(format!("start: {error}")))??;
        Ok((live, socket.ok_or_else(|| Error::internal("start: the container's streams are missing"))?))
    }

    /// A session with a container's own process. Of one that is removed at its end, the exit is told when it is gone,
    /// so that its name is free for whoever waits.
    pub(super) async fn container_session<T>(
        &self,
        live: &Arc<Live>,
        auto_remove: bool,
        socket: UnixStream,
        input: impl Input,
        output: Output<T>,
    ) -> Result<()> {
        let process = Process { task: live.task.clone(), exec: None };
        let end = async {
            let ended = live.end().await?;
            if auto_remove {
                let _ = tokio::time::timeout(REMOVAL, live.settled()).await;
            }
            Ok(ended)
        };
        self.session(&process, end, socket, input, &output).await
    }

    /// Passes input and output on until the process ends, the client goes, or the daemon stops.
    pub(super) async fn session<T>(
        &self,
        process: &Process,
        end: impl Future<Output = Result<Ended>>,
        socket: UnixStream,
        input: impl Input,
        output: &Output<T>,
    ) -> Result<()> {
        let (read, write) = streams::split(socket);
        let conversation = async {
            let ended = until_end(forward_output(read, output), end, OUTPUT_AFTER_END).await?;
            output.send(Out::Exit(ended.into())).await;
            Ok(())
        };
        let listening = async {
            forward_input(write, input, process).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = conversation => result,
            () = listening => Ok(()),
            // The client has gone; what it was attached to goes on.
            () = output.sender.closed() => Ok(()),
            () = self.parts().stopping.cancelled() => {
                Err(Error::unavailable("the daemon is stopping; the container keeps running, attach again later"))
            }
        }
    }
}

pub(super) fn not_running(name: &str) -> Error {
    Error::precondition(format!("container {name}: is not running"))
}

impl From<Ended> for api::Exit {
    fn from(ended: Ended) -> Self {
        Self { code: ended.code, at: Some(time::timestamp(ended.at)), oom_killed: ended.oom_killed }
    }
}

impl<T> Output<T> {
    /// Sends to the client, waiting until it takes more. A client that has gone is noticed elsewhere.
    async fn send(&self, event: Out) {
        let _ = self.sender.send(Ok((self.wrap)(api::SessionOutput { event: Some(event) }))).await;
    }
}

/// Passes frames on until the shim closes the connection.
async fn forward_output<T>(mut read: streams::Output, output: &Output<T>) {
    loop {
        match read.next().await {
            Ok(Some((FrameKind::Stdout, payload))) => output.send(Out::Stdout(payload.into())).await,
            Ok(Some((FrameKind::Stderr, payload))) => output.send(Out::Stderr(payload.into())).await,
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "attach socket");
                return;
            }
        }
    }
}

/// Passes the client's input on until it ends.
async fn forward_input(mut write: streams::Input, mut input: impl Input, process: &Process) {
    let exec = process.exec.as_ref();
    while let Some(message) = input.next().await {
        let done = match message.event {
            Some(In::Stdin(bytes)) => write.write(&bytes).await,
            Some(In::CloseStdin(_)) => write.close().await,
            Some(In::Resize(size)) => process.task.resize(exec, size.width, size.height).await,
            Some(In::Signal(signal)) => process.task.kill(exec, signal, false).await,
            None => Ok(()),
        };
        // None of these ends the session: the process may just have ended, or closed its input.
        if let Err(error) = done {
            tracing::debug!(%error, "input of a session");
        }
    }
}

/// The end of an exec, in the form of a container's.
pub(super) fn exec_end(exit: crate::tasks::Exit, started_at: SystemTime) -> Ended {
    Ended { started_at, at: exit.at, code: exit.status, oom_killed: false }
}
