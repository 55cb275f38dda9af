//! Calls are carried out to their end, whether or not their client stays for the answer.
//!
//! tonic drops a call whose client goes away, or whose deadline passes, wherever it waits at that moment. A container
//! would stay frozen, be half removed, or be asked to stop and never be killed. So each call that waits becomes a task
//! of its own, except those of [`END_WITH_CLIENT`] and those that only read.
//!
//! When a deadline passes the client gets `DeadlineExceeded` from here, a moment before tonic would answer `Cancelled`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Ends of the paths of calls that are dropped when their client goes away. They wait for what a container does in its
/// own time (`Wait`, `ExecSync`), can be given up at any point and begun again (pulls, transfers), or notice that the
/// client is gone and undo what they have made (creations).
const END_WITH_CLIENT: &[&str] = &[
    "/Wait",
    "/Transfer",
    "/PullImage",
    "/ExecSync",
    ".Engine/Create",
    "/RunPodSandbox",
    "/CreateContainer",
    "/CheckpointPod",
    "/RestorePod",
];

/// Makes calls whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole;

impl<S> Layer<S> for Whole {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Calls { inner }
    }
}

/// A service whose calls are whole.
#[derive(Debug, Clone)]
pub(super) struct Calls<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clock starts here, before tonic starts its own.
        let patience = timeout_of(request.headers()).map(tokio::time::sleep);
        let ends_with_client = ends_with_client(request.uri().path());
        let answer = self.inner.call(request);
        if ends_with_client {
            return Box::pin(within(patience, answer));
        }
        Box::pin(within(patience, async move {
            let mut answer = Box::pin(answer);
            // Most calls only look something up, and are done before a task would have begun.
            let at_once = std::future::poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
            if let Poll::Ready(answer) = at_once {
                return answer;
            }
            match tokio::spawn(answer).await {
                Ok(answer) => answer,
                Err(error) => Ok(Status::internal(format!("the call was cut short: {error}")).into_http()),
            }
        }))
    }
}

/// The answer, or `DeadlineExceeded` where it comes too late for the client.
async fn within<E>(
    patience: Option<Sleep>,
    answer: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    let Some(patience) = patience else { return answer.await };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = patience => Ok(Status::deadline_exceeded("the time that the client gave the call is over").into_http()),
    }
}

/// How long the client waits, where it says so: at most eight digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 60 * 60)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

fn ends_with_client(path: &str) -> bool {
    let only_looks = |method: &str| method.starts_with("List") || method.ends_with("Status");
    END_WITH_CLIENT.iter().any(|end| path.ends_with(end))
        || path.rsplit_once('/').is_some_and(|(_, method)| only_looks(method))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    /// Begins a call of `path` that waits, goes away, and says whether the call came to its end all the same.
    async fn survives(path: &str) -> bool {
        let (go_on, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (waits_for, tells) = (go_on.clone(), done.clone());
        let mut calls = Whole.layer(tower::service_fn(move |_: Request<Body>| {
            let (go_on, done) = (waits_for.clone(), tells.clone());
            async move {
                go_on.notified().await;
                done.notify_one();
                Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
            }
        }));
        let request = Request::builder().uri(path).body(Body::empty()).expect("request");
        let call = calls.call(request);
        assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err());
        go_on.notify_one();
        tokio::time::timeout(Duration::from_millis(200), done.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn a_call_goes_on_without_its_client() {
        assert!(survives("/gantry.engine.v1.Engine/Stop").await);
        assert!(survives("/containerd.services.containers.v1.Containers/Create").await);
        assert!(!survives("/gantry.engine.v1.Engine/Create").await);
        assert!(!survives("/containerd.services.tasks.v1.Tasks/Wait").await);
        assert!(!survives("/runtime.v1.RuntimeService/ListContainers").await);
    }

    #[tokio::test]
    async fn a_deadline_that_passes_is_told_as_that() {
        for path in ["/containerd.services.tasks.v1.Tasks/Wait", "/gantry.engine.v1.Engine/Stop"] {
            let never = |_: Request<Body>| std::future::pending::<Result<Response<Body>, std::convert::Infallible>>();
            let mut calls = Whole.layer(tower::service_fn(never));
            let request =
                Request::builder().uri(path).header("grpc-timeout", "5m").body(Body::empty()).expect("request");
            let answer = calls.call(request).await.expect("answer");
            assert_eq!(answer.headers().get("grpc-status").expect("code"), "4");
        }
        let of = |text: &'static str| {
            timeout_of(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                http::HeaderValue::from_static(text),
            )]))
        };
        assert_eq!((of("2H"), of("1n")), (Some(Duration::from_secs(7200)), Some(Duration::from_nanos(1))));
        assert_eq!((of(""), of("m"), of("5"), of("123456789S"), of("-1S")), (None, None, None, None, None));
    }
}
