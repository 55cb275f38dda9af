//! Exec, attach and port forwarding: the calls that give out a URL, and what happens behind it.

use std::os::unix::fs::DirBuilderExt as _;
use std::time::Duration;

use gantry_proto::runtime::v1;
use gantry_proto::stdio::FrameKind;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Cri;
use super::process::Wanted;
use super::streaming::{Backend, Listener, Streaming, Streams};
use crate::error::{Doing, Error, Kind, Result};
use crate::id::ExecId;
use crate::tasks::Task;
use crate::tasks::streams::{self, OUTPUT_AFTER_END, until_end};

/// Bytes of input that are passed on at once.
const PIECE: usize = 32 << 10;
/// How long a process may take for what its client said before it left.
const INPUT_AFTER_END: Duration = Duration::from_secs(10);

impl Cri {
    /// Listens for streams, and serves them until the daemon stops.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn listen(&self) -> Result<()> {
        let dir = self.attach_dir();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.doing(|| format!("make {}", dir.display()))?;
        let listener = Listener::bind(&self.config().streaming, &self.parts().stopping).await?;
        if self.shared.streaming.set(listener.streaming().clone()).is_ok() {
            tokio::spawn(listener.run(self.clone()));
        }
        Ok(())
    }

    fn streaming(&self) -> Result<&Streaming> {
        self.shared.streaming.get().ok_or_else(|| Error::unavailable("streams: the server does not listen yet"))
    }

    pub(super) async fn exec(&self, request: v1::ExecRequest) -> Result<v1::ExecResponse> {
        self.store().container(&request.container_id)?.task()?;
        Ok(v1::ExecResponse { url: self.streaming()?.exec_url(request)? })
    }

    pub(super) async fn attach(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse> {
        self.store().container(&request.container_id)?.task()?;
        Ok(v1::AttachResponse { url: self.streaming()?.attach_url(request)? })
    }

    pub(super) async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<v1::PortForwardResponse> {
        self.running_network(&request.pod_sandbox_id)?;
        Ok(v1::PortForwardResponse { url: self.streaming()?.port_forward_url(request)? })
    }
}

#[tonic::async_trait]
impl Backend for Cri {
    async fn exec(&self, request: v1::ExecRequest, streams: Streams) -> Result<u32> {
        let container = self.store().container(&request.container_id)?;
        let wanted = Wanted { command: request.cmd, terminal: request.tty, stdin: request.stdin };
        let mut started = self.start_process(&container, wanted).await?;
        let (ended, socket) = (started.end(), started.take_stream()?);
        let process = Process { task: &started.task, exec: Some(&started.id), closes_input: true };
        if let Some(exit) = process.join(socket, streams, ended).await? {
            return Ok(exit.status);
        }
        // As with a terminal that is unplugged. Without one, the process runs on, and its input has ended.
        if request.tty {
            let hang_up = u32::try_from(Signal::SIGHUP as i32).unwrap_or_default();
            let _ = started.task.kill(Some(&started.id), hang_up, false).await;
        }
        Err(Error::new(Kind::Canceled, "the client has gone"))
    }

    async fn attach(&self, request: v1::AttachRequest, streams: Streams) -> Result<()> {
        let container = self.store().container(&request.container_id)?;
        let task = container.task()?;
        let socket = streams::join(&self.attach_socket(container.id().as_str())).await?;
        let once = container.record().config.as_ref().is_some_and(|config| config.stdin_once);
        let process = Process { task: &task, exec: None, closes_input: once };
        let ended = async {
            container.ended().await;
            Ok(())
        };
        process.join(socket, streams, ended).await.map(drop)
    }

    async fn dial(&self, sandbox: &str, port: u16) -> Result<TcpStream> {
        self.dial_pod(sandbox, port).await
    }
}

/// A process whose streams are to be joined to a client's.
struct Process<'a> {
    task: &'a Task,
    exec: Option<&'a ExecId>,
    /// The end of the client's input is the end of the process's.
    closes_input: bool,
}

impl Process<'_> {
    /// Passes everything on until the process has ended and its last output is with the client; `None` where the client
    /// has gone before that.
    async fn join<T>(
        &self,
        socket: UnixStream,
        streams: Streams,
        end: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        let Streams { stdin, stdout, stderr, mut sizes, gone } = streams;
        let (output, mut input) = streams::split(socket);
        let passed = CancellationToken::new();
        let listening = async {
            if let Some(stdin) = stdin {
                self.pass_in(stdin, &mut input).await;
            }
            passed.cancel();
            std::future::pending::<()>().await;
        };
        // What a client said last, and that it was the last, is still for the process.
        let leaving = async {
            gone.cancelled().await;
            let is_late = timeout(INPUT_AFTER_END, passed.cancelled()).await.is_err();
            if is_late && self.closes_input {
                let closed = self.task.close_stdin(self.exec).await;
                tracing::debug!(?closed, "a process did not take the rest of its input");
            }
        };
        let resizing = async {
            while let Some(size) = sizes.recv().await {
                if size.width > 0 && size.height > 0 {
                    let resized = self.task.resize(self.exec, size.width.into(), size.height.into()).await;
                    if let Err(error) = resized {
                        tracing::debug!(%error, "resize the terminal of a session");
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = until_end(output, |frames| pass_out(frames, stdout, stderr), end, OUTPUT_AFTER_END) => ended.map(Some),
            () = listening => Err(Error::internal("session: input ended")),
            () = leaving => Ok(None),
            () = resizing => Err(Error::internal("session: sizes ended")),
        }
    }

    async fn pass_in(&self, mut stdin: DuplexStream, input: &mut streams::Input) {
        let mut buffer = vec![0; PIECE];
        loop {
            let got = stdin.read(&mut buffer).await.unwrap_or(0);
            let passed = match got {
                0 if self.closes_input => input.close().await,
                0 => return,
                got => input.write(&buffer[..got]).await,
            };
            // The process may have ended, or closed its input; its output is still to come.
            if let Err(error) = passed {
                tracing::debug!(%error, "input of a session");
                return;
            }
            if got == 0 {
                return;
            }
        }
    }
}

/// Passes output on until the last of it. A client that does not want it, or has gone, does not keep the process waiting.
async fn pass_out(mut frames: streams::Frames, mut stdout: Option<DuplexStream>, mut stderr: Option<DuplexStream>) {
    while let Some((kind, bytes)) = frames.next().await {
        let to = match kind {
            FrameKind::Stdout => &mut stdout,
            FrameKind::Stderr => &mut stderr,
            _ => continue,
        };
        if let Some(pipe) = to
            && pipe.write_all(&bytes).await.is_err()
        {
            *to = None;
        }
    }
}
