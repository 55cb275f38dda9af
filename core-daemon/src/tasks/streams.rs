//! The streams of a process, through the attach socket that its shim made for it: see `gantry_proto::stdio`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::stdio::{FrameKind, MAX_FRAME};
use rung_sys::socket_path::SocketPath;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};

use crate::error::{Doing, Error, Kind, Result};

/// How long output is read after the process has ended: something else may hold its streams open.
pub const OUTPUT_AFTER_END: Duration = Duration::from_secs(10);
/// Bytes that are read ahead for a slow reader once the process has ended: two full pipes of the largest size that an
/// ordinary process can make, and what the socket holds.
const READ_AHEAD: usize = 4 << 20;
/// Bytes of a frame before its payload.
const HEADER: usize = 5;

/// What a process writes.
pub struct Output {
    read: BufReader<OwnedReadHalf>,
}

/// The way to a process's standard input.
pub struct Input {
    write: OwnedWriteHalf,
}

/// Joins the streams of the process whose shim listens at `path`.
///
/// # Errors
/// `NotFound` or `Unavailable` where nobody listens.
pub async fn join(path: &Path) -> Result<UnixStream> {
    let doing = || format!("attach at {}", path.display());
    let short = SocketPath::of(path).doing(doing)?;
    UnixStream::connect(short.as_ref()).await.doing(doing)
}

/// Both ways of a joined process.
pub fn split(socket: UnixStream) -> (Output, Input) {
    let (read, write) = socket.into_split();
    (Output { read: BufReader::with_capacity(HEADER + 4096, read) }, Input { write })
}

impl Output {
    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// `DataLoss` for what is no frame.
    pub async fn next(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>> {
        let mut header = [0; HEADER];
        match self.read.read_exact(&mut header).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.doing(|| "read a frame")?,
        };
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let kind = FrameKind::from_byte(kind).filter(|_| length <= MAX_FRAME);
        let kind = kind.ok_or_else(|| Error::new(Kind::DataLoss, format!("malformed frame header {header:?}")))?;
        let mut payload = vec![0; length];
        self.read.read_exact(&mut payload).await.doing(|| "read a frame")?;
        Ok(Some((kind, payload)))
    }
}

impl Input {
    /// Writes to standard input.
    ///
    /// # Errors
    /// When the process, or its input, has ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(MAX_FRAME) {
            self.frame(FrameKind::Stdin, piece).await?;
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// As [`Input::write`].
    pub async fn close(&mut self) -> Result<()> {
        self.frame(FrameKind::CloseStdin, &[]).await
    }

    async fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| Error::internal("frame is too long"))?;
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.push(kind as u8);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(payload);
        self.write.write_all(&frame).await.doing(|| "write a frame")
    }
}

/// The frames of a process's output, read ahead of whoever takes them as far as there is room.
pub struct Frames {
    frames: mpsc::UnboundedReceiver<(FrameKind, Vec<u8>)>,
    room: Arc<Semaphore>,
}

impl Frames {
    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        let frame = self.frames.recv().await?;
        self.room.add_permits(frame.1.len());
        Some(frame)
    }
}

/// Passes output on with `forward` until the process has ended and its last output is passed on, which may come in either
/// order.
///
/// The shim waits for whoever is attached, and so does the process while it runs. After its end the shim has only so much
/// time, and what it is not rid of then is lost for the log too. So the rest, which is what fits the kernel's buffers, is
/// read at once, at most until `after` the end, and waits here for as long as `forward` takes.
///
/// # Errors
/// Those of `end`.
pub async fn until_end<T, F: Future<Output = ()>>(
    output: Output,
    forward: impl FnOnce(Frames) -> F,
    end: impl Future<Output = Result<T>>,
    after: Duration,
) -> Result<T> {
    let room = Arc::new(Semaphore::new(MAX_FRAME));
    let (sender, frames) = mpsc::unbounded_channel();
    let mut reading = Box::pin(read_ahead(output, sender, room.clone()));
    let forwarding = forward(Frames { frames, room: room.clone() });
    tokio::pin!(forwarding, end);
    let (mut is_read, mut is_forwarded) = (false, false);
    let ended = loop {
        tokio::select! {
            () = &mut reading, if !is_read => is_read = true,
            () = &mut forwarding, if !is_forwarded => is_forwarded = true,
            ended = &mut end => break ended?,
        }
    };
    room.add_permits(READ_AHEAD);
    let rest = async move {
        if !is_read {
            let _ = tokio::time::timeout(after, reading).await;
        }
    };
    let last = async {
        if !is_forwarded {
            forwarding.await;
        }
    };
    tokio::join!(rest, last);
    Ok(ended)
}

/// Reads frames into a queue until the shim closes the connection, or nobody takes them any more.
async fn read_ahead(mut output: Output, frames: mpsc::UnboundedSender<(FrameKind, Vec<u8>)>, room: Arc<Semaphore>) {
    loop {
        let frame = match output.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "attach socket");
                return;
            }
        };
        // This always ends once frames are taken: the semaphore began with room for the longest frame.
        let length = u32::try_from(frame.1.len()).unwrap_or(u32::MAX);
        let Ok(taken) = room.acquire_many(length).await else { return };
        taken.forget();
        if frames.send(frame).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_socket_and_malformed_ones_are_refused() {
        let (near, far) = UnixStream::pair().expect("sockets");
        let ((_, mut input), (mut output, _keep)) = (split(near), split(far));
        input.write(&vec![7; MAX_FRAME]).await.expect("write");
        assert_eq!(output.next().await.expect("frame").expect("frame").1.len(), MAX_FRAME);
        input.close().await.expect("write");
        assert_eq!(output.next().await.expect("frame"), Some((FrameKind::CloseStdin, Vec::new())));
        input.write.write_all(&[1, 0xff, 0, 0, 0]).await.expect("write");
        assert_eq!(output.next().await.expect_err("too long").kind(), Kind::DataLoss);
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_output() {
        let (near, far) = UnixStream::pair().expect("sockets");
        let (output, _keep) = split(near);
        let drop_all = |mut frames: Frames| async move { while frames.next().await.is_some() {} };
        let whole = tokio::spawn(until_end(output, drop_all, std::future::ready(Ok(3)), OUTPUT_AFTER_END));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!whole.is_finished());
        drop(far);
        assert_eq!(whole.await.expect("join").expect("end"), 3);
    }

    /// However long a reader pauses: the time that counts is the shim's.
    #[tokio::test]
    async fn a_slow_reader_gets_what_was_written_before_the_end() {
        const FRAMES: usize = 8;
        let (near, far) = UnixStream::pair().expect("sockets");
        let ((output, _input), (_output, mut far)) = (split(near), split(far));
        tokio::spawn(async move {
            for _ in 0..FRAMES {
                far.frame(FrameKind::Stdout, &vec![7; MAX_FRAME]).await.expect("write");
            }
        });
        let (after, mut seen) = (Duration::from_secs(1), 0);
        let slowly = async |mut frames: Frames| {
            tokio::time::sleep(after * 3 / 2).await;
            while let Some((_, payload)) = frames.next().await {
                seen += payload.len();
            }
        };
        until_end(output, slowly, std::future::ready(Ok(())), after).await.expect("end");
        assert_eq!(seen, FRAMES * MAX_FRAME);
    }
}
