//! Traces in OpenTelemetry's protocol, over HTTP with JSON: a span for each call, sent in batches.
//!
//! A collector that is slow or away costs spans, never calls.

use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use super::Call;
use crate::config::Tracing;
use crate::error::{Error, Result};
use crate::id::random;

/// Spans that may wait to be sent, and that are sent at once.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
/// How long spans wait for others.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a collector may take, and how long the daemon's end waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// A call to this process from another, as the protocol numbers it.
const KIND_SERVER: u8 = 2;

/// The way to the collector; clones are the same.
#[derive(Clone)]
pub(super) struct Traces {
    queue: mpsc::Sender<Message>,
}

enum Message {
    Span(Value),
    Flush(oneshot::Sender<()>),
}

/// The span of the client from which a call comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    trace: String,
    span: String,
    sampled: bool,
}

impl Parent {
    /// Reads the W3C header, where there is one and it is right.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut parts = text.split('-').skip(1);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| {
            text.len() == length
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                && text.bytes().any(|byte| byte != b'0')
        };
        if !hex(trace, 32) || !hex(span, 16) {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace: trace.to_owned(), span: span.to_owned(), sampled })
    }
}

impl Traces {
    /// Begins to send to the configured endpoint; `None` without one.
    pub(super) fn start(config: &Tracing) -> Result<Option<Self>> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let invalid = |problem: &dyn std::fmt::Display| {
            Error::invalid(format!("tracing.endpoint {:?}: {problem}", config.endpoint))
        };
        let url: reqwest::Url =
            format!("{}/v1/traces", config.endpoint.trim_end_matches('/')).parse().map_err(|error| invalid(&error))?;
        let client = crate::registry::client(PATIENCE).map_err(|error| invalid(&error))?;
        let (queue, spans) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, url, config.service_name.clone(), spans));
        Ok(Some(Self { queue }))
    }

    pub(super) fn ended(&self, call: Call) {
        if call.parent.as_ref().is_some_and(|parent| !parent.sampled) {
            return;
        }
        let Some(span) = span(&call) else { return };
        // A full queue is a collector that is away.
        let _ = self.queue.try_send(Message::Span(span));
    }

    /// Sends what waits, as far as the collector takes it before the daemon's patience ends: a hanging collector must
    /// not keep the daemon from its end.
    pub(super) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let sent = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = wait.await;
            }
        };
        let _ = tokio::time::timeout(LAST_PATIENCE, sent).await;
    }
}

fn span(call: &Call) -> Option<Value> {
    let trace = match &call.parent {
        Some(parent) => parent.trace.clone(),
        None => random::<16>().ok()?,
    };
    let name = call.path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    let begun = call.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ended = begun + Duration::try_from_secs_f64(call.seconds).unwrap_or_default();
    let code = Code::from(call.code);
    let status = match code {
        Code::Ok => json!({}),
        code => json!({ "code": 2, "message": code.description() }),
    };
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    Some(json!({
        "traceId": trace,
        "spanId": random::<8>().ok()?,
        "parentSpanId": call.parent.as_ref().map(|parent| parent.span.clone()).unwrap_or_default(),
        "name": name,
        "kind": KIND_SERVER,
        "startTimeUnixNano": begun.as_nanos().to_string(),
        "endTimeUnixNano": ended.as_nanos().to_string(),
        "attributes": [
            text("rpc.system", "grpc"),
            text("rpc.service", service),
            text("rpc.method", method),
            json!({ "key": "rpc.grpc.status_code", "value": { "intValue": call.code.to_string() } }),
        ],
        "status": status,
    }))
}

async fn send_all(client: reqwest::Client, url: reqwest::Url, service: String, mut spans: mpsc::Receiver<Message>) {
    let mut batch = Vec::new();
    let mut warned = None;
    let mut round = tokio::time::interval(INTERVAL);
    loop {
        let mut flushed = None;
        tokio::select! {
            message = spans.recv() => match message {
                Some(Message::Span(span)) => {
                    batch.push(span);
                    if batch.len() < BATCH {
                        continue;
                    }
                }
                Some(Message::Flush(done)) => flushed = Some(done),
                None => return,
            },
            _ = round.tick() => {}
        }
        if !batch.is_empty() {
            let body = document(&service, std::mem::take(&mut batch));
            let sent =
                client.post(url.clone()).header(http::header::CONTENT_TYPE, "application/json").body(body).send();
            let failed = match sent.await {
                Ok(answer) if answer.status().is_success() => None,
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(error.to_string()),
            };
            // Said once, until it works again.
            if let Some(problem) = &failed
                && warned.is_none()
            {
                tracing::warn!(endpoint = %url, problem, "traces are not taken; spans are lost until they are");
            }
            warned = failed;
        }
        if let Some(done) = flushed {
            let _ = done.send(());
        }
    }
}

fn document(service: &str, spans: Vec<Value>) -> String {
    json!({
        "resourceSpans": [{
            "resource": { "attributes": [
                { "key": "service.name", "value": { "stringValue": service } },
                { "key": "service.version", "value": { "stringValue": crate::VERSION } },
            ]},
            "scopeSpans": [{ "scope": { "name": "gantryd" }, "spans": spans }],
        }],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(parent: Option<Parent>) -> Call {
        Call { path: "/a.B/C".into(), code: 5, begun: std::time::SystemTime::now(), seconds: 0.5, parent }
    }

    #[test]
    fn a_span_belongs_to_the_client_that_it_came_from() {
        let mut headers = HeaderMap::new();
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        headers.insert("traceparent", format!("00-{trace}-{parent}-01").parse().expect("header"));
        let read = Parent::of(&headers).expect("parent");
        assert!(read.sampled);
        let span = span(&call(Some(read))).expect("span");
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&json!(trace), &json!(parent)));
        assert_eq!((&span["name"], &span["status"]["code"]), (&json!("a.B/C"), &json!(2)));
        for wrong in ["", "00-x-y-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            headers.insert("traceparent", wrong.parse().expect("header"));
            assert_eq!(Parent::of(&headers), None);
        }
    }
}
