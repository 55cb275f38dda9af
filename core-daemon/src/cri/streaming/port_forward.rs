//! Port forwarding: pairs of streams, one for the bytes of a connection into the pod and one for what goes wrong.

use std::collections::HashMap;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::spdy::{Connection, Stream};
use super::websocket::{Channels, Encoding, Way};
use crate::error::{Doing, Error, Result};

/// The protocol over SPDY.
pub(super) const SPDY: &str = "portforward.k8s.io";
/// The same, whose SPDY goes through a WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The protocols with a WebSocket's channels; a client that names none means the last.
pub(super) const WEBSOCKET: &[(&str, Encoding)] =
    &[("v4.base64.channel.k8s.io", Encoding::Base64), ("v4.channel.k8s.io", Encoding::Binary)];
/// Ports that a WebSocket may forward at once: each has two channels.
pub(super) const MAX_PORTS: usize = 64;

/// Connects to a port inside a pod.
pub(super) trait Dial: Clone + Send + Sync + 'static {
    fn dial(&self, port: u16) -> impl Future<Output = Result<TcpStream>> + Send;
}

/// Half a pair that waits for the other.
struct Half {
    stream: Stream,
    port: u16,
    since: Instant,
}

/// Forwards what the client opens streams for, until it goes. Halves of pairs wait at most `patience`.
pub(super) async fn over_spdy(mut connection: Connection, dial: impl Dial, patience: Duration) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut pairs = JoinSet::new();
    let mut round = tokio::time::interval(patience / 2);
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            _ = round.tick() => {
                halves.retain(|_, half| {
                    let waits = half.since.elapsed() < patience;
                    if !waits {
                        half.stream.reset.cancel();
                    }
                    waits
                });
                while pairs.try_join_next().is_some() {}
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let Some((key, is_error, port)) = describe(&stream) else {
            stream.reset.cancel();
            continue;
        };
        let key_of = |is_error: bool| format!("{} {key}", if is_error { "error" } else { "data" });
        let Some(other) = halves.remove(&key_of(!is_error)) else {
            let half = Half { stream, port, since: Instant::now() };
            if let Some(before) = halves.insert(key_of(is_error), half) {
                before.stream.reset.cancel();
            }
            continue;
        };
        let (data, error, port) =
            if is_error { (other.stream, stream, other.port) } else { (stream, other.stream, port) };
        let (dial, gone) = (dial.clone(), data.reset.clone());
        pairs.spawn(async move {
            if forward(dial, port, data.pipe, error.pipe, &gone).await.is_err() {
                gone.cancel();
            }
        });
    }
    connection.close().await;
}

/// Which pair a stream belongs to, whether it is the one for errors, and to which port.
fn describe(stream: &Stream) -> Option<(String, bool, u16)> {
    let port: u16 = stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let is_error = match stream.headers.get("streamtype")? {
        "error" => true,
        "data" => false,
        _ => return None,
    };
    // Old clients do not number their pairs; they open the data stream right behind the other.
    let first = || if is_error { stream.id } else { stream.id.saturating_sub(2) };
    let key = stream.headers.get("requestid").filter(|id| !id.is_empty());
    Some((key.map_or_else(|| first().to_string(), ToOwned::to_owned), is_error, port))
}

/// The channels of a WebSocket that forwards `ports`.
pub(super) fn ways(ports: &[u16]) -> Vec<Way> {
    ports.iter().flat_map(|_| [Way::Both, Way::Out]).collect()
}

/// Forwards each port through its two channels.
pub(super) async fn over_websocket(mut channels: Channels, encoding: Encoding, ports: &[u16], dial: impl Dial) {
    let mut pairs = JoinSet::new();
    for (number, port) in ports.iter().enumerate() {
        let (data, error) = (channels.take(2 * number), channels.take(2 * number + 1));
        let (Some(data), Some(error)) = (data, error) else { continue };
        for channel in [2 * number, 2 * number + 1] {
            channels.say(u8::try_from(channel).unwrap_or(u8::MAX), encoding, &port.to_le_bytes()).await;
        }
        let (dial, port, gone) = (dial.clone(), *port, channels.ended().clone());
        pairs.spawn(async move { forward(dial, port, data, error, &gone).await });
    }
    while pairs.join_next().await.is_some() {}
    channels.close().await;
}

/// Connects and passes bytes on both ways, each until its own end; says on `error` what goes wrong.
async fn forward(
    dial: impl Dial,
    port: u16,
    mut data: DuplexStream,
    mut error: DuplexStream,
    gone: &CancellationToken,
) -> Result<()> {
    let passing = async {
        let mut connection = dial.dial(port).await?;
        let passed = tokio::io::copy_bidirectional(&mut data, &mut connection).await;
        passed.map(drop).map_err(Error::from).doing(|| "connection")
    };
    let outcome = tokio::select! {
        outcome = passing => outcome.doing(|| format!("forward port {port}")),
        () = gone.cancelled() => return Ok(()),
    };
    if let Err(problem) = &outcome {
        tracing::debug!(%problem, "port forwarding");
        let _ = error.write_all(problem.to_string().as_bytes()).await;
    }
    outcome
}
