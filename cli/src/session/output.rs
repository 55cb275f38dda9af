//! Standard output and error: written by a thread of its own, so that a reader who pauses us does not stop signals.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};

use crate::client::reason;
use crate::error::{Failure, Result};
use crate::output::write_failure;

/// Pieces of output waiting for a slow reader.
const QUEUE: usize = 16;

pub(super) enum Piece {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// Writes pieces in the order they come, each whole and at once.
pub(super) struct Writer {
    pieces: Option<mpsc::Sender<Piece>>,
    /// Comes once: with the failure, or with success after the last piece.
    done: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self> {
        let open = |descriptor: std::os::fd::BorrowedFd<'_>| descriptor.try_clone_to_owned().map(File::from);
        let failed = |error: io::Error| Failure::new(format!("open standard output: {}", reason(&error)));
        let mut stdout = open(io::stdout().as_fd()).map_err(failed)?;
        let mut stderr = open(io::stderr().as_fd()).map_err(failed)?;
        let (pieces, mut queue) = mpsc::channel(QUEUE);
        let (outcome, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some(piece) = queue.blocking_recv() {
                result = match piece {
                    Piece::Stdout(bytes) => write_all(&mut stdout, &bytes),
                    // Whoever closes standard error does not want to read it; the program runs on.
                    Piece::Stderr(bytes) => write_all(&mut stderr, &bytes).or(Ok(())),
                };
                if result.is_err() {
                    break;
                }
            }
            // The session may have ended already.
            let _ = outcome.send(result);
        });
        Ok(Self { pieces: Some(pieces), done })
    }

    /// Queues a piece.
    pub(super) async fn piece(&mut self, piece: Piece) -> Result<()> {
        let sent = match &self.pieces {
            Some(pieces) => pieces.send(piece).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(self.failed().await) }
    }

    /// Resolves where writing fails.
    pub(super) async fn failed(&mut self) -> Failure {
        if self.pieces.is_none() {
            return std::future::pending().await;
        }
        let outcome = (&mut self.done).await;
        self.pieces = None;
        match outcome {
            Ok(Err(error)) => write_failure(&error),
            _ => Failure::new("write standard output: the writer has ended"),
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(&mut self) -> Result<()> {
        if self.pieces.take().is_none() {
            return Ok(());
        }
        match (&mut self.done).await {
            Ok(Err(error)) => Err(write_failure(&error)),
            _ => Ok(()),
        }
    }
}

/// As `Write::write_all`, also where somebody we share the terminal with made it non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut descriptors, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_non_blocking_pipe_gets_every_byte() {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let expected = bytes.clone();
        let writing = std::thread::spawn(move || write_all(&mut File::from(writer), &bytes));
        let mut reader = File::from(reader);
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        writing.join().unwrap().unwrap();
        assert_eq!(seen, expected);
    }
}
