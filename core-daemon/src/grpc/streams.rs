//! `containerd.services.streaming.v1.Streaming`, and its streams by name, for the calls that are told to use them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task;

use gantry_proto::any;
use gantry_proto::containerd::services::streaming::v1::StreamInit;
use gantry_proto::containerd::services::streaming::v1::streaming_server::Streaming as Service;
use gantry_proto::namespace::Namespace;
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use crate::context::Context;
use crate::error::{Error, Kind, Result};

/// Messages that wait, either way.
const QUEUE: usize = 16;
/// Streams that there may be at once.
const MAX_STREAMS: usize = 4096;

/// The streams that clients have opened. Clones are the same.
#[derive(Clone, Default)]
pub struct Streams {
    known: Arc<Mutex<HashMap<Key, Arc<Stream>>>>,
}

type Key = (Namespace, String);

/// One stream: messages both ways.
pub struct Stream {
    from_client: tokio::sync::Mutex<mpsc::Receiver<Any>>,
    /// None once it is closed.
    to_client: Mutex<Option<mpsc::Sender<Result<Any, Status>>>>,
}

impl Streams {
    /// The stream that a client has opened under `id`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, ctx: &Context, id: &str) -> Result<Arc<Stream>> {
        let found = self.lock().get(&(ctx.namespace.clone(), id.to_owned())).cloned();
        found.ok_or_else(|| Error::not_found(format!("stream {id:?}: not found")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Stream>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, key: Key, stream: Arc<Stream>) -> Result<()> {
        let mut known = self.lock();
        if known.len() >= MAX_STREAMS {
            return Err(Error::new(Kind::ResourceExhausted, format!("more than {MAX_STREAMS} streams")));
        }
        match known.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                Err(Error::already_exists(format!("stream {:?}: already exists", entry.key().1)))
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(stream);
                Ok(())
            }
        }
    }
}

impl Stream {
    /// The next message; none where the client has no more.
    pub async fn receive(&self) -> Option<Any> {
        self.from_client.lock().await.recv().await
    }

    /// The next message, which must be an `M`.
    ///
    /// # Errors
    /// `InvalidArgument` for another.
    pub async fn message<M: Message + Name + Default>(&self) -> Result<Option<M>> {
        let Some(message) = self.receive().await else { return Ok(None) };
        any::unpack(&message).map(Some).map_err(|error| Error::invalid(format!("stream: {error}")))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `Canceled` where the client is gone, or the stream closed.
    pub async fn send<M: Message + Name>(&self, message: &M) -> Result<()> {
        let gone = || Error::new(Kind::Canceled, "stream: the client is gone");
        let sender = self.to_client.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(gone)?;
        sender.send(Ok(any::pack(message))).await.map_err(|_| gone())
    }

    /// Ends it: the client sees its end after everything that was sent.
    pub fn close(&self) {
        self.to_client.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
impl Stream {
    /// A stream, and what its client hears of it.
    pub(super) fn fake() -> (Arc<Self>, mpsc::Receiver<Result<Any, Status>>) {
        let (to_client, answers) = mpsc::channel(QUEUE);
        let from_client = mpsc::channel(1).1.into();
        (Arc::new(Self { from_client, to_client: Mutex::new(Some(to_client)) }), answers)
    }
}

/// The service.
pub struct StreamingService {
    streams: Streams,
}

impl StreamingService {
    /// The service that enters what is opened into `streams`.
    pub fn new(streams: Streams) -> Self {
        Self { streams }
    }
}

#[tonic::async_trait]
impl Service for StreamingService {
    type StreamStream = Answers<Any>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let ctx = Context::of(request.metadata())?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.ok_or_else(|| Error::invalid("stream: the first message names it"))?;
        let init: StreamInit = any::unpack(&first).map_err(|error| Error::invalid(format!("stream: {error}")))?;
        let (to_client, answers) = mpsc::channel(QUEUE);
        let (into, from_client) = mpsc::channel(QUEUE);
        // Whoever waits for this knows that the stream can be named now.
        let _ = to_client.try_send(Ok(any::pack(&())));
        let stream = Stream { from_client: from_client.into(), to_client: Mutex::new(Some(to_client)) };
        let key = (ctx.namespace, init.id);
        self.streams.register(key.clone(), Arc::new(stream))?;
        let ended = CancellationToken::new();
        let answers = ReceiverStream::new(answers);
        let open = Open { answers, streams: self.streams.clone(), key, _ended: ended.clone().drop_guard() };
        tokio::spawn(async move {
            let pass = async {
                while let Ok(Some(message)) = messages.message().await {
                    if into.send(message).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = pass => {}
                () = ended.cancelled() => {}
            }
        });
        Ok(Response::new(Box::pin(open)))
    }
}

/// What a client reads; dropped when it is at its end or gone, and then the stream has no name any more.
struct Open {
    answers: ReceiverStream<Result<Any, Status>>,
    streams: Streams,
    key: Key,
    _ended: DropGuard,
}

impl futures_util::Stream for Open {
    type Item = Result<Any, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Option<Self::Item>> {
        Pin::new(&mut self.answers).poll_next(cx)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.key);
    }
}
