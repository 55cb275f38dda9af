//! One request and its answer: connections, redirects, retries.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::crypto::CryptoProvider;

use super::body::Body;
use super::error::{is_broken_off, of_answer, of_transport, root_cause};
use super::hosts::Host;
use super::identity;
use super::proxies::Proxies;
use super::reach::{Reach, Resolver, is_private_address, same_origin};
use super::renewed::Renewed;
use crate::error::{Doing, Error, Kind, Result};

/// How we introduce ourselves.
pub const USER_AGENT: &str = concat!("gantry/", env!("CARGO_PKG_VERSION"));
/// A server that does not answer at all.
const CONNECT: Duration = Duration::from_secs(15);
/// One that stops in the middle, where nothing else is configured.
const STALL: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Tries of one request, and the longest wait between two.
const TRIES: u32 = 5;
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// How many times as long as it may send nothing a server may take for a document.
const SMALL: u32 = 5;
/// Most of an error's text that is read.
const MAX_ERROR: usize = 64 << 10;

/// What makes connections to one host differ from those to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) skip_verify: bool,
    pub(super) authorities: Vec<PathBuf>,
    /// Files of our own certificates and their keys.
    pub(super) identities: Vec<(PathBuf, PathBuf)>,
    pub(super) connect: Option<Duration>,
}

impl Tls {
    fn files(&self) -> Vec<&Path> {
        let identities = self.identities.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(identities).map(PathBuf::as_path).collect()
    }
}

/// One client for each kind of connection, kept for the next image as long as the certificates are the same.
pub(super) struct Clients {
    known: Mutex<HashMap<(Tls, Reach, Way), Renewed<Client>>>,
    /// For how long nothing may come.
    pub(super) patience: Duration,
    pub(super) proxies: Proxies,
}

impl Default for Clients {
    fn default() -> Self {
        Self::with_patience(STALL)
    }
}

impl Clients {
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self { known: Mutex::default(), patience, proxies: Proxies::of_environment() }
    }

    /// The client for an address.
    pub(super) fn get(&self, tls: &Tls, reach: Reach, url: &Url) -> Result<Client> {
        let way = if self.proxies.intercept(url) { Way::Proxy } else { Way::Direct };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry((tls.clone(), reach, way)).or_default().get(&tls.files(), || build(tls, reach, way))
    }
}

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    /// Through the proxy that the environment names.
    Proxy,
    /// To whom it is.
    Direct,
}

/// A client for something else than a registry, which may take `patience` for an answer.
///
/// # Errors
/// When this machine's certificates cannot be read.
pub fn client(patience: Duration) -> Result<Client> {
    provide();
    let failed = |error: reqwest::Error| Error::internal(format!("HTTP client: {}", root_cause(&error)));
    Client::builder().user_agent(USER_AGENT).timeout(patience).build().map_err(failed)
}

fn provide() -> Arc<CryptoProvider> {
    // Fails only where somebody else installed one, which serves as well.
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let installed = CryptoProvider::get_default().cloned();
    installed.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

fn build(tls: &Tls, reach: Reach, way: Way) -> Result<Client> {
    let provider = provide();
    let failed = |error: &dyn std::error::Error| Error::internal(format!("registry client: {}", root_cause(error)));
    let mut authorities = Vec::new();
    for path in &tls.authorities {
        let certificates = identity::certificates(path).doing(|| format!("authority {}", path.display()))?;
        for one in certificates {
            authorities.push(reqwest::Certificate::from_der(&one).map_err(|error| failed(&error))?);
        }
    }
    let configured = || {
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            // Redirects carry credentials and lead anywhere: they are followed here, by our own rules.
            .redirect(reqwest::redirect::Policy::none())
            // Several connections are faster for several large blobs than one that all share.
            .http1_only()
            .connect_timeout(tls.connect.unwrap_or(CONNECT))
            .tls_danger_accept_invalid_certs(tls.skip_verify);
        let builder = if way == Way::Direct { builder.no_proxy() } else { builder };
        builder.dns_resolver(Resolver::new(reach))
    };
    if !tls.identities.is_empty() {
        let client = configured().tls_backend_preconfigured(identity::config(tls, &provider)?);
        return client.build().map_err(|error| failed(&error));
    }
    let usual = match authorities.is_empty() {
        true => configured(),
        false => configured().tls_certs_merge(authorities.clone()),
    };
    usual.build().or_else(|error| {
        // A machine without authorities of its own can still speak HTTP, and HTTPS to whom hosts.toml vouches for.
        let client = configured().tls_certs_only(authorities.clone()).build().map_err(|_| failed(&error))?;
        tracing::warn!(
            error = root_cause(&error),
            "this machine trusts no authority, so HTTPS registries are refused; install ca-certificates"
        );
        Ok(client)
    })
}

/// A request without its credentials, so that it can be sent again.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Body,
    /// Sent again it does no more than once.
    pub(super) again: bool,
    /// It carries a secret of this very host: where the host redirects it, it fails.
    pub(super) stays: bool,
}

impl Ask {
    pub(super) fn new(method: Method, url: Url) -> Self {
        let again = matches!(method, Method::GET | Method::HEAD);
        Self { method, url, headers: http::HeaderMap::new(), body: Body::None, again, stays: false }
    }

    #[must_use]
    pub(super) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// Sends a request with `authorization`, follows redirects, and tries again where that may help.
pub(super) async fn send(host: &Host, ask: &Ask, authorization: Option<&str>) -> Result<Response> {
    let mut tried = 0;
    loop {
        tried += 1;
        let result = follow(host, ask, authorization).await;
        let wait = match &result {
            Ok(answer) if is_worth_a_retry(answer.status()) => wait_for(answer, tried),
            Err(Failed { passes: true, .. }) => backoff(tried),
            _ => return result.map_err(|failed| failed.error),
        };
        // Who is asked too much has not done anything.
        let is_undone = result.as_ref().is_ok_and(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS);
        if host.leads_on || tried >= TRIES || !(ask.again || is_undone) || wait > LONGEST_WAIT {
            return result.map_err(|failed| failed.error);
        }
        tracing::debug!(url = %ask.url, ?wait, tried, "registry request is tried again");
        tokio::time::sleep(wait).await;
    }
}

fn is_worth_a_retry(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long a server wants us to wait, which it says as a number of seconds or as a date; else longer each time.
fn wait_for(answer: &Response, tried: u32) -> Duration {
    let header = answer.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    header.and_then(|text| retry_after(text.trim())).unwrap_or_else(|| backoff(tried))
}

fn retry_after(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| {
        let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Some(date.duration_since(jiff::Timestamp::now()).try_into().unwrap_or_default())
    })
}

pub(super) fn backoff(tried: u32) -> Duration {
    Duration::from_millis(200) * 2u32.pow(tried.min(6))
}

/// A request without an answer.
struct Failed {
    error: Error,
    /// The same may well succeed at once.
    passes: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, passes: false }
    }
}

async fn follow(host: &Host, ask: &Ask, authorization: Option<&str>) -> Result<Response, Failed> {
    let (mut ask, mut url) = (ask.clone(), ask.url.clone());
    let moved = Arc::new(AtomicU64::new(0));
    for _ in 0..=MAX_REDIRECTS {
        let own = same_origin(&url, &host.base);
        let mut request = host.client_for(&url)?.request(ask.method.clone(), url.clone()).headers(ask.headers.clone());
        if own {
            request = request.headers(host.headers.clone());
            if let Some(authorization) = authorization {
                request = request.header(http::header::AUTHORIZATION, authorization);
            }
        }
        request = ask.body.attach(request, &moved);
        let name = url.host_str().unwrap_or_default().to_owned();
        let name = url.port().map_or(name.clone(), |port| format!("{name}:{port}"));
        tell_request(host, &ask, &url);
        let answer = while_it_moves(host, &moved, request.send()).await?;
        let answer =
            answer.map_err(|error| Failed { passes: is_broken_off(&error), error: of_transport(&name, &error) })?;
        tell_answer(host, &answer);
        // Whoever answers in its place says nothing of where it is.
        if own
            && host.is_reached_directly(&url)
            && let Some(peer) = answer.remote_addr()
        {
            host.is_near.store(is_private_address(peer.ip()), Ordering::Relaxed);
        }
        if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(answer);
        }
        if ask.stays {
            let text = format!("registry {}: redirects a request that carries a secret", host.name());
            return Err(Error::new(Kind::PermissionDenied, text).into());
        }
        url = redirect(host, &url, &answer)?;
        // That is where the outcome is, not where it is to be sent once more.
        if answer.status() == StatusCode::SEE_OTHER && ask.method != Method::HEAD {
            (ask.method, ask.body) = (Method::GET, Body::None);
            ask.headers.remove(http::header::CONTENT_TYPE);
        }
    }
    Err(Error::unavailable(format!("registry {}: more than {MAX_REDIRECTS} redirects", host.name())).into())
}

/// Waits for `request` as long as the bytes of its body go out, or the server may be thinking.
async fn while_it_moves<T>(host: &Host, moved: &AtomicU64, request: impl Future<Output = T>) -> Result<T> {
    let mut request = std::pin::pin!(request);
    loop {
        let before = moved.load(Ordering::Relaxed);
        match tokio::time::timeout(host.stall, &mut request).await {
            Ok(answer) => return Ok(answer),
            Err(_) if moved.load(Ordering::Relaxed) > before => {}
            Err(_) => return Err(stalled(host)),
        }
    }
}

/// Waits for the next bytes of an answer, but not for ever.
pub(super) async fn next_piece(host: &Host, answer: &mut Response) -> Result<Option<bytes::Bytes>> {
    match tokio::time::timeout(host.stall, answer.chunk()).await {
        Ok(piece) => piece.map_err(|error| of_transport(&host.name(), &error)),
        Err(_) => Err(stalled(host)),
    }
}

fn stalled(host: &Host) -> Error {
    let seconds = host.stall.as_secs();
    let text = format!("registry {}: sent nothing for {seconds} s; try again", host.name());
    Error::new(Kind::DeadlineExceeded, text)
}

/// Waits for the whole of something small, which may come slowly, but not byte by byte for ever.
pub(super) async fn in_time<T>(host: &Host, small: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(host.stall.saturating_mul(SMALL), small).await.unwrap_or_else(|_| Err(slow(&host.name())))
}

/// The error of a host that sends too little to go on with.
pub(super) fn slow(name: &str) -> Error {
    Error::new(Kind::DeadlineExceeded, format!("registry {name}: sends too slowly; try again"))
}

fn tell_request(host: &Host, ask: &Ask, url: &Url) {
    let Some(wiretap) = &host.wiretap else { return };
    let headers = ask.headers.iter().map(|(name, value)| format!("{name}: {value:?}\n"));
    wiretap.heard(&format!("{} {url}\n{}\n", ask.method, headers.collect::<String>()));
}

fn tell_answer(host: &Host, answer: &Response) {
    let Some(wiretap) = &host.wiretap else { return };
    let headers = answer.headers().iter().map(|(name, value)| format!("{name}: {value:?}\n"));
    wiretap.heard(&format!("{:?} {}\n{}\n", answer.version(), answer.status(), headers.collect::<String>()));
}

/// Where an answer sends us, if it may.
pub(super) fn redirect(host: &Host, from: &Url, answer: &Response) -> Result<Url> {
    let refuse = |problem: String| Error::new(Kind::PermissionDenied, format!("registry {}: {problem}", host.name()));
    let location = answer.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refuse("redirects to nowhere".to_owned()))?;
    let to = from.join(location).map_err(|error| refuse(format!("redirects to {location:?}: {error}")))?;
    host.check_elsewhere(&to).map_err(|problem| refuse(format!("redirects to {to}: {problem}")))?;
    Ok(to)
}

/// The error that an unwanted answer stands for.
pub(super) async fn failure(host: &Host, mut answer: Response) -> Error {
    let status = answer.status();
    let mut body = Vec::new();
    let read = async {
        while let Some(chunk) = next_piece(host, &mut answer).await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR {
                break;
            }
        }
        Ok(())
    };
    // What came is told, however it ended.
    let _ = in_time(host, read).await;
    of_answer(&host.name(), status, &body)
}

/// Reads an answer whole, which must not be longer than `limit`.
pub(super) async fn body(host: &Host, mut answer: Response, limit: u64) -> Result<bytes::Bytes> {
    let too_long = || {
        let name = host.name();
        Error::new(Kind::ResourceExhausted, format!("registry {name}: a document of more than {limit} bytes"))
    };
    if answer.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let read = async {
        let mut bytes = bytes::BytesMut::new();
        while let Some(chunk) = next_piece(host, &mut answer).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    in_time(host, read).await
}
