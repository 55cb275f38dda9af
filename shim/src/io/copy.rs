//! Moving bytes between a process and its transports.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use rung_sys::poll::{self, Interest};
use tokio::io::unix::AsyncFd;

use crate::io::input::Input;
use crate::io::output::{Output, Stream};
use crate::io::streams::Claim;

/// Bytes moved at once: a pipe's whole buffer.
const CHUNK: usize = 64 << 10;

thread_local! {
    /// One buffer for all copies of this single-threaded process: it is only used between two waits.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where one output stream of a process goes.
#[derive(Debug)]
pub enum Sink {
    /// Thrown away.
    Null,
    /// A client's named pipe.
    Fifo(AsyncFd<OwnedFd>),
    /// A file, opened for appending.
    File(File),
    /// The process's log and attached clients.
    Log(Arc<Output>, Stream),
    /// A stream that a client has opened, or will open.
    Stream(Arc<Claim>),
}

/// Copies until every writer of `source` is gone, or the sink fails for good.
pub async fn output(source: AsyncFd<OwnedFd>, sink: Sink) {
    if let Sink::Fifo(fifo) = &sink
        && splice_all(&source, fifo).await
    {
        return;
    }
    copy_all(&source, &sink).await;
    if let Sink::Stream(claim) = &sink {
        claim.end();
    }
}

async fn copy_all(source: &AsyncFd<OwnedFd>, sink: &Sink) {
    loop {
        // Waiting for what is ready already does not yield, and a process that never stops writing would then keep this
        // thread from every request, the one to kill it included.
        tokio::task::yield_now().await;
        let Ok(mut ready) = source.readable().await else { return };
        let step = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(CHUNK, 0);
            match nix::unistd::read(source, scratch) {
                // EIO: the last process left the terminal.
                Ok(0) | Err(Errno::EIO) => Step::End,
                Ok(count) => sink.take(&scratch[..count]),
                Err(Errno::EAGAIN) => Step::NotReady,
                Err(Errno::EINTR) => Step::Next,
                Err(_) => Step::End,
            }
        });
        match step {
            Step::End => return,
            Step::NotReady => {
                // A quiet process keeps no buffer in memory.
                SCRATCH.take();
                ready.clear_ready();
            }
            Step::Next => {}
            Step::Rest(rest) => {
                if !sink.settle(&rest).await {
                    return;
                }
            }
        }
    }
}

/// What follows a read.
enum Step {
    Next,
    NotReady,
    End,
    /// These bytes (none: bytes the sink keeps itself) are to be waited for.
    Rest(Vec<u8>),
}

impl Sink {
    /// Takes a chunk as far as that goes without waiting.
    fn take(&self, chunk: &[u8]) -> Step {
        match self {
            Self::Null => Step::Next,
            Self::File(file) => {
                let mut file = file;
                match file.write_all(chunk) {
                    Ok(()) => Step::Next,
                    Err(error) => {
                        tracing::error!(%error, bytes = chunk.len(), "output file");
                        // Output is lost rather than the process stopped; a log:// destination can do otherwise.
                        Step::Next
                    }
                }
            }
            Self::Fifo(fifo) => match nix::unistd::write(fifo, chunk) {
                Ok(count) if count == chunk.len() => Step::Next,
                Ok(count) => Step::Rest(chunk[count..].to_vec()),
                Err(Errno::EAGAIN | Errno::EINTR) => Step::Rest(chunk.to_vec()),
                Err(_) => Step::End,
            },
            Self::Log(output, stream) => {
                if output.push(*stream, chunk) {
                    Step::Next
                } else {
                    Step::Rest(Vec::new())
                }
            }
            Self::Stream(_) => Step::Rest(chunk.to_vec()),
        }
    }

    /// Waits until `rest` is written; `false` where it never will be.
    async fn settle(&self, mut rest: &[u8]) -> bool {
        match self {
            Self::Null | Self::File(_) => true,
            Self::Log(output, _) => {
                output.settle().await;
                true
            }
            Self::Stream(claim) => {
                claim.send(rest).await;
                true
            }
            Self::Fifo(fifo) => {
                while !rest.is_empty() {
                    let Ok(mut ready) = fifo.writable().await else { return false };
                    match nix::unistd::write(fifo, rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(Errno::EAGAIN) => ready.clear_ready(),
                        Err(Errno::EINTR) => {}
                        Err(_) => return false,
                    }
                }
                true
            }
        }
    }
}

/// Moves pages from pipe to pipe without looking at them. `false` where the source is not a pipe.
async fn splice_all(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> bool {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    let mut moved = false;
    loop {
        tokio::task::yield_now().await;
        let Ok(mut ready) = source.readable().await else { return true };
        match splice(source, None, sink, None, CHUNK, flags) {
            Ok(0) => return true,
            Ok(_) => moved = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL) if !moved => return false,
            // Either end may be the one that is not ready; only asking tells which.
            Err(Errno::EAGAIN) => {
                let asked = poll::wait(&[(source.as_fd(), Interest::Read)], Some(std::time::Duration::ZERO));
                if asked.is_ok_and(|ready| ready.is_empty()) {
                    ready.clear_ready();
                    continue;
                }
                let Ok(mut room) = sink.writable().await else { return true };
                if matches!(splice(source, None, sink, None, CHUNK, flags), Err(Errno::EAGAIN)) {
                    room.clear_ready();
                }
            }
            Err(_) => return true,
        }
    }
}

/// Copies a client's FIFO to the process's standard input, then ends the input.
pub async fn input(source: AsyncFd<OwnedFd>, input: Arc<Input>) {
    loop {
        tokio::task::yield_now().await;
        let Ok(mut ready) = source.readable().await else { return };
        let chunk = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(CHUNK, 0);
            nix::unistd::read(&source, scratch).map(|count| scratch[..count].to_vec())
        });
        match chunk {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => {
                if !input.write(&chunk).await {
                    return;
                }
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    input.close();
}
