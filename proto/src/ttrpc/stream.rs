//! A streaming call as either end sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;
use tokio::sync::mpsc;

use crate::status::{Code, Status};
use crate::ttrpc::frame;

/// Messages held for a slow reader before the peer is made to wait.
pub(super) const WINDOW: usize = 64;

/// What arrives on a stream: messages, then how it ended.
pub(super) type Item = Result<Vec<u8>, Status>;

/// Both directions of a streaming call.
#[derive(Debug)]
pub struct Stream {
    receiver: mpsc::Receiver<Item>,
    sender: Sender,
}

/// The sending half of a streaming call; clones send on the same stream.
#[derive(Debug, Clone)]
pub struct Sender {
    stream: u32,
    writer: mpsc::Sender<Vec<u8>>,
    closed: Arc<AtomicBool>,
}

impl Stream {
    pub(super) fn new(stream: u32, writer: mpsc::Sender<Vec<u8>>, receiver: mpsc::Receiver<Item>) -> Self {
        Self { receiver, sender: Sender { stream, writer, closed: Arc::default() } }
    }

    /// The next message; none after the peer's last.
    ///
    /// # Errors
    /// How the peer ended the stream, and bytes that are not an `M`.
    pub async fn receive<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        match self.receiver.recv().await {
            None => Ok(None),
            Some(Err(status)) => Err(status),
            Some(Ok(bytes)) => M::decode(bytes.as_slice())
                .map(Some)
                .map_err(|error| Status::invalid(format!("ttrpc: decode a stream's message: {error}"))),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send<M: Message>(&self, message: &M) -> Result<(), Status> {
        self.sender.send(message).await
    }

    /// Says that no more messages follow from this end.
    ///
    /// # Errors
    /// As [`Sender::close`].
    pub async fn close_send(&self) -> Result<(), Status> {
        self.sender.close().await
    }

    /// A handle that only sends.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }
}

impl Sender {
    /// Sends one message; waits while the connection is congested.
    ///
    /// # Errors
    /// `Unavailable` where the connection is gone, `FailedPrecondition` after [`Sender::close`].
    pub async fn send<M: Message>(&self, message: &M) -> Result<(), Status> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Status::new(Code::FailedPrecondition, "ttrpc: stream is closed for sending"));
        }
        self.write(frame::encode(self.stream, frame::DATA, 0, message)?).await
    }

    /// Says that no more messages follow; a second time does nothing.
    ///
    /// # Errors
    /// `Unavailable` where the connection is gone.
    pub async fn close(&self) -> Result<(), Status> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let flags = frame::REMOTE_CLOSED | frame::NO_DATA;
        self.write(frame::encode_bytes(self.stream, frame::DATA, flags, &[])?).await
    }

    async fn write(&self, frame: Vec<u8>) -> Result<(), Status> {
        self.writer.send(frame).await.map_err(|_| Status::unavailable("ttrpc: connection closed"))
    }
}
