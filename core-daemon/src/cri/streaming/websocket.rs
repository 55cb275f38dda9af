//! Channels of a WebSocket: the first byte of every message says which it belongs to.
//!
//! There is no flow control for a channel of its own: a process that does not read its input keeps the client's other
//! messages waiting too, as everywhere this protocol is spoken.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Activity;

/// Longest message that is taken.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of one piece of data, and of a channel's pipe.
const PIECE: usize = 32 << 10;
/// Messages that wait to be sent.
const QUEUE: usize = 16;
/// How long the client may take to read the last bytes and to close its end.
const LINGER: Duration = Duration::from_secs(10);
/// The channel on which a client of the fifth version says that another one ends.
const CLOSE: u8 = 255;

/// How the bytes of a channel are written into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As they are, behind the channel's number.
    Binary,
    /// As they are, and the client can close channels.
    Closing,
    /// In base64, behind the channel's number as a digit.
    Base64,
}

/// Which way a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the client.
    In,
    /// To the client.
    Out,
    /// Both.
    Both,
    /// Nowhere: what comes is dropped.
    Ignored,
}

/// The WebSocket over a connection that has been upgraded.
pub(super) async fn upgraded<T: AsyncRead + AsyncWrite + Unpin>(transport: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await
}

/// A WebSocket whose channels are pipes.
pub(super) struct Channels {
    /// The pipe of each channel that goes somewhere, until it is taken.
    pub(super) pipes: Vec<Option<DuplexStream>>,
    out: mpsc::Sender<Message>,
    outward: TaskTracker,
    ended: CancellationToken,
}

impl Channels {
    /// Channels of these ways on `socket`, until it ends, nothing happens for `idle`, or `stopping`.
    pub(super) fn open<T>(
        socket: WebSocketStream<T>,
        encoding: Encoding,
        ways: &[Way],
        idle: Duration,
        stopping: &CancellationToken,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sink, stream) = socket.split();
        let (out, queue) = mpsc::channel(QUEUE);
        let (outward, ended) = (TaskTracker::new(), stopping.child_token());
        let mut pipes = Vec::new();
        let mut inward = Vec::new();
        for (number, way) in (0..=u8::MAX).zip(ways) {
            let (ours, theirs) = tokio::io::duplex(PIECE);
            let (read, write) = tokio::io::split(ours);
            inward.push(matches!(way, Way::In | Way::Both).then_some(write));
            if matches!(way, Way::Out | Way::Both) {
                outward.spawn(send_pieces(read, number, encoding, out.clone()));
            }
            pipes.push((*way != Way::Ignored).then_some(theirs));
        }
        let activity = Activity::default();
        tokio::spawn(write_messages(sink, queue, activity.clone(), ended.clone()));
        let reading = read_messages(stream, encoding, inward, activity.clone());
        let end = ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = reading => {}
                () = activity.pause(idle) => {}
                () = end.cancelled() => {}
            }
            end.cancel();
        });
        Self { pipes, out, outward, ended }
    }

    /// Takes a channel's pipe.
    pub(super) fn take(&mut self, channel: usize) -> Option<DuplexStream> {
        self.pipes.get_mut(channel).and_then(Option::take)
    }

    /// Sends one message on a channel, be it empty.
    pub(super) async fn say(&self, channel: u8, encoding: Encoding, bytes: &[u8]) {
        let _ = self.out.send(message(channel, encoding, bytes)).await;
    }

    /// Cancelled when the WebSocket has ended.
    pub(super) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Ends the WebSocket once everything written to channels is with the client.
    pub(super) async fn close(self) {
        let Self { pipes, out, outward, ended } = self;
        drop(pipes);
        outward.close();
        let flushed = async {
            outward.wait().await;
            let _ = out.send(Message::Close(Some(normal()))).await;
            ended.cancelled().await;
        };
        let _ = timeout(LINGER, flushed).await;
        ended.cancel();
    }
}

fn normal() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "".into() }
}

fn message(channel: u8, encoding: Encoding, bytes: &[u8]) -> Message {
    match encoding {
        Encoding::Binary | Encoding::Closing => {
            let mut payload = Vec::with_capacity(1 + bytes.len());
            payload.push(channel);
            payload.extend_from_slice(bytes);
            Message::Binary(payload.into())
        }
        Encoding::Base64 => {
            let mut text = String::from(char::from(b'0'.saturating_add(channel)));
            STANDARD.encode_string(bytes, &mut text);
            Message::Text(text.into())
        }
    }
}

/// A message's channel and bytes; `None` for one that makes no sense.
fn parse(payload: Bytes, encoding: Encoding) -> Option<(u8, Bytes)> {
    let (first, rest) = (*payload.first()?, payload.slice(1..));
    match encoding {
        Encoding::Binary | Encoding::Closing => Some((first, rest)),
        Encoding::Base64 => Some((first.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into())),
    }
}

async fn send_pieces(mut read: ReadHalf<DuplexStream>, channel: u8, encoding: Encoding, out: mpsc::Sender<Message>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(got) = read.read(&mut buffer).await
        && got > 0
        && out.send(message(channel, encoding, &buffer[..got])).await.is_ok()
    {}
}

async fn write_messages<T: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut queue: mpsc::Receiver<Message>,
    activity: Activity,
    ended: CancellationToken,
) {
    let writing = async {
        while let Some(message) = queue.recv().await {
            let last = message.is_close();
            if sink.send(message).await.is_err() {
                ended.cancel();
                return;
            }
            if last {
                return;
            }
            activity.mark();
        }
    };
    tokio::select! {
        () = writing => {}
        () = ended.cancelled() => {}
    }
}

/// Passes messages on until the client ends.
async fn read_messages<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<T>>,
    encoding: Encoding,
    mut inward: Vec<Option<WriteHalf<DuplexStream>>>,
    activity: Activity,
) {
    while let Some(Ok(message)) = stream.next().await {
        activity.mark();
        if !matches!(message, Message::Binary(_) | Message::Text(_)) {
            // Pings are answered by the library, and the end follows a close.
            continue;
        }
        let Some((channel, bytes)) = parse(message.into_data(), encoding) else { continue };
        if encoding == Encoding::Closing && channel == CLOSE {
            let closed = bytes.first().and_then(|closed| inward.get_mut(usize::from(*closed)));
            if let Some(mut pipe) = closed.and_then(Option::take) {
                let _ = pipe.shutdown().await;
            }
            continue;
        }
        if let Some(Some(pipe)) = inward.get_mut(usize::from(channel)) {
            // A taker that is gone takes everything.
            let _ = pipe.write_all(&bytes).await;
        }
    }
    for mut pipe in inward.into_iter().flatten() {
        let _ = pipe.shutdown().await;
    }
}

/// The bytes of a WebSocket's binary messages, one behind the other, as one stream both ways. A client that takes nothing
/// for `idle` has gone; so has one that does not close its way soon after ours.
pub(super) fn tunnel<T>(socket: WebSocketStream<T>, idle: Duration) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(2 * PIECE);
    let (mut read, mut write) = tokio::io::split(ours);
    let (mut sink, mut stream) = socket.split();
    let sending = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(got) = read.read(&mut buffer).await
            && got > 0
        {
            let piece = Message::Binary(Bytes::copy_from_slice(&buffer[..got]));
            if !matches!(timeout(idle, sink.send(piece)).await, Ok(Ok(()))) {
                return false;
            }
        }
        matches!(timeout(LINGER, sink.send(Message::Close(Some(normal())))).await, Ok(Ok(())))
    };
    let receiving = async move {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_binary() && write.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::spawn(async move {
        tokio::pin!(sending, receiving);
        tokio::select! {
            is_closed = &mut sending => if is_closed {
                let _ = timeout(LINGER, receiving).await;
            },
            () = &mut receiving => drop(sending.await),
        }
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn pair(encoding: Encoding, ways: &[Way]) -> (WebSocketStream<DuplexStream>, Channels) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        (client, Channels::open(upgraded(far).await, encoding, ways, LONG, &CancellationToken::new()))
    }

    #[tokio::test]
    async fn channels_carry_bytes_and_the_fifth_version_closes_them() {
        let (mut client, mut channels) = pair(Encoding::Closing, &[Way::In, Way::Out]).await;
        let (mut stdin, mut stdout) = (channels.take(0).expect("in"), channels.take(1).expect("out"));
        for payload in [&b"\0hello"[..], b"\x07nobody", b"", b"\xff", b"\xff\x09", b"\xff\0"] {
            client.send(Message::Binary(payload.to_vec().into())).await.expect("send");
        }
        let mut text = String::new();
        stdin.read_to_string(&mut text).await.expect("to the end");
        assert_eq!(text, "hello");
        stdout.write_all(b"answer").await.expect("write");
        assert_eq!(client.next().await.expect("message").expect("right").into_data().as_ref(), b"\x01answer");
        drop(stdout);
        let closing = tokio::spawn(channels.close());
        let Message::Close(Some(frame)) = client.next().await.expect("message").expect("right") else { panic!() };
        assert_eq!(frame.code, CloseCode::Normal);
        while client.next().await.is_some() {}
        closing.await.expect("closed");
    }

    #[tokio::test]
    async fn base64_is_text_both_ways() {
        let (mut client, mut channels) = pair(Encoding::Base64, &[Way::Both]).await;
        let mut pipe = channels.take(0).expect("pipe");
        for text in ["0!!!", "/AAAA", "0Zm9v"] {
            client.send(Message::Text(text.into())).await.expect("send");
        }
        let mut three = [0; 3];
        pipe.read_exact(&mut three).await.expect("read");
        assert_eq!(&three, b"foo");
        pipe.write_all(b"bar").await.expect("write");
        assert_eq!(client.next().await.expect("message").expect("right"), Message::Text("0YmFy".into()));
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_it_and_a_ping_is_answered() {
        let (mut client, channels) = pair(Encoding::Binary, &[Way::In]).await;
        client.send(Message::Ping(Bytes::from_static(b"x"))).await.expect("send");
        assert_eq!(client.next().await.expect("message").expect("right"), Message::Pong(Bytes::from_static(b"x")));
        let _ = client.send(Message::Binary(vec![0; MAX_MESSAGE + 1].into())).await;
        channels.ended().cancelled().await;
    }

    #[tokio::test]
    async fn a_tunnel_ends_where_its_client_takes_nothing() {
        let (near, far) = tokio::io::duplex(1 << 10);
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let idle = Duration::from_millis(50);
        let mut end = tunnel(upgraded(far).await, idle);
        // As much as it holds, of which nothing gets through.
        let _ = timeout(idle, end.write_all(&vec![0; 8 * PIECE])).await;
        drop(end);
        let gone = async {
            while client.send(Message::Binary(Bytes::new())).await.is_ok() {
                tokio::time::sleep(idle).await;
            }
        };
        timeout(LINGER / 2, gone).await.expect("the connection ends");
    }
}
