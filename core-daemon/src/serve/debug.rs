//! The socket for people who look for a fault, with containerd's paths.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{Socket, accept};
use crate::blocking::blocking;
use crate::config::Config;
use crate::error::Result;
use crate::observe::{self, Observer};

/// Connections that are served at once.
const MAX_CONNECTIONS: usize = 16;
/// How long one may take, with all of its requests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves `socket` until `stopping`. `in_force` is the configuration.
///
/// # Errors
/// When the socket fails.
pub async fn debug(
    mut socket: Socket,
    observer: Observer,
    in_force: watch::Receiver<Config>,
    stopping: CancellationToken,
) -> Result<()> {
    let listener = socket.listener()?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, accept(&listener, "the debug socket").await)
        };
        let (slot, stream) = tokio::select! {
            next = next => next,
            () = stopping.cancelled() => return Ok(()),
        };
        let (observer, in_force, stopping) = (observer.clone(), in_force.clone(), stopping.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                let (observer, in_force, path) = (observer.clone(), in_force.clone(), request.uri().path().to_owned());
                let is_asked = *request.method() == Method::GET;
                async move { Ok::<_, Infallible>(answer(observer, in_force, path, is_asked).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(PATIENCE, served) => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

async fn answer(
    observer: Observer,
    in_force: watch::Receiver<Config>,
    path: String,
    is_asked: bool,
) -> Response<Full<Bytes>> {
    let (status, kind, text) = if is_asked {
        let said = blocking(move || Ok(observe::debug(&observer, &in_force.borrow(), &path))).await;
        said.unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")))
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new())
    };
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}
