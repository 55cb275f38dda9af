//! The connection to gantryd and the calls on it.

mod containerd;
mod engine;
mod images;
mod stream;
mod system;

pub use stream::{Duplex, Input};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_proto::gantry::engine::v1::engine_client::EngineClient;
use gantry_proto::namespace::{NAMESPACE_HEADER, Namespace};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Failure, Result};

/// Where gantryd listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/gantry/gantryd.sock";

/// How long to wait for a connection. A local socket that accepts does so at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for answers that the daemon gives without asking anybody else.
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of an answer at most, so that a faulty daemon cannot exhaust our memory.
const MAX_MESSAGE: usize = 64 << 20;

/// gantryd, as one namespace sees it.
#[derive(Debug, Clone)]
pub struct Client {
    engine: EngineClient<Channel>,
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Says why nobody answers and what to do about it.
    pub async fn connect(path: &Path, namespace: &Namespace) -> Result<Self> {
        let connecting = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(path));
        let socket = connecting
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(|error| unreachable_daemon(path, &error))?;
        let mut socket = Some(TokioIo::new(socket));
        let connector = tower::service_fn(move |_| {
            // The channel connects a second time only after the connection broke. Then the call fails with this error.
            let socket = socket.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { socket }
        });
        // The name only fills the request's authority.
        let channel = Endpoint::from_static("http://gantryd")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::new(format!("connect to gantryd at {}: {error}", path.display())))?;
        let namespace = MetadataValue::try_from(namespace.as_str())
            .map_err(|_| Failure::new(format!("namespace {:?} cannot be sent", namespace.as_str())))?;
        let engine = EngineClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { engine, channel, namespace })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(NAMESPACE_HEADER, self.namespace.clone());
        request
    }
}

fn unreachable_daemon(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    let failure = Failure::new(format!("connect to gantryd at {shown}: {}", reason(error)));
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint(
            "gantryd is not running here: start it as root with `gantryd`, or name another socket with --address or \
             GANTRY_ADDRESS",
        ),
        io::ErrorKind::ConnectionRefused => {
            failure.hint("the socket is left over from a gantryd that has gone: start it as root with `gantryd`")
        }
        io::ErrorKind::PermissionDenied => failure.hint(
            "run this as root, or as a member of the group that owns the socket (`ls -l` shows it; `usermod -aG GROUP \
             USER` adds one, at the next login)",
        ),
        io::ErrorKind::TimedOut => failure.hint("gantryd holds the socket but does not accept: see its log"),
        _ => failure,
    }
}

/// The cause without Rust's "(os error 2)".
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The socket that `--address`, the environment or the default names.
///
/// # Errors
/// Where it is not a unix socket.
pub fn socket_path(address: Option<&str>) -> Result<PathBuf> {
    let environment = std::env::var("GANTRY_ADDRESS").ok().filter(|text| !text.is_empty());
    let address = address.or(environment.as_deref()).unwrap_or(DEFAULT_ADDRESS);
    match address.split_once("://") {
        Some(("unix", path)) => Ok(PathBuf::from(path)),
        None => Ok(PathBuf::from(address)),
        Some((scheme, _)) => Err(Failure::new(format!("address {address:?}: {scheme}:// is not supported"))
            .hint("gantryd listens on a unix socket: write its path, or unix:// and its path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(socket_path(Some("unix:///x/y")).unwrap(), Path::new("/x/y"));
        assert_eq!(socket_path(Some("x.sock")).unwrap(), Path::new("x.sock"));
        assert!(socket_path(Some("tcp://1.2.3.4:5")).is_err());
    }

    #[tokio::test]
    async fn a_missing_socket_is_explained() {
        let namespace = Namespace::parse("default").unwrap();
        let error = Client::connect(Path::new("/nonexistent/gantryd.sock"), &namespace).await.unwrap_err();
        assert_eq!(error.to_string(), "connect to gantryd at /nonexistent/gantryd.sock: no such file or directory");
        assert!(format!("{error:?}").contains("start it as root"));
    }
}
