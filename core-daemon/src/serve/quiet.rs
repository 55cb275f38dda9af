//! Sockets that wake nobody without need.
//!
//! Whoever waits on a socket to read it is usually told as well when it can be written to, and the kernel says that of a unix
//! socket whenever the other end has read something: a daemon that answers thousands of small calls would be woken by each
//! client that takes its answer. Here nobody is told of room to write before there was none.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A unix socket.
#[derive(Debug)]
pub(super) struct Quiet {
    socket: AsyncFd<UnixStream>,
    /// The same socket, watched for room to write, once there was none.
    room: Option<AsyncFd<UnixStream>>,
}

impl Quiet {
    /// A socket that is connected. To be called where tokio runs.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(super) fn new(socket: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self { socket: watch(socket.into_std()?, Interest::READABLE)?, room: None })
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &self.room {
                let mut ready = ready!(room.poll_write_ready(context))?;
                match ready.try_io(|socket| write(socket.get_ref())) {
                    Ok(written) => return Poll::Ready(written),
                    Err(_full) => continue,
                }
            }
            match write(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let same = self.socket.get_ref().try_clone()?;
                    self.room = Some(watch(same, Interest::WRITABLE)?);
                }
                written => return Poll::Ready(written),
            }
        }
    }
}

#[allow(
    deprecated,
    reason = "deprecated for types whose descriptor may change; a socket of the standard library keeps its own for life"
)]
fn watch(socket: UnixStream, what: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, what)
}

impl AsyncRead for Quiet {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let place = into.initialize_unfilled();
            let asked = place.len();
            match ready.try_io(|socket| socket.get_ref().read(place)) {
                Ok(Ok(read)) => {
                    if read > 0 && read < asked {
                        // There was no more: the next to read need not try first.
                        ready.clear_ready();
                    }
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_empty) => {}
            }
        }
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |mut socket| socket.write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn pair() -> (Quiet, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().expect("pair");
        (Quiet::new(ours).expect("watch"), theirs)
    }

    #[tokio::test]
    async fn much_goes_both_ways_and_ends() {
        let (mut ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..8_u32 << 20).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[2]).collect();
        let back = sent.clone();
        let other = tokio::spawn(async move {
            let mut got = vec![0; back.len()];
            theirs.read_exact(&mut got).await.expect("read");
            assert!(got == back, "the same bytes");
            theirs.write_all(&got).await.expect("write");
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await.expect("end");
            assert!(rest.is_empty());
        });
        ours.write_all(&sent).await.expect("write");
        assert!(ours.room.is_some(), "more than a socket holds");
        let mut got = vec![0; sent.len()];
        ours.read_exact(&mut got).await.expect("read");
        assert!(got == sent, "the same bytes");
        ours.shutdown().await.expect("shut down");
        other.await.expect("other end");
        assert_eq!(ours.read(&mut got).await.expect("end"), 0);
    }

    #[tokio::test]
    async fn what_comes_before_the_end_is_read_and_room_is_not_watched_without_need() {
        let (mut ours, mut theirs) = pair();
        ours.write_all(b"an answer").await.expect("write");
        assert!(ours.room.is_none());
        theirs.write_all(b"a question").await.expect("write");
        theirs.shutdown().await.expect("shut down");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let mut all = Vec::new();
        let end = tokio::time::timeout(std::time::Duration::from_secs(5), ours.read_to_end(&mut all)).await;
        assert_eq!((end.expect("in time").expect("end"), all.as_slice()), (10, &b"a question"[..]));
    }
}
