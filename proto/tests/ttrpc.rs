//! Calls and faults over a real socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_proto::namespace::Namespace;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::frame::{self, Header, Incoming};
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Client, Context, KeyValue, Request, Response, Service, Stream, serve_connection};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

struct Echo;

impl Service for Echo {
    async fn call(&self, service: &str, method: &str, payload: &[u8], context: &Context) -> Result<Vec<u8>, Status> {
        let request: KeyValue = decode(payload)?;
        match method {
            "echo" => {
                let value = format!("{}@{}", request.value, context.namespace().unwrap_or("none"));
                Ok(KeyValue { key: request.key, value }.encode_to_vec())
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                Ok(Vec::new())
            }
            "large" => Ok(KeyValue { key: "x".repeat(5 << 20), value: String::new() }.encode_to_vec()),
            "fail" => Err(Status::not_found("no such thing")),
            _ => Err(unknown(service, method)),
        }
    }

    async fn stream(&self, service: &str, method: &str, mut stream: Stream) -> Result<(), Status> {
        if method != "echoes" {
            return Err(unknown(service, method));
        }
        while let Some(message) = stream.receive::<KeyValue>().await? {
            match message.key.as_str() {
                "fail" => return Err(Status::not_found("no such thing")),
                "sleep" => tokio::time::sleep(Duration::from_secs(30)).await,
                _ => stream.outlet().send(&message).await?,
            }
        }
        Ok(())
    }
}

fn connect() -> Client {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    tokio::spawn(serve_connection(theirs, Arc::new(Echo)));
    Client::new(ours)
}

fn pair(value: &str) -> KeyValue {
    KeyValue { key: "k".into(), value: value.into() }
}

async fn call(client: &Client, method: &str, value: &str, context: &Context) -> Result<KeyValue, Status> {
    client.call("test", method, &pair(value), context).await
}

#[tokio::test]
async fn calls_run_at_the_same_time() {
    let client = connect();
    let context = Context::in_namespace(&Namespace::parse("ns").expect("valid"));
    let sleeping = tokio::spawn({
        let (client, context) = (client.clone(), context.clone());
        async move { call(&client, "sleep", "", &context).await }
    });
    let mut running = tokio::task::JoinSet::new();
    for number in 0..500 {
        let (client, context) = (client.clone(), context.clone());
        running.spawn(async move {
            let answer = call(&client, "echo", &number.to_string(), &context).await.expect("echo");
            assert_eq!(answer.value, format!("{number}@ns"));
        });
    }
    while let Some(done) = running.join_next().await {
        done.expect("call");
    }
    assert!(!sleeping.is_finished());
    sleeping.abort();
}

#[tokio::test]
async fn statuses_come_back() {
    let client = connect();
    let context = Context::new();
    assert_eq!(call(&client, "fail", "", &context).await, Err(Status::not_found("no such thing")));
    assert_eq!(call(&client, "nothing", "", &context).await.expect_err("unknown").code, Code::Unimplemented);
    assert_eq!(call(&client, "large", "", &context).await.expect_err("large answer").code, Code::ResourceExhausted);
    let large = "x".repeat(5 << 20);
    assert_eq!(call(&client, "echo", &large, &context).await.expect_err("large request").code, Code::ResourceExhausted);
    assert_eq!(call(&client, "echo", "still here", &context).await.expect("echo").value, "still here@none");
}

#[tokio::test]
async fn a_call_ends_at_its_timeout() {
    let client = connect();
    let started = Instant::now();
    let context = Context::new().with_timeout(Duration::from_millis(50));
    assert_eq!(call(&client, "sleep", "", &context).await.expect_err("timeout").code, Code::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(20));
    call(&client, "echo", "", &Context::new()).await.expect("the connection lives on");
}

#[tokio::test]
async fn callers_learn_that_the_connection_closed() {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let server = tokio::spawn(serve_connection(theirs, Arc::new(Echo)));
    let client = Client::new(ours);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "sleep", "", &Context::new()).await }
    });
    call(&client, "echo", "", &Context::new()).await.expect("echo");
    server.abort();
    assert_eq!(waiting.await.expect("task").expect_err("closed").code, Code::Unavailable);
    client.closed().await;
    assert!(client.is_closed());
    assert_eq!(call(&client, "echo", "", &Context::new()).await.expect_err("closed").code, Code::Unavailable);
}

#[tokio::test]
async fn the_server_insists_on_the_protocol() {
    let (mut raw, theirs) = UnixStream::pair().expect("socket pair");
    tokio::spawn(serve_connection(theirs, Arc::new(Echo)));
    // An even stream, then data for a stream nobody opened, then a type nobody knows, then a good call.
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 2, 1, 0]).await.expect("write");
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 7, 3, 0]).await.expect("write");
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 9, 77, 0]).await.expect("write");
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut header = [0; 10];
        raw.read_exact(&mut header).await.expect("header");
        assert_eq!(header[8], 2, "a response");
        streams.push(header[7]);
        let mut body = vec![0; usize::from(header[3]) + (usize::from(header[2]) << 8)];
        raw.read_exact(&mut body).await.expect("body");
    }
    assert_eq!(streams, [2, 7]);
    let client = Client::new(raw);
    call(&client, "echo", "", &Context::new()).await.expect("the connection lives on");
}

#[tokio::test]
async fn streaming_calls_are_refused() {
    let (mut raw, theirs) = UnixStream::pair().expect("socket pair");
    tokio::spawn(serve_connection(theirs, Arc::new(Echo)));
    // A request that opens a stream, its last word, and a call of one answer.
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 2]).await.expect("write");
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, 3, 5]).await.expect("write");
    raw.write_all(&[0, 0, 0, 0, 0, 0, 0, 3, 1, 0]).await.expect("write");
    for stream in [1, 3] {
        let mut header = [0; 10];
        raw.read_exact(&mut header).await.expect("header");
        assert_eq!(header[7..9], [stream, 2], "a response to each");
        let mut body = vec![0; usize::from(header[3])];
        raw.read_exact(&mut body).await.expect("body");
        assert!(String::from_utf8_lossy(&body).contains("no method"), "{body:?}");
    }
}

/// A connection on which streams are opened frame by frame.
struct Raw(UnixStream);

impl Raw {
    fn connect() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        tokio::spawn(serve_connection(theirs, Arc::new(Echo)));
        Self(ours)
    }

    async fn write(&mut self, stream: u32, kind: u8, flags: u8, message: &impl Message) {
        let frame = frame::encode(stream, kind, flags, message).expect("small");
        self.0.write_all(&frame).await.expect("write");
    }

    async fn open(&mut self, stream: u32, payload: Vec<u8>) {
        let request = Request { service: "test".into(), method: "echoes".into(), payload, ..Request::default() };
        self.write(stream, frame::REQUEST, frame::REMOTE_OPEN, &request).await;
    }

    async fn end(&mut self, stream: u32) {
        self.write(stream, frame::DATA, frame::REMOTE_CLOSED | frame::NO_DATA, &()).await;
    }

    async fn read(&mut self) -> (Header, Vec<u8>) {
        match frame::read(&mut self.0).await.expect("read").expect("a frame") {
            Incoming::Frame(header, message) => (header, message),
            Incoming::Oversize(header) => panic!("{header:?}"),
        }
    }

    async fn refused(&mut self, stream: u32) -> Code {
        let (header, message) = self.read().await;
        assert_eq!((header.stream, header.kind), (stream, frame::RESPONSE));
        Status::from(Response::decode(message.as_slice()).expect("response").status.expect("status")).code
    }
}

#[tokio::test]
async fn streams_carry_messages_both_ways_until_both_ends_have_said_their_last_word() {
    let mut raw = Raw::connect();
    // The first message may come with the request, and an empty one is a message too.
    raw.open(1, pair("first").encode_to_vec()).await;
    raw.open(3, Vec::new()).await;
    for (stream, message) in [(3, pair("other")), (1, KeyValue::default()), (1, pair("last"))] {
        raw.write(stream, frame::DATA, 0, &message).await;
    }
    raw.end(1).await;
    let (mut heard, mut has_ended) = (Vec::new(), false);
    while !has_ended || heard.len() < 4 {
        let (header, message) = raw.read().await;
        if header.flags & frame::REMOTE_CLOSED != 0 {
            assert_eq!(header, Header { length: 0, stream: 1, kind: frame::DATA, flags: 5 });
            has_ended = true;
            continue;
        }
        assert_eq!((header.kind, header.flags), (frame::DATA, 0));
        heard.push((header.stream, KeyValue::decode(message.as_slice()).expect("message").value));
    }
    let of = |stream: u32| heard.iter().filter(|it| it.0 == stream).map(|it| it.1.as_str()).collect::<Vec<_>>();
    assert_eq!((of(1), of(3)), (vec!["first", "", "last"], vec!["other"]));
    // What comes for a stream that has ended is not answered; the other goes on, and fails.
    raw.write(1, frame::DATA, 0, &pair("late")).await;
    raw.write(3, frame::DATA, 0, &KeyValue { key: "fail".into(), value: String::new() }).await;
    assert_eq!(raw.refused(3).await, Code::NotFound);
    raw.open(5, vec![0xff]).await;
    assert_eq!(raw.refused(5).await, Code::InvalidArgument);
    raw.open(7, Vec::new()).await;
    raw.end(7).await;
    assert_eq!(raw.read().await.0.flags, 5);
}

#[tokio::test]
async fn what_a_service_does_not_take_is_bounded_and_holds_up_nobody() {
    let mut raw = Raw::connect();
    raw.open(1, KeyValue { key: "sleep".into(), value: String::new() }.encode_to_vec()).await;
    let large = pair(&"x".repeat(100_000));
    for _ in 0..20 {
        raw.write(1, frame::DATA, 0, &large).await;
    }
    assert_eq!(raw.refused(1).await, Code::ResourceExhausted);
    raw.open(3, Vec::new()).await;
    raw.end(3).await;
    raw.write(3, frame::DATA, 0, &pair("after the last word")).await;
    let request = Request { method: "echo".into(), payload: pair("here").encode_to_vec(), ..Request::default() };
    raw.write(5, frame::REQUEST, 0, &request).await;
    let answer = loop {
        let (header, message) = raw.read().await;
        if header.stream == 5 {
            break Response::decode(message.as_slice()).expect("response");
        }
    };
    assert!(answer.status.is_none_or(|status| status.code == 0), "the connection lives on");
}
