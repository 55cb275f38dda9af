//! The server as its clients see it: over loopback, with a backend that echoes.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;
use crate::error::Kind;

/// Says what it hears, and ends with 3; dials what listens on loopback.
#[derive(Clone)]
struct Echo;

#[tonic::async_trait]
impl Backend for Echo {
    async fn exec(&self, _: ExecRequest, streams: Streams) -> Result<u32> {
        let mut text = Vec::new();
        if let Some(mut stdin) = streams.stdin {
            let _ = stdin.read_to_end(&mut text).await;
        }
        if let Some(mut stdout) = streams.stdout {
            let _ = stdout.write_all(&text).await;
        }
        Ok(3)
    }

    async fn attach(&self, _: AttachRequest, mut streams: Streams) -> Result<()> {
        let size = streams.sizes.recv().await.ok_or_else(|| Error::internal("no size"))?;
        if let Some(mut stdout) = streams.stdout {
            let _ = stdout.write_all(format!("{}x{}", size.width, size.height).as_bytes()).await;
        }
        Ok(())
    }

    async fn dial(&self, _: &str, port: u16) -> Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", port)).await.map_err(Error::from)
    }
}

async fn server() -> Streaming {
    let config = crate::config::Streaming { creation_timeout: 1, ..crate::config::Streaming::default() };
    let listener = Listener::bind(&config, &CancellationToken::new()).await.expect("listen");
    let streaming = listener.streaming().clone();
    tokio::spawn(listener.run(Echo));
    streaming
}

fn exec() -> ExecRequest {
    ExecRequest {
        container_id: "c".into(),
        cmd: vec!["cat".into()],
        stdin: true,
        stdout: true,
        stderr: false,
        tty: false,
    }
}

fn attach() -> AttachRequest {
    AttachRequest { container_id: "c".into(), stdin: false, stdout: true, stderr: false, tty: true }
}

async fn connect(url: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("http://").expect("scheme");
    let (host, path) = rest.split_once('/').expect("path");
    (TcpStream::connect(host).await.expect("connect"), format!("/{path}"))
}

async fn websocket(url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>, u16> {
    let (stream, _) = connect(url).await;
    let mut request = url.replace("http://", "ws://").into_client_request().expect("request");
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("header"));
    }
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(WebSocketError::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// What arrives on each channel until the end.
async fn channels(socket: &mut WebSocketStream<TcpStream>) -> [Vec<u8>; 5] {
    let mut all: [Vec<u8>; 5] = Default::default();
    while let Some(Ok(message)) = socket.next().await {
        if message.is_binary() {
            let bytes = message.into_data();
            all[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    all
}

#[tokio::test]
async fn a_websocket_of_the_fifth_version_ends_its_input_and_learns_the_code() {
    let url = server().await.exec_url(exec()).expect("url");
    let mut socket = websocket(&url, "v5.channel.k8s.io").await.expect("upgrade");
    socket.send(Message::Binary(b"\0hello".to_vec().into())).await.expect("send");
    socket.send(Message::Binary(vec![255, 0].into())).await.expect("send");
    let [_, stdout, _, error, _] = channels(&mut socket).await;
    assert_eq!(stdout, b"hello");
    let status: serde_json::Value = serde_json::from_slice(&error).expect("status");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn terminals_are_resized() {
    for protocol in ["v4.channel.k8s.io", "channel.k8s.io", ""] {
        let url = server().await.attach_url(attach()).expect("url");
        let mut socket = websocket(&url, protocol).await.expect("upgrade");
        socket.send(Message::Binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec().into())).await.expect("send");
        let [_, stdout, _, error, _] = channels(&mut socket).await;
        assert_eq!(stdout, b"80x24");
        assert_eq!(error.is_empty(), protocol != "v4.channel.k8s.io", "{}", String::from_utf8_lossy(&error));
    }
}

#[tokio::test]
async fn a_token_opens_what_it_was_given_for_once() {
    let streaming = server().await;
    let url = streaming.exec_url(exec()).expect("url");
    assert_eq!(websocket(&url.replace("/exec/", "/attach/"), "").await.err(), Some(404));
    assert_eq!(websocket(&url, "").await.err(), Some(404), "the wrong try has used it up");
    let url = streaming.exec_url(exec()).expect("url");
    assert_eq!(websocket(&url, "v9.channel.k8s.io").await.err(), Some(403));
    let url = streaming.exec_url(exec()).expect("url");
    let (mut stream, path) = connect(&url).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn spdy_clients_that_open_no_streams_are_not_waited_for() {
    let url = server().await.exec_url(exec()).expect("url");
    let (mut stream, path) = connect(&url).await;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
         x-stream-protocol-version: v9.channel.k8s.io\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("in time")
        .expect("read");
    let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101"), "{text}");
    assert!(text.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{text}");
}

#[tokio::test]
async fn websockets_forward_ports_and_say_which() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut five = [0; 5];
        stream.read_exact(&mut five).await.expect("read");
        stream.write_all(&five).await.expect("write");
    });
    let request = PortForwardRequest { pod_sandbox_id: "s".into(), port: vec![port.into(), 1] };
    let url = server().await.port_forward_url(request).expect("url");
    let mut socket = websocket(&url, "v4.channel.k8s.io").await.expect("upgrade");
    socket.send(Message::Binary(b"\0hello".to_vec().into())).await.expect("send");
    let [data, error, dead, refused, _] = channels_until(&mut socket, b"hello".len() + 2).await;
    assert_eq!((&data[..2], &data[2..]), (&port.to_le_bytes()[..], &b"hello"[..]));
    assert_eq!(error, port.to_le_bytes());
    assert_eq!(dead, 1_u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&refused).contains("forward port 1"), "{refused:?}");
}

/// A server that answers once its client has said everything.
async fn counting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("to the end");
            stream.write_all(format!("heard {}", all.len()).as_bytes()).await.expect("write");
        }
    });
    port
}

fn has(all: &[u8], text: &str) -> bool {
    all.windows(text.len()).any(|window| window == text.as_bytes())
}

fn forwarding() -> PortForwardRequest {
    PortForwardRequest { pod_sandbox_id: "s".into(), port: Vec::new() }
}

#[tokio::test]
async fn half_an_end_of_a_forwarded_port_is_passed_on() {
    let (streaming, port) = (server().await, counting().await);
    for request in [Some("0"), None] {
        let (mut stream, path) = connect(&streaming.port_forward_url(forwarding()).expect("url")).await;
        let upgrade = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: portforward.k8s.io\r\n\r\n"
        );
        stream.write_all(upgrade.as_bytes()).await.expect("write");
        stream.write_all(&spdy::tests::forwarding(port, request)).await.expect("write");
        let mut all = Vec::new();
        let heard = async {
            while !has(&all, "heard 5") {
                assert!(stream.read_buf(&mut all).await.expect("read") > 0, "{}", String::from_utf8_lossy(&all));
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.expect("in time");
        assert!(has(&all, "HTTP/1.1 101"), "{}", String::from_utf8_lossy(&all));
    }
}

#[tokio::test]
async fn ports_are_forwarded_through_a_tunnel() {
    let port = counting().await;
    let url = server().await.port_forward_url(forwarding()).expect("url");
    let mut socket = websocket(&url, "SPDY/3.1+portforward.k8s.io").await.expect("upgrade");
    // Messages end anywhere.
    for piece in spdy::tests::forwarding(port, Some("7")).chunks(11) {
        socket.send(Message::Binary(piece.to_vec().into())).await.expect("send");
    }
    let mut all = Vec::new();
    while !has(&all, "heard 5") {
        all.extend_from_slice(&socket.next().await.expect("more").expect("message").into_data());
    }
}

/// As [`channels`], until so much has come on the first one and the fourth has an error.
async fn channels_until(socket: &mut WebSocketStream<TcpStream>, length: usize) -> [Vec<u8>; 5] {
    let mut all: [Vec<u8>; 5] = Default::default();
    while all[0].len() < length || all[3].len() < 3 {
        let bytes = socket.next().await.expect("more").expect("message").into_data();
        all[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    all
}

#[tokio::test]
async fn streams_that_do_not_go_together_are_refused() {
    let streaming = server().await;
    let wrong = [
        ExecRequest { tty: true, stderr: true, ..exec() },
        ExecRequest { stdin: false, stdout: false, ..exec() },
        ExecRequest { cmd: Vec::new(), ..exec() },
    ];
    for request in wrong {
        assert_eq!(streaming.exec_url(request).expect_err("wrong").kind(), Kind::InvalidArgument);
    }
    let request = PortForwardRequest { pod_sandbox_id: "s".into(), port: vec![70_000] };
    assert_eq!(streaming.port_forward_url(request).expect_err("wrong").kind(), Kind::InvalidArgument);
}
