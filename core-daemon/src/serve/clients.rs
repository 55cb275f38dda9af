//! Connections of gRPC's clients, each with a task that ends its turns by writing what there is to write.

use std::convert::Infallible;
use std::pin::pin;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::accept;
use super::authority::Connection;
use super::gather::Gather;
use super::quiet::Quiet;

/// Bytes that a client may send in one call, and in all calls of a connection, before the daemon has taken them.
/// HTTP/2's own 64 KiB would make uploads of content wait for an answer that often.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Serves all who connect until `stopping`, and then those who have calls under way.
pub(super) async fn serve<S>(listener: UnixListener, service: S, stopping: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let connections = TaskTracker::new();
    loop {
        let socket = tokio::select! {
            socket = accept(&listener, "a client") => socket,
            () = stopping.cancelled() => break,
        };
        let (service, stopping) = (service.clone(), stopping.clone());
        connections.spawn(async move {
            if let Err(error) = connection(socket, service, stopping).await {
                tracing::debug!(%error, "connection of a client");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// HTTP/2 as it is spoken with clients.
pub(super) fn protocol() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // A client may wait for as many containers as it has.
        .max_concurrent_streams(None);
    builder
}

async fn connection<S>(
    socket: UnixStream,
    service: S,
    stopping: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let gather = Gather::new(Quiet::new(socket)?);
    let calls =
        hyper::service::service_fn(|request: Request<Incoming>| service.clone().oneshot(request.map(Body::new)));
    let mut connection = pin!(protocol().serve_connection(TokioIo::new(Connection::new(gather.clone())), calls));
    let mut stop = pin!(stopping.cancelled());
    let mut is_stopping = false;
    let ended = std::future::poll_fn(|context| {
        if !is_stopping && stop.as_mut().poll(context).is_ready() {
            is_stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        let ended = connection.as_mut().poll(context);
        gather.end_turn(context);
        ended
    });
    Ok(ended.await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::uri::PathAndQuery;
    use tokio::sync::Notify;
    use tonic::transport::{Channel, Endpoint};
    use tonic_prost::ProstCodec;

    use super::*;

    type Bytes = Vec<u8>;

    /// A daemon whose calls answer with as many bytes as their requests ask for, after `go_on`.
    async fn start(
        go_on: Arc<Notify>,
        stopping: CancellationToken,
    ) -> (Channel, tokio::task::JoinHandle<()>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("listen");
        let service = tower::service_fn(move |request: Request<Body>| {
            let go_on = go_on.clone();
            async move {
                let answer = tower::service_fn(|request: tonic::Request<u64>| {
                    let go_on = go_on.clone();
                    async move {
                        let size = usize::try_from(request.into_inner()).expect("size");
                        if size == 0 {
                            go_on.notified().await;
                        }
                        Ok::<_, tonic::Status>(tonic::Response::new(vec![7; size]))
                    }
                });
                Ok::<_, Infallible>(
                    tonic::server::Grpc::new(ProstCodec::<Bytes, u64>::default()).unary(answer, request).await,
                )
            }
        });
        let served = tokio::spawn(serve(listener, service, stopping));
        let connect = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://x").connect_with_connector(connect).await.expect("connect");
        (channel, served, dir)
    }

    async fn call(channel: Channel, size: u64) -> Result<usize, tonic::Status> {
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
        client.ready().await.expect("ready");
        let codec = ProstCodec::<u64, Bytes>::default();
        let answer = client.unary(tonic::Request::new(size), PathAndQuery::from_static("/a.B/C"), codec).await?;
        Ok(answer.into_inner().len())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_of_all_sizes_arrive_many_at_once() {
        let (channel, ..) = start(Arc::default(), CancellationToken::new()).await;
        let sizes = [1, 250, 300, 16 << 10, (64 << 10) - 7, 100 << 10, 3 << 20];
        let calls = (0..1000).map(|number| {
            let size = sizes[if number % 100 == 0 { 6 } else { number % 6 }];
            let call = call(channel.clone(), size);
            tokio::spawn(async move { assert_eq!(call.await.expect("answer"), usize::try_from(size).expect("size")) })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.expect("call");
        }
    }

    #[tokio::test]
    async fn a_call_under_way_ends_before_the_daemon_does() {
        let (go_on, stopping) = (Arc::new(Notify::new()), CancellationToken::new());
        let (channel, served, _dir) = start(go_on.clone(), stopping.clone()).await;
        let under_way = tokio::spawn(call(channel.clone(), 0));
        // An answer to a later call of the same connection says that this one has begun.
        assert_eq!(call(channel.clone(), 5).await.expect("answer"), 5);
        stopping.cancel();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(!served.is_finished());
        go_on.notify_one();
        assert_eq!(under_way.await.expect("task").expect("answer"), 0);
        drop(channel);
        served.await.expect("ended");
    }
}
