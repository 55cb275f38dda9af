//! Bytes over a stream, as Data messages that the receiving side makes room for with WindowUpdate.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use gantry_proto::any;
use gantry_proto::containerd::types::transfer::{Data, WindowUpdate};
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};
use crate::grpc::incoming::Incoming;
use crate::grpc::streams::Stream;

/// Room that a sender is given ahead.
const WINDOW: i32 = 1 << 20;
/// Pieces that wait between a stream and the thread at its other side.
const QUEUE: usize = 8;
/// Most bytes in one message.
const PIECE: usize = 64 << 10;
/// A client in Go gives room whenever it has less than this left, once it has taken what it got.
const LEAST_WINDOW: i64 = 64 << 10;

/// Reads what a client sends, on a thread that may block. The task that fills it ends with it.
pub(super) fn reader(stream: Arc<Stream>) -> Incoming {
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let outcome = receive(&stream, &sender).await;
        if let Err(error) = outcome {
            let _ = sender.send(Err(io::Error::other(error.to_string()))).await;
        }
        stream.close();
    });
    Incoming::new(pieces)
}

async fn receive(stream: &Stream, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
    let mut window = 0;
    loop {
        if window < WINDOW / 2 {
            // Where the client has sent everything already, it hears nothing any more: that is no failure.
            if stream.send(&WindowUpdate { update: WINDOW }).await.is_ok() {
                window += WINDOW;
            }
        }
        let Some(Data { data }) = stream.message().await? else { return Ok(()) };
        window = window.saturating_sub(i32::try_from(data.len()).unwrap_or(i32::MAX));
        if to.send(Ok(data)).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes to a client from a thread that may block; what is written goes out through the returned task, which ends once
/// the writer is dropped and the client has taken everything.
pub(super) fn writer(stream: Arc<Stream>) -> (StreamWriter, tokio::task::JoinHandle<Result<()>>) {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let task = tokio::spawn(async move {
        let sent = send(&stream, pieces).await;
        stream.close();
        sent
    });
    (StreamWriter { pieces: sender, waiting: Vec::with_capacity(PIECE) }, task)
}

async fn send(stream: &Stream, mut pieces: mpsc::Receiver<Vec<u8>>) -> Result<()> {
    let mut outgoing = Outgoing { stream, granted: 0, sent: 0 };
    // One piece is kept back: the last one goes out when the client has taken everything before it, whole, so that it
    // gives room once more after it. By that we know that it has that, too, and does not leave before.
    let mut held: Option<Vec<u8>> = None;
    while let Some(piece) = pieces.recv().await {
        if let Some(before) = held.replace(piece) {
            outgoing.piece(before).await?;
        }
    }
    if let Some(last) = held {
        outgoing.room_for(LEAST_WINDOW).await?;
        outgoing.piece(last).await?;
        outgoing.room_for(LEAST_WINDOW).await?;
    }
    Ok(())
}

struct Outgoing<'a> {
    stream: &'a Stream,
    granted: i64,
    sent: i64,
}

impl Outgoing<'_> {
    async fn piece(&mut self, mut piece: Vec<u8>) -> Result<()> {
        while !piece.is_empty() {
            self.room_for(1).await?;
            let room = usize::try_from(self.granted - self.sent).unwrap_or(0);
            let rest = piece.split_off(room.min(piece.len()));
            self.sent += i64::try_from(piece.len()).unwrap_or(i64::MAX);
            self.stream.send(&Data { data: piece.into() }).await?;
            piece = rest;
        }
        Ok(())
    }

    async fn room_for(&mut self, wanted: i64) -> Result<()> {
        while self.granted - self.sent < wanted {
            let message = self.stream.receive().await;
            let message = message.ok_or_else(|| Error::new(Kind::Canceled, "stream: the client is gone"))?;
            let update: WindowUpdate =
                any::unpack(&message).map_err(|error| Error::invalid(format!("stream: {error}")))?;
            self.granted = self.granted.saturating_add(i64::from(update.update.max(0)));
        }
        Ok(())
    }
}

/// See [`writer`].
pub(super) struct StreamWriter {
    pieces: mpsc::Sender<Vec<u8>>,
    waiting: Vec<u8>,
}

impl StreamWriter {
    fn pass_on(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE));
        self.pieces.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..length]);
        if self.waiting.len() == PIECE {
            self.pass_on()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}
