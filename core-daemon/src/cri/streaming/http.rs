//! The requests that open streams: a token in the path, and headers that say what the connection is to become.

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::port_forward::{self, Dial};
use super::remote_command::{self, Session, Version};
use super::spdy::Connection;
use super::websocket::{self, Channels, Encoding};
use super::{Backend, Request, Streaming};
use crate::error::Result;

/// The header in which clients of SPDY name the versions they speak.
const VERSIONS: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The header in which they are told what there is, where nothing fits.
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SEC_WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

type Answer = Response<Full<Bytes>>;

/// What a connection becomes, with the answer that says so.
enum Upgrade {
    Spdy(Version),
    SpdyPorts,
    Tunnel,
    WebSocket(Encoding, Version),
    WebSocketPorts(Encoding),
}

/// Answers a request, and goes on with its connection where it is upgraded.
pub(super) fn answer<B: Backend>(streaming: &Streaming, backend: &B, mut request: hyper::Request<Incoming>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST open streams");
    }
    let mut path = request.uri().path().trim_start_matches('/').splitn(2, '/');
    let (verb, token) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
    let asked = streaming.shared.tokens.take(token).filter(|asked| asked.verb() == verb);
    let Some(asked) = asked else {
        return refuse(StatusCode::NOT_FOUND, "unknown or used token");
    };
    let (upgrade, answer) = match negotiate(request.headers(), &asked) {
        Ok(negotiated) => negotiated,
        Err(answer) => return *answer,
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let (streaming, backend) = (streaming.clone(), backend.clone());
    tokio::spawn(async move { streaming.go_on(backend, asked, upgrade, upgrading).await });
    answer
}

fn refuse(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text.into())));
    *answer.status_mut() = status;
    answer
}

/// Agrees on a protocol, or says what is wrong.
fn negotiate(headers: &HeaderMap, asked: &Request) -> Result<(Upgrade, Answer), Box<Answer>> {
    let upgrades = words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"));
    let to = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrades && to.eq_ignore_ascii_case("websocket") {
        return to_websocket(headers, asked);
    }
    if upgrades && to.eq_ignore_ascii_case("SPDY/3.1") {
        return to_spdy(headers, asked);
    }
    Err(Box::new(refuse(
        StatusCode::BAD_REQUEST,
        "unable to upgrade: the request is for neither SPDY/3.1 nor a WebSocket",
    )))
}

fn to_spdy(headers: &HeaderMap, asked: &Request) -> Result<(Upgrade, Answer), Box<Answer>> {
    let offered = words(headers, &VERSIONS);
    if offered.is_empty() {
        return Err(Box::new(refuse(
            StatusCode::BAD_REQUEST,
            format!("unable to upgrade: header {VERSIONS} is missing or empty"),
        )));
    }
    let known: Vec<(&str, Upgrade)> = match asked {
        Request::PortForward(_) => vec![(port_forward::SPDY, Upgrade::SpdyPorts)],
        _ => remote_command::SPDY.iter().map(|(name, version)| (*name, Upgrade::Spdy(*version))).collect(),
    };
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let Some((name, upgrade)) = choose(&offered, known) else {
        let text = format!("unable to upgrade: client speaks {offered:?}, server {names:?}");
        let mut answer = refuse(StatusCode::FORBIDDEN, text);
        answer.headers_mut().extend(names.iter().map(|name| (ACCEPTED, HeaderValue::from_static(name))));
        return Err(Box::new(answer));
    };
    let mut answer = switch("SPDY/3.1");
    answer.headers_mut().insert(VERSIONS, HeaderValue::from_static(name));
    Ok((upgrade, answer))
}

fn to_websocket(headers: &HeaderMap, asked: &Request) -> Result<(Upgrade, Answer), Box<Answer>> {
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let version = headers.get(&SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    let (Some(key), Some(b"13")) = (key, version) else {
        let mut answer = refuse(StatusCode::BAD_REQUEST, "unable to upgrade: not a WebSocket of version 13");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(Box::new(answer));
    };
    let mut known: Vec<(&'static str, Upgrade)> = match asked {
        Request::PortForward(request) if request.port.is_empty() => Vec::new(),
        Request::PortForward(_) => {
            port_forward::WEBSOCKET.iter().map(|(name, encoding)| (*name, Upgrade::WebSocketPorts(*encoding))).collect()
        }
        _ => remote_command::WEBSOCKET
            .iter()
            .map(|(name, encoding, version)| (*name, Upgrade::WebSocket(*encoding, *version)))
            .collect(),
    };
    let offered = words(headers, &SEC_WEBSOCKET_PROTOCOL);
    let mut answer = switch("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key)).ok();
    answer.headers_mut().extend(accept.map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    if offered.is_empty()
        && let Some((_, upgrade)) = known.pop()
    {
        return Ok((upgrade, answer));
    }
    if matches!(asked, Request::PortForward(_)) {
        known.push((port_forward::TUNNEL, Upgrade::Tunnel));
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let Some((name, upgrade)) = choose(&offered, known) else {
        let text = format!("unable to upgrade: client speaks {offered:?}, server {names:?}");
        return Err(Box::new(refuse(StatusCode::FORBIDDEN, text)));
    };
    answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    Ok((upgrade, answer))
}

/// The first that the client offers and the server knows.
fn choose(offered: &[String], mut known: Vec<(&'static str, Upgrade)>) -> Option<(&'static str, Upgrade)> {
    let place = offered.iter().find_map(|offer| known.iter().position(|(name, _)| name == offer))?;
    Some(known.swap_remove(place))
}

fn switch(to: &'static str) -> Answer {
    let mut answer = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

/// The words of a header that is a list, in one line or several.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words.map(ToOwned::to_owned).collect()
}

impl Streaming {
    async fn go_on<B: Backend>(self, backend: B, asked: Request, upgrade: Upgrade, upgrading: OnUpgrade) {
        let upgraded = match upgrading.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(%error, "connection of a stream");
                return;
            }
        };
        let wanted = asked.wanted();
        let (idle, patience, stopping) = (self.shared.times.idle, self.shared.times.creation, &self.shared.stopping);
        let open = |socket, encoding, ways: &[websocket::Way]| Channels::open(socket, encoding, ways, idle, stopping);
        let session = match upgrade {
            Upgrade::Spdy(version) => {
                let connection = Connection::serve(upgraded, idle, stopping);
                Session::over_spdy(connection, version, wanted, patience).await
            }
            Upgrade::WebSocket(encoding, version) => {
                let socket = websocket::upgraded(upgraded).await;
                let channels = open(socket, encoding, &Session::ways(wanted));
                Some(Session::over_websocket(channels, encoding, version).await)
            }
            Upgrade::SpdyPorts | Upgrade::Tunnel | Upgrade::WebSocketPorts(_) => {
                return self.ports(backend, asked, upgrade, upgraded).await;
            }
        };
        let Some(session) = session else { return };
        match asked {
            Request::Exec(request) => session.run(|streams| async move { backend.exec(request, streams).await }).await,
            Request::Attach(request) => {
                let attached = |streams| async move { backend.attach(request, streams).await.map(|()| 0) };
                session.run(attached).await;
            }
            Request::PortForward(_) => {}
        }
    }

    async fn ports<B: Backend>(&self, backend: B, asked: Request, upgrade: Upgrade, upgraded: TokioIo<Upgraded>) {
        let Request::PortForward(request) = asked else { return };
        let (idle, patience, stopping) = (self.shared.times.idle, self.shared.times.creation, &self.shared.stopping);
        let dial = Pod { backend, sandbox: request.pod_sandbox_id };
        match upgrade {
            Upgrade::Tunnel => {
                let tunnel = websocket::tunnel(websocket::upgraded(upgraded).await, idle);
                port_forward::over_spdy(Connection::serve(tunnel, idle, stopping), dial, patience).await;
            }
            Upgrade::WebSocketPorts(encoding) => {
                let ports = request.port.iter().filter_map(|port| u16::try_from(*port).ok());
                let ports: Vec<u16> = ports.take(port_forward::MAX_PORTS).collect();
                let socket = websocket::upgraded(upgraded).await;
                let channels = Channels::open(socket, encoding, &port_forward::ways(&ports), idle, stopping);
                port_forward::over_websocket(channels, encoding, &ports, dial).await;
            }
            _ => {
                port_forward::over_spdy(Connection::serve(upgraded, idle, stopping), dial, patience).await;
            }
        }
    }
}

/// A pod to connect into.
#[derive(Clone)]
struct Pod<B> {
    backend: B,
    sandbox: String,
}

impl<B: Backend> Dial for Pod<B> {
    async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream> {
        self.backend.dial(&self.sandbox, port).await
    }
}
