//! The streams of a process, through the attach socket that its shim made for it: see `gantry_proto::stdio`.

use std::path::Path;
use std::time::Duration;

use gantry_proto::stdio::{FrameKind, MAX_FRAME};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{Doing, Error, Kind, Result};

/// How long output may go on after the process has ended: something else may hold its streams open.
pub const OUTPUT_AFTER_END: Duration = Duration::from_secs(10);
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
    UnixStream::connect(path).await.doing(|| format!("attach at {}", path.display()))
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

/// Waits for the end and for the last output, which may come in either order; for output at most `after` the end.
///
/// # Errors
/// Those of `end`.
pub async fn until_end<T>(
    output: impl Future<Output = ()>,
    end: impl Future<Output = Result<T>>,
    after: Duration,
) -> Result<T> {
    tokio::pin!(output, end);
    let mut drained = false;
    let ended = loop {
        tokio::select! {
            () = &mut output, if !drained => drained = true,
            ended = &mut end => break ended?,
        }
    };
    if !drained {
        let _ = tokio::time::timeout(after, output).await;
    }
    Ok(ended)
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
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let output = async move {
            let _ = receiver.await;
        };
        let whole = tokio::spawn(until_end(output, std::future::ready(Ok(3)), OUTPUT_AFTER_END));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!whole.is_finished());
        sender.send(()).expect("drain");
        assert_eq!(whole.await.expect("join").expect("end"), 3);
    }
}
