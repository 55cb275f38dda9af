//! The stream below a tar: bounded, handed out where it lies.

use std::io::{BufRead, ErrorKind};

use super::BLOCK;
use crate::error::{Error, Kind, Result};

pub(super) struct Source<R> {
    inner: R,
    /// Bytes in the buffer of `inner` that are counted.
    ready: usize,
    total: u64,
    limit: u64,
}

impl<R: BufRead> Source<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, ready: 0, total: 0, limit }
    }

    /// Takes in more, where nothing is left; false at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        let bytes = loop {
            match self.inner.fill_buf() {
                Ok(bytes) => break bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        };
        self.ready = bytes.len();
        self.total += bytes.len() as u64;
        if self.total > self.limit {
            let limit = self.limit;
            return Err(Error::new(
                Kind::ResourceExhausted,
                format!("layer unpacks to more than the {limit} bytes allowed"),
            ));
        }
        Ok(self.ready > 0)
    }

    /// Some bytes, at most `wanted`, at least one.
    pub(super) fn chunk(&mut self, wanted: u64) -> Result<&[u8]> {
        if self.ready == 0 && !self.fill()? {
            return Err(truncated());
        }
        let length = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.ready);
        // They are there already, so this reads nothing.
        let bytes = self.inner.fill_buf().map_err(|error| broken(&error))?;
        bytes.get(..length).ok_or_else(|| Error::internal("a buffer that is not read loses bytes"))
    }

    pub(super) fn consume(&mut self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.ready);
        self.inner.consume(count);
        self.ready -= count;
    }

    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let length = self.chunk(count)?.len() as u64;
            self.consume(length);
            count -= length;
        }
        Ok(())
    }

    pub(super) fn read_exact(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let chunk = self.chunk(out.len() as u64)?;
            let length = chunk.len();
            out[..length].copy_from_slice(chunk);
            self.consume(length as u64);
            out = &mut out[length..];
        }
        Ok(())
    }

    /// Reads one block; false where the stream ends before it.
    pub(super) fn block(&mut self, out: &mut [u8; BLOCK]) -> Result<bool> {
        if self.ready == 0 && !self.fill()? {
            return Ok(false);
        }
        self.read_exact(out)?;
        Ok(true)
    }

    pub(super) fn drain(&mut self) -> Result<()> {
        while self.ready > 0 || self.fill()? {
            self.consume(self.ready as u64);
        }
        Ok(())
    }

    /// How many bytes there were.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

fn truncated() -> Error {
    Error::new(Kind::DataLoss, "layer ends in the middle of a file: it is truncated")
}

/// A failed read: of the stream itself with its own kind, or of damaged compression.
fn broken(error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => truncated(),
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => {
            Error::new(Kind::DataLoss, format!("layer cannot be unpacked: {error}"))
        }
        _ if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => {
            Error::new(Kind::DataLoss, format!("layer cannot be read: {error}"))
        }
        _ => Error::internal(error.to_string()),
    }
}
