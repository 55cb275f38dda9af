//! Calls are carried out to their end, whether or not their client stays for the answer.
//!
//! tonic drops a call whose client goes away, or whose deadline passes, wherever it waits at that moment. A container
//! would stay frozen, be half removed, or be asked to stop and never made to. So each call is a task of its own, but for
//! those that do nothing that anybody else could want.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Methods whose calls end with their client: they wait for what containers do in their own time, do at length what can
/// be given up at any point and begun anew, or notice it and undo what nobody would know of.
const END_WITH_CLIENT: &[&str] =
    &["Wait", "Transfer", "PullImage", "ExecSync", "Create", "RunPodSandbox", "CreateContainer"];

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
        let ends_with_client = ends_with_client(request.uri().path());
        let answer = self.inner.call(request);
        if ends_with_client {
            return Box::pin(answer);
        }
        Box::pin(async move {
            match tokio::spawn(answer).await {
                Ok(answer) => answer,
                Err(error) => Ok(Status::internal(format!("the call was cut short: {error}")).into_http()),
            }
        })
    }
}

fn ends_with_client(path: &str) -> bool {
    let only_looks = |method: &str| method.starts_with("List") || method.ends_with("Status");
    path.rsplit_once('/').is_some_and(|(_, method)| END_WITH_CLIENT.contains(&method) || only_looks(method))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

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
        assert!(!survives("/containerd.services.tasks.v1.Tasks/Wait").await);
        assert!(!survives("/runtime.v1.RuntimeService/ListContainers").await);
    }
}
