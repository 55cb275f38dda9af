//! The answering end of a streaming call.
//!
//! Messages that the service has not taken are bounded: a client that sends more than its peer gives it room for loses its
//! stream, and no other call waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;
use tokio::sync::mpsc;

use crate::status::{Code, Status};
use crate::ttrpc::frame;

/// Bytes of one stream that may wait to be taken.
const MAX_BEHIND: usize = 1 << 20;
/// What a message that waits takes beside its bytes.
const OVERHEAD: usize = 128;

/// One streaming call, as its service sees it.
#[derive(Debug)]
pub struct Stream {
    outlet: Outlet,
    messages: mpsc::UnboundedReceiver<Option<Vec<u8>>>,
    behind: Arc<AtomicUsize>,
}

/// The way to the client of a stream; clones are the same.
#[derive(Debug, Clone)]
pub struct Outlet {
    number: u32,
    writer: mpsc::Sender<Vec<u8>>,
}

/// Where the connection puts what comes for a stream.
#[derive(Debug)]
pub(super) struct Inlet {
    messages: mpsc::UnboundedSender<Option<Vec<u8>>>,
    ended: bool,
    behind: Arc<AtomicUsize>,
}

impl Stream {
    /// Stream `number` of the connection that `writer` writes to.
    pub(super) fn new(number: u32, writer: mpsc::Sender<Vec<u8>>) -> (Self, Inlet) {
        let (sender, messages) = mpsc::unbounded_channel();
        let behind = Arc::<AtomicUsize>::default();
        let inlet = Inlet { messages: sender, ended: false, behind: behind.clone() };
        (Self { outlet: Outlet { number, writer }, messages, behind }, inlet)
    }

    /// The client's next message; `None` after its last. What it sent before it went comes first.
    ///
    /// # Errors
    /// `InvalidArgument` where it is no `M`; `Unavailable` where the connection is gone.
    pub async fn receive<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let message = self.messages.recv().await.ok_or_else(|| Status::unavailable("ttrpc: connection closed"))?;
        let Some(message) = message else { return Ok(None) };
        self.behind.fetch_sub(message.len() + OVERHEAD, Ordering::Relaxed);
        let decoded = M::decode(message.as_slice());
        decoded.map(Some).map_err(|error| Status::invalid(format!("ttrpc: decode a stream's message: {error}")))
    }

    /// The way to the client.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }
}

impl Outlet {
    /// Sends a message, once the connection has room for it.
    ///
    /// # Errors
    /// `ResourceExhausted` for one that is too large, `Unavailable` where the connection is gone.
    pub async fn send<M: Message>(&self, message: &M) -> Result<(), Status> {
        let frame = frame::encode(self.number, frame::DATA, 0, message)?;
        self.writer.send(frame).await.map_err(|_| Status::unavailable("ttrpc: connection closed"))
    }
}

impl Inlet {
    /// Takes a message.
    ///
    /// # Errors
    /// `ResourceExhausted` where too much waits already, `InvalidArgument` after the client's last word.
    pub(super) fn push(&self, message: Vec<u8>) -> Result<(), Status> {
        if self.ended {
            return Err(Status::invalid("ttrpc: a message comes after the last one of its stream"));
        }
        let size = message.len() + OVERHEAD;
        if self.behind.fetch_add(size, Ordering::Relaxed) + size > MAX_BEHIND {
            let text = format!("ttrpc: more than {MAX_BEHIND} bytes of a stream wait to be taken");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        // Fails where the service has just ended; nobody misses the message.
        let _ = self.messages.send(Some(message));
        Ok(())
    }

    /// The client sends nothing more.
    pub(super) fn end(&mut self) {
        if !self.ended {
            let _ = self.messages.send(None);
        }
        self.ended = true;
    }
}
