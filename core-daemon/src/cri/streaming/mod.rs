//! The server of streams: exec, attach and port forwarding happen on connections of their own, beside gRPC.
//!
//! ```text
//! Exec (gRPC) ──► a URL with a token, good once and for a minute
//! GET or POST of the URL, upgraded ─┬─ SPDY/3.1 ───┬─► pipes ──► Backend
//!                                   └─ WebSocket ──┘
//! ```
//!
//! Whoever has the token may use it, so the server listens on loopback where nothing else is configured. Everything a
//! client sends is hostile: [`spdy`] and [`websocket`] bound it.

mod activity;
mod http;
mod listen;
mod port_forward;
mod remote_command;
mod spdy;
mod status;
mod tokens;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub(in crate::cri) use listen::Listener;
pub(in crate::cri) use remote_command::Streams;
use remote_command::Wanted;
use tokens::Tokens;

use crate::cri::process::check_command;
use crate::error::{Error, Result};

/// What streams lead to. Its futures are boxed: the compiler took ten seconds to find whether those of [`Cri`](super::Cri) may
/// be sent.
#[tonic::async_trait]
pub(in crate::cri) trait Backend: Clone + Send + Sync + 'static {
    /// Runs a process with these streams, and answers with its exit code.
    async fn exec(&self, request: ExecRequest, streams: Streams) -> Result<u32>;
    /// Joins these streams to a container's own.
    async fn attach(&self, request: AttachRequest, streams: Streams) -> Result<()>;
    /// Connects to a port of this machine as a pod sees it.
    async fn dial(&self, sandbox: &str, port: u16) -> Result<TcpStream>;
}

/// Gives out URLs, and knows what they stand for; clones are the same.
#[derive(Clone)]
pub(in crate::cri) struct Streaming {
    shared: Arc<Shared>,
}

struct Shared {
    tokens: Tokens<Request>,
    base: String,
    times: Times,
    stopping: CancellationToken,
}

/// How long is waited for clients.
#[derive(Debug, Clone, Copy)]
pub(in crate::cri) struct Times {
    /// A connection on which nothing happens is ended.
    pub(in crate::cri) idle: Duration,
    /// For the streams that a client announced.
    pub(in crate::cri) creation: Duration,
}

/// What a token is for.
enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// The streams of a process.
    fn wanted(&self) -> Wanted {
        match self {
            Self::Exec(ExecRequest { stdin, stdout, stderr, tty, .. })
            | Self::Attach(AttachRequest { stdin, stdout, stderr, tty, .. }) => {
                Wanted { stdin: *stdin, stdout: *stdout, stderr: *stderr, terminal: *tty }
            }
            Self::PortForward(_) => Wanted { stdin: false, stdout: false, stderr: false, terminal: false },
        }
    }
}

impl Streaming {
    /// URLs below `base`, such as `http://127.0.0.1:4000`.
    fn new(base: String, times: Times, stopping: CancellationToken) -> Self {
        Self { shared: Arc::new(Shared { tokens: Tokens::default(), base, times, stopping }) }
    }

    /// Where the client is to run `request`.
    ///
    /// # Errors
    /// `InvalidArgument` for streams that do not go together, `ResourceExhausted` while too many wait to be opened.
    pub(in crate::cri) fn exec_url(&self, request: ExecRequest) -> Result<String> {
        check_command(&request.cmd)?;
        self.process_url(Request::Exec(request))
    }

    /// As [`Streaming::exec_url`], of a container's own streams.
    pub(in crate::cri) fn attach_url(&self, request: AttachRequest) -> Result<String> {
        self.process_url(Request::Attach(request))
    }

    fn process_url(&self, request: Request) -> Result<String> {
        let wanted = request.wanted();
        if wanted.terminal && wanted.stderr {
            return Err(Error::invalid("tty and stderr: a terminal has no standard error of its own"));
        }
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Error::invalid("stdin, stdout, stderr: at least one of them is required"));
        }
        self.url(request)
    }

    /// As [`Streaming::exec_url`], of a pod's ports.
    pub(in crate::cri) fn port_forward_url(&self, request: PortForwardRequest) -> Result<String> {
        if let Some(wrong) = request.port.iter().find(|port| !(1..=65535).contains(*port)) {
            return Err(Error::invalid(format!("port: {wrong} is not a port")));
        }
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String> {
        let verb = request.verb();
        Ok(format!("{}/{verb}/{}", self.shared.base, self.shared.tokens.give(request)?))
    }
}

#[cfg(test)]
mod tests;
