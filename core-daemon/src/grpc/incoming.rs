//! What a client sends piece by piece, as a reader on a thread that may block.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Reads pieces until there are no more, or one of them is an error.
pub(super) struct Incoming {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    now: Bytes,
}

impl Incoming {
    pub(super) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { pieces, now: Bytes::new() }
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece?,
                None => return Ok(0),
            }
        }
        let length = self.now.len().min(out.len());
        out[..length].copy_from_slice(&self.now[..length]);
        self.now.advance(length);
        Ok(length)
    }
}
