//! `gantryd publish`: how a shim without a ttrpc client reports an event, by running this program.

use std::path::Path;
use std::time::Duration;

use gantry_proto::containerd::services::events::v1::PublishRequest;
use gantry_proto::containerd::services::events::v1::events_client::EventsClient;
use gantry_proto::namespace::NAMESPACE_HEADER;
use prost::Message as _;
use prost_types::Any;
use tokio::io::AsyncReadExt as _;
use tonic::transport::Endpoint;

use crate::error::{Doing, Error, Kind, Result};

/// Largest event that is read from standard input.
const MAX_EVENT: u64 = 4 << 20;
/// How long the daemon may take to accept it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Publishes the event on standard input through the daemon at `socket`.
///
/// # Errors
/// When the input is not an event, the daemon cannot be reached, or it refuses the event.
pub async fn publish(socket: &Path, namespace: &str, topic: String) -> Result<()> {
    let mut input = Vec::new();
    tokio::io::stdin().take(MAX_EVENT).read_to_end(&mut input).await.doing(|| "read the event")?;
    let event = Any::decode(input.as_slice()).map_err(|error| Error::invalid(format!("standard input: {error}")))?;
    let doing = || format!("publish {topic}");
    let address = format!("unix://{}", socket.display());
    let unreachable = |error| Error::unavailable(format!("reach {}: {error}", socket.display()));
    let channel = Endpoint::from_shared(address).map_err(unreachable).doing(doing)?.connect_timeout(TIMEOUT);
    let channel = channel.timeout(TIMEOUT).connect().await.map_err(unreachable).doing(doing)?;
    let mut request = tonic::Request::new(PublishRequest { topic: topic.clone(), event: Some(event) });
    let namespace = namespace.parse().map_err(|_| Error::invalid(format!("namespace {namespace:?}: malformed")))?;
    request.metadata_mut().insert(NAMESPACE_HEADER, namespace);
    let answer = EventsClient::new(channel).publish(request).await;
    answer.map(drop).map_err(|status| Error::new(Kind::Unknown, status.message())).doing(doing)
}
