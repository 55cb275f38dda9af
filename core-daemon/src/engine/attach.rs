//! Sessions: a client's terminal, or pipes, joined to a process's streams through its shim's attach socket.
//!
//! What the client does not read stays in the socket, and the process waits; what the client sends goes to the process in
//! order. The exit comes after the last output.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::session_input::Event as In;
use gantry_proto::gantry::engine::v1::session_output::Event as Out;
use gantry_proto::stdio::{FrameKind, STDIN_AHEAD};
use gantry_proto::time;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Ended, Engine, Live};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::id::{ContainerId, ExecId};
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
    /// Its input is this client's alone, and ends with it.
    pub(super) closes_input: bool,
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
            Some(live) => {
                self.note(&context.namespace, &known, "attach", &[]);
                (live, self.connect(&self.socket(&known.id)).await?)
            }
            None if request.start => self.start_attached(context, known.id).await?,
            None => return Err(not_running(&known.record.name)),
        };
        let input = input.filter(|input| {
            let to_stdin = matches!(input.event, Some(In::Stdin(_) | In::CloseStdin(_)));
            std::future::ready(request.stdin || !to_stdin)
        });
        let process = Process { task: live.task.clone(), exec: None, closes_input: false };
        self.container_session(&live, process, auto_remove, socket, input, output).await
    }

    async fn start_attached(&self, context: &Context, id: ContainerId) -> Result<(Arc<Live>, UnixStream)> {
        let (live, socket) = self.start_known(&context.namespace, &id, true).await?;
        Ok((live, socket.ok_or_else(|| Error::internal("start: the container's streams are missing"))?))
    }

    /// A session with a container's own process. If the container is removed at its end, the exit is sent after the
    /// removal, so that a client that has waited can use the name again.
    pub(super) async fn container_session<T>(
        &self,
        live: &Arc<Live>,
        process: Process,
        auto_remove: bool,
        socket: UnixStream,
        input: impl Input,
        output: Output<T>,
    ) -> Result<()> {
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
            let ended = until_end(read, |frames| forward_output(frames, output), end, OUTPUT_AFTER_END).await?;
            output.send(Out::Exit(ended.into())).await;
            Ok(())
        };
        let listening = async {
            forward_input(write, input, process, output).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = conversation => result,
            () = listening => Ok(()),
            // The client has gone; what it was attached to goes on.
            () = output.sender.closed() => {
                if process.closes_input {
                    note(process.task.close_stdin(process.exec.as_ref()).await);
                }
                Ok(())
            }
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

/// Passes frames on until the last.
async fn forward_output<T>(mut frames: streams::Frames, output: &Output<T>) {
    while let Some((kind, payload)) = frames.next().await {
        match kind {
            FrameKind::Stdout => output.send(Out::Stdout(payload.into())).await,
            FrameKind::Stderr => output.send(Out::Stderr(payload.into())).await,
            _ => {}
        }
    }
}

/// What is written to a process's standard input, which may have to wait for the process to read.
enum Written {
    Bytes(Bytes),
    Close,
}

/// Passes the client's input on until it ends. Signals and window sizes overtake input that the process does not read:
/// of that a client sends no more than there is room for here.
async fn forward_input<T>(mut write: streams::Input, mut input: impl Input, process: &Process, output: &Output<T>) {
    let exec = process.exec.as_ref();
    let (pieces, mut waiting) = mpsc::channel(STDIN_AHEAD + 1);
    let reading = async move {
        while let Some(message) = input.next().await {
            let done = match message.event {
                Some(In::Stdin(bytes)) => queue(&pieces, Written::Bytes(bytes)).await,
                Some(In::CloseStdin(_)) => queue(&pieces, Written::Close).await,
                Some(In::Resize(size)) => process.task.resize(exec, size.width, size.height).await,
                Some(In::Signal(signal)) => process.task.kill(exec, signal, false).await,
                None => Ok(()),
            };
            note(done);
        }
    };
    let writing = async {
        while let Some(piece) = waiting.recv().await {
            match piece {
                Written::Bytes(bytes) => {
                    note(write.write(&bytes).await);
                    output.send(Out::StdinTaken(api::StdinTaken {})).await;
                }
                Written::Close => note(write.close().await),
            }
        }
    };
    tokio::join!(reading, writing);
}

async fn queue(pieces: &mpsc::Sender<Written>, piece: Written) -> Result<()> {
    pieces.send(piece).await.map_err(|_| Error::internal("standard input: nobody writes it"))
}

/// No failed input ends a session: the process may just have ended, or closed its input.
fn note(done: Result<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, "input of a session");
    }
}

/// The end of an exec, in the form of a container's.
pub(super) fn exec_end(exit: crate::tasks::Exit, started_at: SystemTime) -> Ended {
    Ended { started_at, at: exit.at, code: exit.status, oom_killed: false }
}
