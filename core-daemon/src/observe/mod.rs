//! What the daemon says of its own calls: counters for whoever collects them, and traces for whoever follows a call
//! through a system. Both are off unless configured, and both happen beside the call: it is counted after its answer. Whoever
//! looks for a fault is told of calls that have not ended.

mod body;
mod debug;
mod metrics;
mod server;
mod traces;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use http::{Request, Response};
use tokio::sync::Notify;
use tonic::body::Body;
use tower::{Layer, Service};

pub use debug::answer as debug;
pub use server::Listener;

use crate::config::Config;
use crate::error::Result;
use body::{End, Watched};
use debug::UnderWay;
use metrics::Metrics;
use traces::{Parent, Traces};

/// Who is told of calls; clones are the same.
#[derive(Clone, Default)]
pub struct Observer {
    calls: Arc<Calls>,
    metrics: Option<Arc<Metrics>>,
    traces: Option<Traces>,
    under_way: Option<Arc<UnderWay>>,
}

/// How many calls have come so far.
#[derive(Default)]
struct Calls {
    count: AtomicU64,
    begun: Notify,
}

impl Observer {
    /// As configured.
    ///
    /// # Errors
    /// `InvalidArgument` for an endpoint that is no address.
    pub fn new(config: &Config) -> Result<Self> {
        let metrics = (!config.metrics.address.is_empty()).then(|| Arc::new(Metrics::default()));
        let under_way = (!config.debug.address.as_os_str().is_empty()).then(|| Arc::new(UnderWay::new()));
        Ok(Self { calls: Arc::default(), metrics, traces: Traces::start(&config.tracing)?, under_way })
    }

    /// How many calls have come so far.
    pub fn calls(&self) -> u64 {
        self.calls.count.load(Ordering::Relaxed)
    }

    /// Waits for a call; one that has come since this was last waited for is enough.
    pub async fn call_begun(&self) {
        self.calls.begun.notified().await;
    }

    /// Sends the traces that still wait.
    pub async fn flush(&self) {
        if let Some(traces) = &self.traces {
            traces.flush().await;
        }
    }
}

/// A call that has ended.
struct Call {
    /// `/package.Service/Method`.
    path: String,
    /// The gRPC code.
    code: i32,
    begun: SystemTime,
    seconds: f64,
    parent: Option<Parent>,
}

impl Observer {
    fn ended(&self, call: Call) {
        if let Some(metrics) = &self.metrics {
            metrics.ended(&call.path, call.code, call.seconds);
        }
        if let Some(traces) = &self.traces {
            traces.ended(call);
        }
    }
}

impl<S> Layer<S> for Observer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner, observer: self.clone() }
    }
}

/// A service whose calls are told of.
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    observer: Observer,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let observer = self.observer.clone();
        observer.calls.count.fetch_add(1, Ordering::Relaxed);
        observer.calls.begun.notify_one();
        if observer.metrics.is_none() && observer.traces.is_none() && observer.under_way.is_none() {
            return Box::pin(self.inner.call(request));
        }
        let path = request.uri().path().to_owned();
        let parent = Parent::of(request.headers());
        let (begun, clock) = (SystemTime::now(), Instant::now());
        let noted = observer.under_way.clone().map(|calls| (calls.begun(&path), calls));
        let answer = self.inner.call(request);
        let end = End::new(move |code| {
            noted.into_iter().for_each(|(number, calls)| calls.ended(number));
            let seconds = clock.elapsed().as_secs_f64();
            observer.ended(Call { path, code, begun, seconds, parent });
        });
        Box::pin(async move { Ok(Watched::watch(answer.await?, end)) })
    }
}
