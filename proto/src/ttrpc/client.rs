//! The calling end of a connection.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::status::{Code, Status};
use crate::ttrpc::frame::{self, Header, Incoming};
use crate::ttrpc::{Context, Response};

/// Frames queued for the socket before callers wait.
const QUEUE: usize = 64;

/// How a call ended.
pub(super) type Item = Result<Vec<u8>, Status>;

/// A connection to a ttrpc server; clones share it. Calls run at the same time.
///
/// The connection closes when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    calls: Arc<Mutex<Calls>>,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

/// Calls that wait for an answer.
#[derive(Debug, Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<Item>>,
    closed: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    /// Connects to the unix socket at `path`.
    ///
    /// # Errors
    /// Those of `connect`.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// A client over a connected socket. Needs a running tokio runtime.
    pub fn new(socket: UnixStream) -> Self {
        let (read, write) = socket.into_split();
        let (writer, frames) = mpsc::channel(QUEUE);
        tokio::spawn(write_frames(write, frames));
        Self::over(read, writer)
    }

    /// A client whose frames somebody else sends.
    pub(super) fn over<R: AsyncRead + Unpin + Send + 'static>(read: R, writer: mpsc::Sender<Vec<u8>>) -> Self {
        let (closing, closed) = watch::channel(false);
        let calls = Arc::<Mutex<Calls>>::default();
        let reader = tokio::spawn(receive(read, calls.clone(), closing));
        Self { shared: Arc::new(Shared { calls, closed, reader }), writer }
    }

    /// Calls `method` of `service`.
    ///
    /// # Errors
    /// What the server answers; `Unavailable` where the connection is gone, `DeadlineExceeded` after the context's
    /// timeout, `Internal` where the answer is not a `Resp`.
    pub async fn call<Req: Message, Resp: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        context: &Context,
    ) -> Result<Resp, Status> {
        let payload = self.call_bytes(service, method, request.encode_to_vec(), context).await?;
        Resp::decode(payload.as_slice()).map_err(|error| {
            Status::new(Code::Internal, format!("ttrpc: {service}/{method}: decode the response: {error}"))
        })
    }

    /// Calls `method` of `service` with an encoded message; the answer is encoded too.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_bytes(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        context: &Context,
    ) -> Result<Vec<u8>, Status> {
        let request = context.request(service, method, payload);
        let (sender, answer) = oneshot::channel();
        let work = async {
            let stream = self.send_request(&request, sender).await?;
            let _forget = Forget { calls: &self.shared.calls, stream };
            answer.await.unwrap_or_else(|_| Err(closed()))
        };
        match context.timeout() {
            None => work.await,
            Some(timeout) => tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
                let text = format!("ttrpc: {service}/{method}: no answer within {timeout:?}");
                Err(Status::new(Code::DeadlineExceeded, text))
            }),
        }
    }

    /// Returns when the connection is closed, by either end.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that the reader is gone, and the connection with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// True after the connection closed.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Numbers a call, registers who waits for it and queues its request. The three are one step, because servers
    /// insist that numbers ascend on the wire.
    async fn send_request(
        &self,
        request: &crate::ttrpc::Request,
        waiting: oneshot::Sender<Item>,
    ) -> Result<u32, Status> {
        let permit = self.writer.reserve().await.map_err(|_| closed())?;
        let mut calls = self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.closed {
            return Err(closed());
        }
        let stream = if calls.last == 0 { 1 } else { calls.last.checked_add(2).ok_or_else(closed)? };
        let frame = frame::encode(stream, frame::REQUEST, 0, request)?;
        calls.last = stream;
        calls.waiting.insert(stream, waiting);
        permit.send(frame);
        Ok(stream)
    }
}

/// Takes a call off the table when its caller stops waiting, by answer, timeout or cancellation.
struct Forget<'a> {
    calls: &'a Mutex<Calls>,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.stream);
    }
}

fn closed() -> Status {
    Status::unavailable("ttrpc: connection closed")
}

/// Writes queued frames until every sender is gone or the socket fails. Frames go through a queue so that a caller that
/// is cancelled cannot leave half a frame on the wire.
pub(super) async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if socket.write_all(&frame).await.is_err() {
            break;
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(mut socket: R, calls: Arc<Mutex<Calls>>, closing: watch::Sender<bool>) {
    // Any error ends the connection: the position in the byte stream is lost.
    while let Ok(Some(incoming)) = frame::read(&mut socket).await {
        let (header, item) = match incoming {
            Incoming::Oversize(header) => {
                let length = usize::try_from(header.length).unwrap_or(usize::MAX);
                (Header { kind: frame::RESPONSE, ..header }, Err(frame::oversize(length)))
            }
            Incoming::Frame(header, message) if header.kind == frame::RESPONSE => (header, response(&message)),
            Incoming::Frame(header, message) => (header, Ok(message)),
        };
        deliver(&calls, header, item);
    }
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    calls.closed = true;
    for (_, waiting) in calls.waiting.drain() {
        drop(waiting.send(Err(closed())));
    }
    closing.send_replace(true);
}

/// The payload or the status of a response frame.
fn response(message: &[u8]) -> Item {
    let response = Response::decode(message)
        .map_err(|error| Status::new(Code::Internal, format!("ttrpc: decode a response: {error}")))?;
    match response.status {
        Some(status) if status.code != 0 => Err(status.into()),
        _ => Ok(response.payload),
    }
}

/// Hands a frame to the call it belongs to. Frames of calls nobody waits for any more are dropped.
fn deliver(calls: &Mutex<Calls>, header: Header, item: Item) {
    let waiting = calls.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&header.stream);
    let refused = || Err(Status::new(Code::Internal, "ttrpc: a call is answered with another frame than a response"));
    if let Some(waiting) = waiting {
        // Fails where the caller has just gone.
        let _ = waiting.send(if header.kind == frame::RESPONSE { item } else { refused() });
    }
}
