//! The answering end of a connection.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::status::{Code, Status};
use crate::ttrpc::client::{Item, write_frames};
use crate::ttrpc::frame::{self, Header, Incoming};
use crate::ttrpc::stream::Inlet;
use crate::ttrpc::{Context, Request, Response, Stream};

/// Calls of one connection that may run at once; each waiting client of a container is one.
const MAX_CALLS: usize = 4096;
/// Frames queued for the socket before calls wait to answer.
const QUEUE: usize = 64;

/// What answers the calls of a connection.
pub trait Service: Send + Sync + 'static {
    /// Answers a call with an encoded message.
    ///
    /// The future is dropped when the call's timeout passes or its connection closes, so that work that must not stop
    /// half-way belongs in a task of its own. Unknown services and methods are answered with [`unknown`].
    fn call(
        &self,
        service: &str,
        method: &str,
        payload: &[u8],
        context: &Context,
    ) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;

    /// Serves a call whose client sends any number of messages and gets any number; the stream ends with the future, which is
    /// dropped like that of [`Service::call`]. A service without such calls leaves it as it is.
    fn stream(&self, service: &str, method: &str, _stream: Stream) -> impl Future<Output = Result<(), Status>> + Send {
        let refused = unknown(service, method);
        async move { Err(refused) }
    }
}

/// The answer to a call of something that does not exist.
pub fn unknown(service: &str, method: &str) -> Status {
    Status::unimplemented(format!("ttrpc: no method {method} in service {service}"))
}

/// Decodes a call's message.
///
/// # Errors
/// `InvalidArgument` where the payload is not an `M`.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| Status::invalid(format!("ttrpc: decode the request: {error}")))
}

/// Answers the calls of one connection until the peer closes it. Calls run at the same time; those still running at the
/// end are dropped.
///
/// # Errors
/// Those of the socket.
pub async fn serve_connection<S: Service>(socket: UnixStream, service: Arc<S>) -> io::Result<()> {
    let (read, write) = socket.into_split();
    let (writer, frames) = mpsc::channel(QUEUE);
    let mut calls = JoinSet::new();
    calls.spawn(write_frames(write, frames));
    serve(read, writer, service, calls).await
}

/// The same where somebody else sends the frames; `calls` may have work that is to end with the connection.
pub(super) async fn serve<R: AsyncRead + Unpin, S: Service>(
    mut read: R,
    writer: mpsc::Sender<Vec<u8>>,
    service: Arc<S>,
    calls: JoinSet<()>,
) -> io::Result<()> {
    let mut connection = Connection { service, writer, calls, open: Open::default(), last: 0 };
    loop {
        // Finished calls are collected as new ones come; between calls at most MAX_CALLS results of no size wait here.
        while connection.calls.try_join_next().is_some() {}
        match frame::read(&mut read).await? {
            None => return Ok(()),
            Some(Incoming::Oversize(header)) => {
                let length = usize::try_from(header.length).unwrap_or(usize::MAX);
                connection.refuse(header.stream, frame::oversize(length)).await;
            }
            Some(Incoming::Frame(header, message)) => match header.kind {
                _ if header.stream % 2 == 0 => {
                    let text = format!("ttrpc: stream {} of a client is not odd", header.stream);
                    connection.refuse(header.stream, Status::invalid(text)).await;
                }
                frame::REQUEST => connection.request(header, &message).await,
                frame::DATA => connection.data(header, message).await,
                // Types of the future are to be ignored.
                _ => {}
            },
        }
    }
}

struct Connection<S> {
    service: Arc<S>,
    writer: mpsc::Sender<Vec<u8>>,
    calls: JoinSet<()>,
    open: Open,
    last: u32,
}

/// The streaming calls that go on, by their numbers.
type Open = Arc<Mutex<HashMap<u32, (Inlet, Option<AbortHandle>)>>>;

impl<S: Service> Connection<S> {
    async fn refuse(&self, stream: u32, status: Status) {
        respond(&self.writer, stream, Err(status)).await;
    }

    async fn request(&mut self, header: Header, message: &[u8]) {
        let stream = header.stream;
        if stream <= self.last {
            let text = format!("ttrpc: stream {stream} follows stream {}; numbers must ascend", self.last);
            return self.refuse(stream, Status::invalid(text)).await;
        }
        self.last = stream;
        let request = match decode::<Request>(message) {
            Ok(request) => request,
            Err(status) => return self.refuse(stream, status).await,
        };
        if self.calls.len() > MAX_CALLS {
            let text = format!("ttrpc: {MAX_CALLS} calls of this connection are running already");
            return self.refuse(stream, Status::new(Code::ResourceExhausted, text)).await;
        }
        if header.flags & frame::REMOTE_OPEN != 0 {
            return self.open(stream, request);
        }
        // One message, and then many answers, is a kind of call that no service here has.
        if header.flags & frame::REMOTE_CLOSED != 0 {
            return self.refuse(stream, unknown(&request.service, &request.method)).await;
        }
        let (service, writer) = (self.service.clone(), self.writer.clone());
        self.calls.spawn(async move {
            let answer = answer(&*service, &request).await;
            respond(&writer, stream, answer).await;
        });
    }

    /// Begins a streaming call.
    fn open(&mut self, number: u32, request: Request) {
        let (service, writer, open) = (self.service.clone(), self.writer.clone(), self.open.clone());
        let (stream, inlet) = Stream::new(number, writer.clone());
        if !request.payload.is_empty() {
            // The first message may come with the request; there is room for one.
            let _ = inlet.push(request.payload);
        }
        lock(&open).insert(number, (inlet, None));
        let task = self.calls.spawn(async move {
            let ended = service.stream(&request.service, &request.method, stream).await;
            // Whoever still sends to it is not told that it is gone: the end is under way.
            lock(&open).remove(&number);
            match ended {
                Ok(()) => finish(&writer, number).await,
                Err(status) => respond(&writer, number, Err(status)).await,
            }
        });
        if let Some((_, abort)) = lock(&self.open).get_mut(&number) {
            *abort = Some(task);
        }
    }

    /// A message of a stream, or its client's last word.
    async fn data(&mut self, header: Header, message: Vec<u8>) {
        let pushed = match lock(&self.open).get_mut(&header.stream) {
            Some((inlet, _)) => {
                let pushed = if header.flags & frame::NO_DATA == 0 { inlet.push(message) } else { Ok(()) };
                if header.flags & frame::REMOTE_CLOSED != 0 {
                    inlet.end();
                }
                pushed
            }
            // The last words of one that has ended, or was refused, need no answer.
            None if header.stream <= self.last || header.flags & frame::REMOTE_CLOSED != 0 => Ok(()),
            None => Err(Status::invalid(format!("ttrpc: stream {} is not open", header.stream))),
        };
        if let Err(status) = pushed {
            let ended = lock(&self.open).remove(&header.stream);
            if let Some((_, Some(task))) = ended {
                task.abort();
            }
            self.refuse(header.stream, status).await;
        }
    }
}

/// Ends a stream well, after everything that was sent on it.
async fn finish(writer: &mpsc::Sender<Vec<u8>>, stream: u32) {
    if let Ok(frame) = frame::encode(stream, frame::DATA, frame::REMOTE_CLOSED | frame::NO_DATA, &()) {
        // Fails only where the connection is gone, and its client with it.
        let _ = writer.send(frame).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer<S: Service>(service: &S, request: &Request) -> Item {
    let context = Context::of(request);
    let call = service.call(&request.service, &request.method, &request.payload, &context);
    let Some(timeout) = context.timeout() else { return call.await };
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| {
        let text = format!("{}/{}: not done within {timeout:?}", request.service, request.method);
        Err(Status::new(Code::DeadlineExceeded, text))
    })
}

async fn respond(writer: &mpsc::Sender<Vec<u8>>, stream: u32, answer: Item) {
    let response = match answer {
        Ok(payload) => Response { status: None, payload },
        Err(status) => Response { status: Some(status.into()), payload: Vec::new() },
    };
    let frame = frame::encode(stream, frame::RESPONSE, 0, &response).or_else(|status| {
        let response = Response { status: Some(status.into()), payload: Vec::new() };
        frame::encode(stream, frame::RESPONSE, 0, &response)
    });
    if let Ok(frame) = frame {
        // Fails only where the connection is gone, and its caller with it.
        let _ = writer.send(frame).await;
    }
}
