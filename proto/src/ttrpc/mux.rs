//! Two connections over one socket: plugins of the node resource interface are called over one and call over the other.
//!
//! Each piece of a connection is preceded by eight bytes: the number of the connection and the length of the piece, both with
//! the most significant byte first. Nothing opens or closes a connection; both ends know which there are.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::ttrpc::frame::{HEADER_LENGTH, MAX_MESSAGE};
use crate::ttrpc::server::serve;
use crate::ttrpc::{Client, Service};

/// Bytes before a piece.
const HEADER: usize = 8;
/// Longest piece that is taken.
const MAX_PIECE: usize = HEADER_LENGTH + MAX_MESSAGE;
/// Longest piece that begins a frame. Readers in Go have a buffer of this size until they know how long the frame is, fail
/// where a piece does not fit it, and keep only so many pieces: whatever else there is of a frame is one piece therefore.
const FIRST: usize = 4096;
/// Bytes that wait for the reader of a connection.
const BUFFER: usize = 64 << 10;
/// Frames that wait for the socket, of each connection.
const QUEUE: usize = 64;

/// A client that calls over connection `calls` of the socket, and the work of carrying both connections, which has `service`
/// answer what comes over connection `serves`. The work ends when the peer closes the socket, and closes it when it is
/// dropped; the client is closed then. Needs a running tokio runtime.
///
/// # Errors
/// The work fails with the socket, or where a piece is longer than any frame.
pub fn multiplex<S: Service>(
    socket: UnixStream,
    calls: u32,
    serves: u32,
    service: Arc<S>,
) -> (Client, impl Future<Output = io::Result<()>> + Send) {
    let (read, write) = socket.into_split();
    let (to_client, for_client) = tokio::io::duplex(BUFFER);
    let (to_server, for_server) = tokio::io::duplex(BUFFER);
    let (calling, called) = mpsc::channel(QUEUE);
    let (answering, answered) = mpsc::channel(QUEUE);
    let client = Client::over(for_client, calling);
    let work = async move {
        tokio::select! {
            ended = sort(read, [(calls, to_client), (serves, to_server)]) => ended,
            ended = send(write, (calls, called), (serves, answered)) => ended,
            ended = serve(for_server, answering, service, JoinSet::new()) => ended,
        }
    };
    (client, work)
}

/// Takes the pieces apart until the peer closes. Those of other connections are nobody's.
async fn sort<R: AsyncRead + Unpin>(mut read: R, mut ends: [(u32, DuplexStream); 2]) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        match read.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        let [a, b, c, d, e, f, g, h] = header;
        let (id, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        if usize::try_from(length).is_ok_and(|length| length > MAX_PIECE) {
            let text = format!("ttrpc: a piece of {length} bytes exceeds the limit of {MAX_PIECE}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut piece = (&mut read).take(u64::from(length));
        let copied = match ends.iter_mut().find(|(own, _)| *own == id) {
            Some((_, end)) => tokio::io::copy(&mut piece, end).await?,
            None => tokio::io::copy(&mut piece, &mut tokio::io::sink()).await?,
        };
        if copied < u64::from(length) {
            return Ok(());
        }
    }
}

type Frames = (u32, mpsc::Receiver<Vec<u8>>);

/// Writes the frames of both connections until those of one have no source any more.
async fn send<W: AsyncWrite + Unpin>(mut write: W, mut one: Frames, mut other: Frames) -> io::Result<()> {
    loop {
        let (id, frame) = tokio::select! {
            frame = one.1.recv() => (one.0, frame),
            frame = other.1.recv() => (other.0, frame),
        };
        let Some(frame) = frame else { return Ok(()) };
        let (first, rest) = frame.split_at(frame.len().min(FIRST));
        for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
            let length = u32::try_from(piece.len()).map_err(|_| io::Error::other("ttrpc: a frame is too long"))?;
            let mut bytes = Vec::with_capacity(HEADER + piece.len());
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(piece);
            write.write_all(&bytes).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;
    use crate::ttrpc::server::{decode, unknown};
    use crate::ttrpc::{Context, KeyValue};

    /// Answers with what it is called and what it got.
    struct Echo(&'static str);

    impl Service for Echo {
        async fn call(&self, service: &str, method: &str, payload: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
            let got: KeyValue = decode(payload)?;
            match method {
                "echo" => Ok(prost::Message::encode_to_vec(&KeyValue { key: self.0.to_owned(), value: got.value })),
                _ => Err(unknown(service, method)),
            }
        }
    }

    async fn echo(client: &Client, value: &str) -> KeyValue {
        let asked = KeyValue { key: String::new(), value: value.to_owned() };
        client.call("s", "echo", &asked, &Context::new()).await.expect("answer")
    }

    #[tokio::test]
    async fn both_ends_call_over_one_socket() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let (here, work) = multiplex(ours, 1, 2, Arc::new(Echo("here")));
        tokio::spawn(work);
        let (there, work) = multiplex(theirs, 2, 1, Arc::new(Echo("there")));
        let work = tokio::spawn(work);
        let large = "x".repeat(3 << 20);
        let (one, two) = tokio::join!(echo(&here, &large), echo(&there, "b"));
        assert_eq!((one.key.as_str(), one.value.len()), ("there", large.len()));
        assert_eq!((two.key.as_str(), two.value.as_str()), ("here", "b"));
        work.abort();
        tokio::time::timeout(std::time::Duration::from_secs(10), here.closed()).await.expect("closed");
    }

    #[tokio::test]
    async fn pieces_fit_the_reader() {
        let frame = vec![7; FIRST + 10];
        let (sender, frames) = mpsc::channel(1);
        sender.send(frame).await.expect("room");
        drop(sender);
        let (mut out, (_keep, none)) = (Vec::new(), mpsc::channel(1));
        send(&mut out, (5, frames), (6, none)).await.expect("written");
        assert_eq!(out[..HEADER], [0, 0, 0, 5, 0, 0, 16, 0]);
        assert_eq!(out[HEADER + FIRST..][..HEADER], [0, 0, 0, 5, 0, 0, 0, 10]);
        assert_eq!(out.len(), 2 * HEADER + FIRST + 10);
    }

    #[tokio::test]
    async fn pieces_of_nobody_and_endless_ones_do_no_harm() {
        let (to, _from) = tokio::io::duplex(16);
        let (other, mut read) = tokio::io::duplex(16);
        let bytes = [&[0, 0, 0, 9, 0, 0, 0, 2, 1, 1][..], &[0, 0, 0, 2, 0, 0, 0, 1, 8], &[0, 0, 0, 1, 255, 0, 0, 0]];
        let bytes = bytes.concat();
        let error = sort(bytes.as_slice(), [(1, to), (2, other)]).await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, [8]);
    }
}
