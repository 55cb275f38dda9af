//! A client of our own on the other end of a pipe.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::frame::{Control, HEADER, Head, Send};
use super::headers::{Deflater, Headers, Inflater};

struct Client {
    wire: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Control(Control),
    Data { stream: u32, is_last: bool, bytes: Vec<u8> },
}

impl Client {
    fn start(idle: Duration) -> (Self, Connection) {
        let (wire, theirs) = tokio::io::duplex(1 << 20);
        let connection = Connection::serve(theirs, idle, &CancellationToken::new());
        (Self { wire, deflater: Deflater::new(), inflater: Inflater::new() }, connection)
    }

    async fn send(&mut self, frame: Send) {
        let mut out = BytesMut::new();
        frame.encode(&mut self.deflater, &mut out);
        self.wire.write_all(&out).await.expect("write");
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let headers = Headers(vec![("streamtype".to_owned(), kind.to_owned())]);
        self.send(Send::SynStream { stream, headers }).await;
    }

    async fn data(&mut self, stream: u32, text: &'static str, is_last: bool) {
        self.send(Send::Data { stream, is_last, bytes: Bytes::from_static(text.as_bytes()) }).await;
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Got> {
        let mut header = [0; HEADER];
        self.wire.read_exact(&mut header).await.ok()?;
        let head = Head::parse(header).expect("a frame");
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let mut content = vec![0; usize::try_from(length).expect("length")];
        self.wire.read_exact(&mut content).await.expect("content");
        Some(match head {
            Head::Data { stream, is_last, .. } => Got::Data { stream, is_last, bytes: content },
            Head::Control { kind, flags, .. } => {
                Got::Control(Control::parse(kind, flags, &content, &mut self.inflater).expect("control frame"))
            }
        })
    }
}

/// What a client sends that forwards a port, says hello to it, and has no more to say; clients of old do not number their
/// requests.
pub(in crate::cri::streaming) fn forwarding(port: u16, request: Option<&str>) -> Vec<u8> {
    let (mut deflater, mut out, port) = (Deflater::new(), BytesMut::new(), port.to_string());
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let headers = [("streamtype", kind), ("port", port.as_str())].into_iter();
        let headers = headers.chain(request.map(|id| ("requestid", id)));
        let headers = Headers(headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        Send::SynStream { stream, headers }.encode(&mut deflater, &mut out);
    }
    Send::Data { stream: 3, is_last: true, bytes: Bytes::from_static(b"hello") }.encode(&mut deflater, &mut out);
    out.to_vec()
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_close_each_way() {
    let (mut client, mut connection) = Client::start(LONG);
    client.open(1, "stdin").await;
    let mut stream = connection.accept().await.expect("stream");
    assert_eq!((stream.id, stream.headers.get("streamType")), (1, Some("stdin")));
    assert_eq!(client.next().await, Some(Got::Control(Control::SynReply { stream: 1, is_last: false })));
    client.data(1, "hello", true).await;
    let mut text = String::new();
    stream.pipe.read_to_string(&mut text).await.expect("to the end");
    assert_eq!(text, "hello");
    stream.pipe.write_all(b"answer").await.expect("write");
    let answer = Got::Data { stream: 1, is_last: false, bytes: b"answer".to_vec() };
    assert_eq!(client.next().await, Some(answer));
    drop(stream);
    assert_eq!(client.next().await, Some(Got::Data { stream: 1, is_last: true, bytes: Vec::new() }));
    let closing = tokio::spawn(connection.close());
    assert_eq!(client.next().await, Some(Got::Control(Control::GoAway)));
    assert_eq!(client.next().await, None);
    drop(client);
    closing.await.expect("closed");
}

#[tokio::test]
async fn the_end_does_not_wait_for_input_that_the_client_keeps_open() {
    let (mut client, mut connection) = Client::start(LONG);
    client.open(1, "stdin").await;
    let stream = connection.accept().await.expect("stream");
    client.next().await;
    drop(stream);
    let closing = tokio::spawn(connection.close());
    assert_eq!(client.next().await, Some(Got::Data { stream: 1, is_last: true, bytes: Vec::new() }));
    assert_eq!(client.next().await, Some(Got::Control(Control::GoAway)));
    drop(client);
    closing.await.expect("closed");
}

#[tokio::test]
async fn a_peer_that_speaks_of_windows_is_sent_no_more() {
    let (mut client, mut connection) = Client::start(LONG);
    // SETTINGS: windows of 10 bytes.
    client.wire.write_all(&[0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 10]).await.expect("settings");
    client.open(1, "stdout").await;
    let mut stream = connection.accept().await.expect("stream");
    client.next().await;
    stream.pipe.write_all(b"0123456789abcdef").await.expect("write");
    let first = Got::Data { stream: 1, is_last: false, bytes: b"0123456789".to_vec() };
    assert_eq!(client.next().await, Some(first));
    client.send(Send::Ping { id: 1 }).await;
    assert_eq!(client.next().await, Some(Got::Control(Control::Ping { id: 1 })), "and nothing before");
    client.send(Send::WindowUpdate { stream: 1, delta: 100 }).await;
    let second = Got::Data { stream: 1, is_last: false, bytes: b"abcdef".to_vec() };
    assert_eq!(client.next().await, Some(second));
}

#[tokio::test]
async fn what_is_read_is_granted_again() {
    let (mut client, mut connection) = Client::start(LONG);
    client.open(1, "stdin").await;
    let mut stream = connection.accept().await.expect("stream");
    client.next().await;
    client.send(Send::Data { stream: 1, is_last: false, bytes: vec![7; 32 << 10].into() }).await;
    let mut all = vec![0; 32 << 10];
    stream.pipe.read_exact(&mut all).await.expect("read");
    let granted = |stream| Got::Control(Control::WindowUpdate { stream, delta: 32 << 10 });
    assert_eq!(client.next().await, Some(granted(1)));
    assert_eq!(client.next().await, Some(granted(0)));
}

#[tokio::test]
async fn a_reset_ends_one_stream_and_wrong_ids_are_reset() {
    let (mut client, mut connection) = Client::start(LONG);
    client.open(3, "data").await;
    let mut stream = connection.accept().await.expect("stream");
    client.next().await;
    for wrong in [2, 1, 3] {
        client.open(wrong, "data").await;
        assert_eq!(client.next().await, Some(Got::Control(Control::Rst { stream: wrong })));
    }
    client.data(9, "to nobody", false).await;
    assert_eq!(client.next().await, Some(Got::Control(Control::WindowUpdate { stream: 0, delta: 9 })));
    assert_eq!(client.next().await, Some(Got::Control(Control::Rst { stream: 9 })));
    client.send(Send::Rst { stream: 3, why: super::frame::Reset::Cancelled }).await;
    stream.reset.cancelled().await;
    let mut rest = Vec::new();
    assert_eq!(stream.pipe.read_to_end(&mut rest).await.expect("end"), 0);
    assert!(!connection.ended().is_cancelled());
}

#[tokio::test]
async fn garbage_and_silence_end_the_connection() {
    let (mut client, mut connection) = Client::start(LONG);
    client.wire.write_all(&[0x80, 3, 0, 1, 0, 0, 0, 12]).await.expect("write");
    client.wire.write_all(&[0xff; 12]).await.expect("write");
    assert!(connection.accept().await.is_none());
    let (client, mut connection) = Client::start(Duration::from_millis(50));
    assert!(connection.accept().await.is_none());
    drop(client);
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }
}

#[tokio::test]
async fn whatever_comes_is_survived_and_ends() {
    let mut numbers = Numbers(7);
    for round in 0..2000 {
        let mut bytes = forwarding(80, Some("7"));
        for _ in 0..=numbers.below(4) {
            let (at, end) = (numbers.below(bytes.len()), numbers.below(bytes.len()));
            match numbers.below(4) {
                0 => bytes[at] ^= 1 << numbers.below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
                2 => bytes.splice(at.., []).for_each(drop),
                _ => bytes.splice(at..at, bytes[at.min(end)..at.max(end)].to_vec()).for_each(drop),
            }
            bytes.resize(bytes.len().max(1), 0);
        }
        let (mut wire, theirs) = tokio::io::duplex(1 << 20);
        let mut connection = Connection::serve(theirs, LONG, &CancellationToken::new());
        let client = async {
            wire.write_all(&bytes).await.expect("write");
            drop(wire);
        };
        let server = async { while connection.accept().await.is_some() {} };
        let both = tokio::time::timeout(Duration::from_secs(30), futures_util::future::join(client, server));
        both.await.unwrap_or_else(|_| panic!("round {round} goes on for ever: {bytes:?}"));
    }
}
