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
use gantry_proto::stdio::{FrameKind, MAX_FRAME};
use gantry_proto::time;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::{Ended, Engine, Known, Live};
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::id::ExecId;
use crate::tasks::Task;

/// How long output may go on after the process has ended: something else may hold its streams open.
const OUTPUT_AFTER_END: Duration = Duration::from_secs(10);
/// How long a client waits at most for a container that has ended to be gone.
const REMOVAL: Duration = Duration::from_secs(10);
/// Bytes of a frame before its payload.
const HEADER: usize = 5;

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
        let (read, write) = socket.into_split();
        let conversation = async {
            let ended = until_end(forward_output(read, output), end).await?;
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

/// Waits for the end and for the last output, which may come in either order.
async fn until_end(output: impl Future<Output = ()>, end: impl Future<Output = Result<Ended>>) -> Result<Ended> {
    tokio::pin!(output, end);
    let mut drained = false;
    let ended = loop {
        tokio::select! {
            () = &mut output, if !drained => drained = true,
            ended = &mut end => break ended?,
        }
    };
    if !drained {
        let _ = tokio::time::timeout(OUTPUT_AFTER_END, output).await;
    }
    Ok(ended)
}

impl<T> Output<T> {
    /// Sends to the client, waiting until it takes more. A client that has gone is noticed elsewhere.
    async fn send(&self, event: Out) {
        let _ = self.sender.send(Ok((self.wrap)(api::SessionOutput { event: Some(event) }))).await;
    }
}

/// Passes frames on until the shim closes the connection.
async fn forward_output<T>(read: OwnedReadHalf, output: &Output<T>) {
    let mut read = BufReader::with_capacity(HEADER + 4096, read);
    loop {
        match read_frame(&mut read).await {
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

async fn read_frame(read: &mut BufReader<OwnedReadHalf>) -> Result<Option<(FrameKind, Vec<u8>)>> {
    let mut header = [0; HEADER];
    match read.read_exact(&mut header).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.doing(|| "read a frame")?,
    };
    let [kind, length @ ..] = header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let kind = FrameKind::from_byte(kind).filter(|_| length <= MAX_FRAME);
    let kind = kind.ok_or_else(|| Error::new(Kind::DataLoss, format!("malformed frame header {header:?}")))?;
    let mut payload = vec![0; length];
    read.read_exact(&mut payload).await.doing(|| "read a frame")?;
    Ok(Some((kind, payload)))
}

/// Passes the client's input on until it ends.
async fn forward_input(mut write: OwnedWriteHalf, mut input: impl Input, process: &Process) {
    let exec = process.exec.as_ref();
    while let Some(message) = input.next().await {
        let done = match message.event {
            Some(In::Stdin(bytes)) => write_frames(&mut write, &bytes).await,
            Some(In::CloseStdin(_)) => write_frame(&mut write, FrameKind::CloseStdin, &[]).await,
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

async fn write_frames(write: &mut OwnedWriteHalf, bytes: &[u8]) -> Result<()> {
    for chunk in bytes.chunks(MAX_FRAME) {
        write_frame(write, FrameKind::Stdin, chunk).await?;
    }
    Ok(())
}

async fn write_frame(write: &mut OwnedWriteHalf, kind: FrameKind, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| Error::internal("frame is too long"))?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    write.write_all(&frame).await.doing(|| "write a frame")
}

/// The end of an exec, in the form of a container's.
pub(super) fn exec_end(exit: crate::tasks::Exit, started_at: SystemTime) -> Ended {
    Ended { started_at, at: exit.at, code: exit.status, oom_killed: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_socket_and_malformed_ones_are_refused() {
        let (near, far) = UnixStream::pair().expect("sockets");
        let (_, mut write) = near.into_split();
        let (read, _keep) = far.into_split();
        let mut read = BufReader::new(read);
        let long = vec![7; MAX_FRAME + 1];
        write_frames(&mut write, &long[..MAX_FRAME]).await.expect("write");
        assert_eq!(read_frame(&mut read).await.expect("frame").expect("frame").1.len(), MAX_FRAME);
        write_frame(&mut write, FrameKind::CloseStdin, &[]).await.expect("write");
        assert_eq!(read_frame(&mut read).await.expect("frame"), Some((FrameKind::CloseStdin, Vec::new())));
        write.write_all(&[1, 0xff, 0, 0, 0]).await.expect("write");
        assert_eq!(read_frame(&mut read).await.expect_err("too long").kind(), Kind::DataLoss);
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_output() {
        let at = SystemTime::now();
        let ended = Ended { started_at: at, at, code: 3, oom_killed: false };
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let output = async move {
            let _ = receiver.await;
        };
        let whole = tokio::spawn(until_end(output, std::future::ready(Ok(ended))));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!whole.is_finished());
        sender.send(()).expect("drain");
        assert_eq!(whole.await.expect("join").expect("end").code, 3);
    }
}
