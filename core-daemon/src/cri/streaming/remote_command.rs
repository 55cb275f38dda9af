//! Exec and attach: the streams of a process with a client, however the client carries them.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::spdy::{self, Connection};
use super::status;
use super::websocket::{Channels, Encoding, Way};
use crate::error::Result;

/// Versions of the protocol that are spoken over SPDY, newest first.
pub(super) const SPDY: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version { resizes: true, json: true }),
    ("v3.channel.k8s.io", Version { resizes: true, json: false }),
    ("v2.channel.k8s.io", Version { resizes: false, json: false }),
    ("channel.k8s.io", Version { resizes: false, json: false }),
];
/// Those of WebSockets; a client that names none means the last.
pub(super) const WEBSOCKET: &[(&str, Encoding, Version)] = &[
    ("v5.channel.k8s.io", Encoding::Closing, Version { resizes: true, json: true }),
    ("v4.channel.k8s.io", Encoding::Binary, Version { resizes: true, json: true }),
    ("v4.base64.channel.k8s.io", Encoding::Base64, Version { resizes: true, json: true }),
    ("base64.channel.k8s.io", Encoding::Base64, Version { resizes: true, json: false }),
    ("channel.k8s.io", Encoding::Binary, Version { resizes: true, json: false }),
];
/// Sizes of the terminal that wait to be set.
const SIZES: usize = 8;
/// Longest text of one size.
const MAX_SIZE: usize = 1 << 10;

/// What a version of the protocol can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    resizes: bool,
    /// The outcome is an object.
    json: bool,
}

/// The streams that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) terminal: bool,
}

/// The client's ends of a process's streams.
pub(in crate::cri) struct Streams {
    /// To be read.
    pub(in crate::cri) stdin: Option<DuplexStream>,
    /// To be written, and closed at the end.
    pub(in crate::cri) stdout: Option<DuplexStream>,
    /// As [`Self::stdout`].
    pub(in crate::cri) stderr: Option<DuplexStream>,
    /// How large the client's terminal becomes.
    pub(in crate::cri) sizes: mpsc::Receiver<Size>,
    /// Cancelled when the client has gone.
    pub(in crate::cri) gone: CancellationToken,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::cri) struct Size {
    /// Columns.
    pub(in crate::cri) width: u16,
    /// Rows.
    pub(in crate::cri) height: u16,
}

/// A client with all its streams.
pub(super) struct Session {
    pub(super) streams: Streams,
    error: Option<DuplexStream>,
    version: Version,
    carrier: Carrier,
}

enum Carrier {
    Spdy(Connection),
    WebSocket(Channels),
}

impl Session {
    /// Waits until the client has opened the streams it asked for; `None` where it does not within `patience`.
    pub(super) async fn over_spdy(
        mut connection: Connection,
        version: Version,
        wanted: Wanted,
        patience: Duration,
    ) -> Option<Self> {
        let kinds = [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            ("resize", wanted.terminal && version.resizes),
        ];
        let mut found: [Option<DuplexStream>; 5] = Default::default();
        let all = async {
            while kinds.iter().zip(&found).any(|((_, wanted), stream)| *wanted && stream.is_none()) {
                let spdy::Stream { headers, pipe, reset, .. } = connection.accept().await?;
                let kind = headers.get("streamtype").unwrap_or_default();
                let place = kinds.iter().zip(&mut found).find(|((name, wanted), _)| *wanted && *name == kind);
                match place {
                    Some((_, place @ None)) => *place = Some(pipe),
                    _ => reset.cancel(),
                }
            }
            Some(())
        };
        match tokio::time::timeout(patience, all).await {
            Ok(Some(())) => {}
            Ok(None) => return None,
            Err(_) => {
                tracing::debug!("a client did not open its streams in time");
                connection.close().await;
                return None;
            }
        }
        let [error, stdin, stdout, stderr, resize] = found;
        let streams = Streams { stdin, stdout, stderr, sizes: sizes(resize), gone: connection.ended().clone() };
        Some(Self { streams, error, version, carrier: Carrier::Spdy(connection) })
    }

    /// The channels of a WebSocket that were asked for.
    pub(super) fn ways(wanted: Wanted) -> [Way; 5] {
        let way = |wanted: bool, way: Way| if wanted { way } else { Way::Ignored };
        [
            way(wanted.stdin, Way::In),
            way(wanted.stdout, Way::Out),
            way(wanted.stderr, Way::Out),
            Way::Out,
            way(wanted.terminal, Way::In),
        ]
    }

    /// The streams of a WebSocket with the channels of [`Session::ways`].
    pub(super) async fn over_websocket(mut channels: Channels, encoding: Encoding, version: Version) -> Self {
        // Clients wait for a first word on the first channel that they read.
        let first = (1..3).find(|channel| channels.pipes.get(*channel).is_some_and(Option::is_some)).unwrap_or(3);
        channels.say(u8::try_from(first).unwrap_or(3), encoding, &[]).await;
        let streams = Streams {
            stdin: channels.take(0),
            stdout: channels.take(1),
            stderr: channels.take(2),
            sizes: sizes(channels.take(4)),
            gone: channels.ended().clone(),
        };
        Self { streams, error: channels.take(3), version, carrier: Carrier::WebSocket(channels) }
    }

    /// Gives the streams to `work`, then tells the client how it ended.
    pub(super) async fn run<F: Future<Output = Result<u32>>>(self, work: impl FnOnce(Streams) -> F) {
        let Self { streams, error, version, carrier } = self;
        let outcome = work(streams).await;
        let word =
            if version.json { status::json(&outcome) } else { status::text(&outcome).unwrap_or_default().into() };
        if let Some(mut error) = error {
            let _ = error.write_all(&word).await;
        }
        match carrier {
            Carrier::Spdy(connection) => connection.close().await,
            Carrier::WebSocket(channels) => channels.close().await,
        }
    }
}

/// Reads sizes for as long as they are sizes.
fn sizes(stream: Option<DuplexStream>) -> mpsc::Receiver<Size> {
    let (sender, receiver) = mpsc::channel(SIZES);
    let Some(mut stream) = stream else { return receiver };
    tokio::spawn(async move {
        let mut text = Vec::new();
        while let Ok(got) = stream.read_buf(&mut text).await
            && got > 0
            && text.len() <= MAX_SIZE
        {
            let Some(read) = parse_sizes(&mut text) else { return };
            for size in read {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

/// Takes whole sizes from the front; `None` where there is something else.
fn parse_sizes(text: &mut Vec<u8>) -> Option<Vec<Size>> {
    let mut read = Vec::new();
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut taken = 0;
    loop {
        match objects.next() {
            Some(Ok(size)) => read.push(size),
            Some(Err(error)) if !error.is_eof() => return None,
            _ => break,
        }
        taken = objects.byte_offset();
    }
    text.drain(..taken);
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces() {
        let mut text = b"{\"Width\":80,\"Height\":24}\n{\"Wid".to_vec();
        assert_eq!(parse_sizes(&mut text), Some(vec![Size { width: 80, height: 24 }]));
        assert!(parse_sizes(&mut text).expect("not yet").is_empty());
        text.extend_from_slice(b"th\":1,\"Height\":2}");
        assert_eq!(parse_sizes(&mut text), Some(vec![Size { width: 1, height: 2 }]));
        assert_eq!(parse_sizes(&mut b"{\"Width\":-1}".to_vec()), None);
        assert_eq!(parse_sizes(&mut b"hello".to_vec()), None);
    }
}
