//! Answers that reach their client in one piece.
//!
//! The HTTP/2 library writes each frame by itself, and no frame is longer than 16 KiB unless the client asks for that. A client
//! would be woken by the first piece of a list and find it in six, with a call of the kernel for each on either side. Here what
//! the library writes in one turn of a connection's task is written together, at the end of the turn.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held at most: lists of hundreds of pods are shorter.
const MOST: usize = 96 << 10;

thread_local! {
    /// Memory for what is held, which is written before the thread turns to another connection unless the client is slow.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection whose task calls [`Gather::end_turn`] at the end of each turn. Clones are the same one.
#[derive(Debug)]
pub(super) struct Gather<S>(Arc<Mutex<Held<S>>>);

#[derive(Debug)]
struct Held<S> {
    inner: S,
    /// Not written yet, from `written` on.
    bytes: Vec<u8>,
    written: usize,
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Gather<S> {
    pub(super) fn new(inner: S) -> Self {
        Self(Arc::new(Mutex::new(Held { inner, bytes: Vec::new(), written: 0 })))
    }

    fn held(&self) -> MutexGuard<'_, Held<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what the turn has left. The task is woken when there is room for what could not be written; an error is also the
    /// library's, with its next write.
    pub(super) fn end_turn(&self, context: &mut Context<'_>) {
        let _ = self.held().drain(context);
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, &self.bytes[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        // A connection that is idle holds no memory.
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.written = 0;
        if bytes.capacity() > 0 {
            SPARE.set(bytes);
        }
        Poll::Ready(Ok(()))
    }

    fn hold(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if self.bytes.len() + all > MOST {
            ready!(self.drain(context))?;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
        }
        let mut taken = 0;
        for piece in pieces {
            let some = piece.len().min(MOST - self.bytes.len());
            self.bytes.extend_from_slice(&piece[..some]);
            taken += some;
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.held().inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.held().hold(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.held().hold(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// At the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held();
        ready!(held.drain(context))?;
        Pin::new(&mut held.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    async fn end_turn(gather: &Gather<UnixStream>) {
        poll_fn(|context| {
            gather.end_turn(context);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_a_turn_writes_arrives_together_at_its_end() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let mut gather = Gather::new(ours);
        let handle = gather.clone();
        for piece in [vec![1; 9], vec![2; 16 << 10], vec![3; 100]] {
            gather.write_all(&piece).await.expect("write");
            gather.flush().await.expect("flush");
        }
        let mut all = vec![0; 64 << 10];
        assert_eq!(theirs.try_read(&mut all).expect_err("not yet").kind(), io::ErrorKind::WouldBlock);
        end_turn(&handle).await;
        theirs.readable().await.expect("something");
        assert_eq!(theirs.try_read(&mut all).expect("read"), 9 + (16 << 10) + 100);
        assert!(all.starts_with(&[1; 9]) && all[9 + (16 << 10)] == 3);
        assert_eq!(handle.held().bytes.capacity(), 0, "an idle connection holds nothing");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_and_makes_the_writer_wait() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let mut gather = Gather::new(ours);
        let handle = gather.clone();
        let sent: Vec<u8> = (0..4_u32 << 20).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[2]).collect();
        let (mut written, mut waited) = (0, false);
        let write_all = poll_fn(|context| {
            while written < sent.len() {
                let piece = &sent[written..(written + (20 << 10)).min(sent.len())];
                let Poll::Ready(some) = Pin::new(&mut gather).poll_write(context, piece) else {
                    waited = true;
                    return Poll::Pending;
                };
                written += some.expect("write");
                assert!(handle.held().bytes.len() <= MOST);
            }
            Pin::new(&mut gather).poll_shutdown(context)
        });
        let mut got = Vec::new();
        let read_all = async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            theirs.read_to_end(&mut got).await
        };
        let (shut, read) = tokio::join!(write_all, read_all);
        shut.expect("shut down");
        read.expect("read");
        assert!(got == sent && waited);
    }
}
