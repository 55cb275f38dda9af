//! Calls and faults over a real socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_proto::namespace::Namespace;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Client, Context, KeyValue, Service, serve_connection};
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
