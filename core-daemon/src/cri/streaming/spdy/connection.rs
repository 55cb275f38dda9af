//! A connection, the server's end: the peer opens streams, each becomes a pipe.
//!
//! ```text
//!             ┌─ reader ─► a queue for each stream ─► pump ─► pipe ─► whoever takes the stream
//! transport ──┤
//!             └─ writer ◄─ one queue of frames ◄───── pump ◄─ pipe ◄─ the same
//! ```
//!
//! Everything between is bounded: a stream that is not read fills its queue, then the connection waits, and with it the
//! peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::frame::{Control, HEADER, Head, Malformed, Reset, Send as Frame};
use super::headers::{Deflater, Headers, Inflater};
use super::window::{INITIAL, Window};
use crate::cri::streaming::activity::Activity;

/// Streams that may be open at once.
const MAX_STREAMS: usize = 512;
/// Bytes of one piece of data, and of a stream's pipe.
const PIECE: usize = 32 << 10;
/// Pieces of one stream that wait to be read, and frames that wait to be sent.
const QUEUE: usize = 16;
/// How long the peer may take to read the last bytes and to close its end.
const LINGER: Duration = Duration::from_secs(10);

/// A connection whose streams are to be accepted.
pub(crate) struct Connection {
    accepted: mpsc::Receiver<Stream>,
    shared: Arc<Shared>,
}

/// A stream that the peer opened.
pub(crate) struct Stream {
    /// Odd, and growing.
    pub(crate) id: u32,
    /// What the peer says of it.
    pub(crate) headers: Headers,
    /// Its bytes. Shut down or dropped, it is closed in our direction.
    pub(crate) pipe: DuplexStream,
    /// Ends it early, in both directions.
    pub(crate) reset: CancellationToken,
}

struct Shared {
    out: mpsc::Sender<Frame>,
    table: Mutex<HashMap<u32, Entry>>,
    /// Of the connection as a whole.
    window: Window,
    last: AtomicU32,
    ended: CancellationToken,
    /// What is still on its way to the peer.
    outward: TaskTracker,
}

struct Entry {
    /// Gone once the peer has closed its direction.
    inbound: Option<mpsc::Sender<Bytes>>,
    window: Arc<Window>,
    reset: CancellationToken,
}

impl Connection {
    /// Speaks SPDY on `transport` until it ends, nothing happens for `idle`, or `stopping`.
    pub(crate) fn serve<T>(transport: T, idle: Duration, stopping: &CancellationToken) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(transport);
        let (out, queue) = mpsc::channel(QUEUE);
        let (accept, accepted) = mpsc::channel(MAX_STREAMS);
        let shared = Arc::new(Shared {
            out,
            table: Mutex::default(),
            window: Window::new(None),
            last: AtomicU32::new(0),
            ended: stopping.child_token(),
            outward: TaskTracker::new(),
        });
        let activity = Activity::default();
        let writing = write_frames(write, queue, activity.clone(), shared.ended.clone());
        tokio::spawn(writing);
        let mut reader = Reader {
            read: BufReader::with_capacity(PIECE, read),
            inflater: Inflater::new(),
            shared: shared.clone(),
            accept,
            initial_window: None,
            activity: activity.clone(),
        };
        let ended = shared.ended.clone();
        tokio::spawn(async move {
            let read = tokio::select! {
                read = reader.run() => read,
                () = activity.pause(idle) => Ok(()),
                () = ended.cancelled() => Ok(()),
            };
            if let Err(Malformed(problem)) = read {
                tracing::debug!(problem, "SPDY connection");
            }
            ended.cancel();
            reader.shared.table().clear();
        });
        Self { accepted, shared }
    }

    /// The next stream; `None` at the connection's end.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        tokio::select! {
            stream = self.accepted.recv() => stream,
            () = self.shared.ended.cancelled() => None,
        }
    }

    /// Cancelled at the connection's end.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.shared.ended
    }

    /// Ends the connection once everything written to streams is with the peer.
    pub(crate) async fn close(self) {
        let Self { accepted, shared } = self;
        drop(accepted);
        shared.outward.close();
        let flushed = async {
            shared.outward.wait().await;
            let last = shared.last.load(Ordering::Relaxed);
            let _ = shared.out.send(Frame::GoAway { last }).await;
            // The writer ends its direction behind this; the peer ends the other, and so the connection.
            shared.ended.cancelled().await;
        };
        let _ = tokio::time::timeout(LINGER, flushed).await;
        shared.ended.cancel();
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, frame: Frame) {
        // A writer that is gone has ended the connection.
        let _ = self.out.send(frame).await;
    }
}

struct Reader<T> {
    read: BufReader<ReadHalf<T>>,
    inflater: Inflater,
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
    initial_window: Option<u32>,
    activity: Activity,
}

impl<T: AsyncRead + AsyncWrite> Reader<T> {
    /// Reads frames until the peer ends, or sends what is none.
    async fn run(&mut self) -> Result<(), Malformed> {
        loop {
            let mut header = [0; HEADER];
            if self.read.read_exact(&mut header).await.is_err() {
                return Ok(());
            }
            self.activity.mark();
            let read = match Head::parse(header)? {
                Head::Data { stream, is_last, length } => self.data(stream, is_last, length).await,
                Head::Control { kind, flags, length } => {
                    let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
                    if self.read.read_exact(&mut content).await.is_err() {
                        return Ok(());
                    }
                    let frame = Control::parse(kind, flags, &content, &mut self.inflater)?;
                    self.control(frame).await;
                    Ok(())
                }
            };
            if read.is_err() {
                return Ok(());
            }
        }
    }

    /// Passes data on piece by piece; a frame of it may be long.
    async fn data(&mut self, stream: u32, is_last: bool, length: u32) -> std::io::Result<()> {
        let inbound = self.shared.table().get(&stream).and_then(|entry| entry.inbound.clone());
        let mut left = usize::try_from(length).unwrap_or(0);
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(PIECE));
            self.read.read_exact(&mut piece).await?;
            self.activity.mark();
            left -= piece.len();
            let size = u32::try_from(piece.len()).unwrap_or(0);
            let taken = match &inbound {
                Some(inbound) => inbound.send(piece.freeze()).await.is_ok(),
                None => false,
            };
            if !taken {
                // Nobody will read it, so nobody will say that it was.
                self.shared.send(Frame::WindowUpdate { stream: 0, delta: size }).await;
            }
        }
        match inbound {
            None => {
                self.shared.send(Frame::Rst { stream, why: Reset::InvalidStream }).await;
            }
            Some(_) if is_last => self.finish(stream),
            Some(_) => {}
        }
        Ok(())
    }

    fn finish(&self, stream: u32) {
        if let Some(entry) = self.shared.table().get_mut(&stream) {
            entry.inbound = None;
        }
    }

    async fn control(&mut self, frame: Control) {
        match frame {
            Control::SynStream { stream, is_last, headers } => self.open(stream, is_last, headers).await,
            Control::Rst { stream } => {
                if let Some(entry) = self.shared.table().remove(&stream) {
                    entry.reset.cancel();
                }
            }
            Control::Settings { initial_window: Some(size) } => {
                self.initial_window = Some(size);
                self.shared.table().values().for_each(|entry| entry.window.resize(size));
            }
            Control::WindowUpdate { stream: 0, delta } => self.shared.window.grant(delta),
            Control::WindowUpdate { stream, delta } => {
                if let Some(entry) = self.shared.table().get(&stream) {
                    entry.window.grant(delta);
                }
            }
            // Pings of the client are odd, and are to come back.
            Control::Ping { id } if id % 2 == 1 => self.shared.send(Frame::Ping { id }).await,
            Control::SynReply { stream, is_last: true } => self.finish(stream),
            // A peer that goes away opens no more streams; those that are open go on.
            _ => {}
        }
    }

    async fn open(&mut self, id: u32, is_last: bool, headers: Headers) {
        let last = self.shared.last.load(Ordering::Relaxed);
        if id.is_multiple_of(2) || id <= last {
            self.shared.send(Frame::Rst { stream: id, why: Reset::Protocol }).await;
            return;
        }
        self.shared.last.store(id, Ordering::Relaxed);
        if self.shared.table().len() >= MAX_STREAMS || self.shared.outward.is_closed() {
            self.shared.send(Frame::Rst { stream: id, why: Reset::Refused }).await;
            return;
        }
        let (ours, pipe) = tokio::io::duplex(PIECE);
        let (inbound, queue) = mpsc::channel(QUEUE);
        let reset = self.shared.ended.child_token();
        let window = Arc::new(Window::new(self.initial_window));
        let entry = Entry { inbound: (!is_last).then_some(inbound), window: window.clone(), reset: reset.clone() };
        self.shared.table().insert(id, entry);
        let pump = Pump { id, shared: self.shared.clone(), window };
        self.shared.send(Frame::SynReply { stream: id }).await;
        tokio::spawn(pump.run(ours, queue, reset.clone(), self.shared.outward.token()));
        let stream = Stream { id, headers, pipe, reset };
        if let Err(refused) = self.accept.try_send(stream) {
            // Nobody accepts, or not as fast as the peer opens.
            refused.into_inner().reset.cancel();
        }
    }
}

/// Moves one stream's bytes between its pipe and the connection.
struct Pump {
    id: u32,
    shared: Arc<Shared>,
    window: Arc<Window>,
}

impl Pump {
    async fn run(
        self,
        ours: DuplexStream,
        queue: mpsc::Receiver<Bytes>,
        reset: CancellationToken,
        token: TaskTrackerToken,
    ) {
        let (read, write) = tokio::io::split(ours);
        let outward = async {
            self.outward(read).await;
            drop(token);
        };
        let both = async { tokio::join!(self.inward(queue, write), outward) };
        let early = tokio::select! {
            _ = both => false,
            () = reset.cancelled() => true,
        };
        // One that the peer has reset is not in the table any more.
        let known = self.shared.table().remove(&self.id).is_some();
        if early && known && !self.shared.ended.is_cancelled() {
            self.shared.send(Frame::Rst { stream: self.id, why: Reset::Cancelled }).await;
        }
    }

    async fn inward(&self, mut queue: mpsc::Receiver<Bytes>, mut write: WriteHalf<DuplexStream>) {
        let mut unsaid = 0;
        while let Some(piece) = queue.recv().await {
            // A taker that is gone takes everything.
            let _ = write.write_all(&piece).await;
            unsaid += u32::try_from(piece.len()).unwrap_or(0);
            if unsaid >= INITIAL / 2 {
                self.shared.send(Frame::WindowUpdate { stream: self.id, delta: unsaid }).await;
                self.shared.send(Frame::WindowUpdate { stream: 0, delta: unsaid }).await;
                unsaid = 0;
            }
        }
        let _ = write.shutdown().await;
    }

    async fn outward(&self, mut read: ReadHalf<DuplexStream>) {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            let got = read.read_buf(&mut buffer).await.unwrap_or(0);
            if got == 0 {
                self.shared.send(Frame::Data { stream: self.id, is_last: true, bytes: Bytes::new() }).await;
                return;
            }
            while !buffer.is_empty() {
                let room = self.window.take(buffer.len()).await;
                let both = self.shared.window.take(room).await;
                self.window.give_back(room - both);
                let bytes = buffer.split_to(both).freeze();
                self.shared.send(Frame::Data { stream: self.id, is_last: false, bytes }).await;
            }
        }
    }
}

/// Writes frames until there are no more, or the peer does not take them.
async fn write_frames<T: AsyncRead + AsyncWrite>(
    mut write: WriteHalf<T>,
    mut queue: mpsc::Receiver<Frame>,
    activity: Activity,
    ended: CancellationToken,
) {
    let mut deflater = Deflater::new();
    let mut buffer = BytesMut::new();
    let writing = async {
        while let Some(frame) = queue.recv().await {
            let mut last = matches!(frame, Frame::GoAway { .. });
            frame.encode(&mut deflater, &mut buffer);
            // What waits goes with it, up to a piece more.
            while buffer.len() < PIECE
                && let Ok(frame) = queue.try_recv()
            {
                last |= matches!(frame, Frame::GoAway { .. });
                frame.encode(&mut deflater, &mut buffer);
            }
            if write.write_all(&buffer).await.is_err() || write.flush().await.is_err() {
                ended.cancel();
                return;
            }
            activity.mark();
            buffer.clear();
            if last {
                let _ = write.shutdown().await;
                return;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = ended.cancelled() => {}
    }
}
