//! The address at which counters are collected.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Observer;
use super::metrics::Metrics;
use crate::error::{Doing, Result};
use crate::gc::Gc;
use crate::storage::Logs;

/// Collectors that are answered at once.
const MAX_CONNECTIONS: usize = 32;
/// How long one may take for its request.
const REQUEST: Duration = Duration::from_secs(10);

/// A listening address.
pub struct Listener {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    gc: Gc,
    logs: Logs,
    others: Others,
}

/// Writes counters of a part of the daemon that this one does not know.
pub(super) type Others = Arc<dyn Fn(&mut String) + Send + Sync>;

impl Listener {
    /// Listens at the configured address; `None` where none is configured.
    ///
    /// # Errors
    /// Names the address that is taken.
    pub async fn bind(
        address: &str,
        observer: &Observer,
        (gc, logs): (&Gc, &Logs),
        others: Others,
    ) -> Result<Option<Self>> {
        let Some(metrics) = observer.metrics.clone() else { return Ok(None) };
        let listener = TcpListener::bind(address).await.doing(|| format!("listen for metrics at {address}"))?;
        Ok(Some(Self { listener, metrics, gc: gc.clone(), logs: logs.clone(), others }))
    }

    /// Answers until the daemon stops.
    pub async fn run(self, stopping: CancellationToken) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopping.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (metrics, gc, logs) = (self.metrics.clone(), self.gc.clone(), self.logs.clone());
            let others = self.others.clone();
            let stopping = stopping.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(|request| {
                    let answer = answer(&metrics, (&gc, &logs, &others), &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = served => {}
                    () = stopping.cancelled() => {}
                }
            });
        }
    }
}

fn answer(
    metrics: &Metrics,
    (gc, logs, others): (&Gc, &Logs, &Others),
    request: &hyper::Request<Incoming>,
) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/v1/metrics" | "/metrics") && *request.method() == Method::GET;
    let mut text = if known { metrics.text() } else { "not found\n".to_owned() };
    if known {
        gc.write_metrics(&mut text);
        logs.write_metrics(&mut text);
        others(&mut text);
    }
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    if known {
        let kind = http::HeaderValue::from_static("text/plain; version=0.0.4");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    } else {
        *answer.status_mut() = StatusCode::NOT_FOUND;
    }
    answer
}
