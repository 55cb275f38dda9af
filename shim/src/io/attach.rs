//! The attach socket: clients that see a process's output as it comes and may write its input.

use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::stdio::{FrameKind, LogPolicy, MAX_FRAME};
use nix::sys::socket::{Shutdown, shutdown};
use rung_sys::socket_path::SocketPath;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::AbortHandle;

use crate::io::input::Input;
use crate::{Doing, Result};

/// Clients served at once; more are turned away.
const MAX_CLIENTS: usize = 64;
/// How often a connection that could not be accepted is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes kept for a client that does not read, where the process must not wait for it.
const MAX_BEHIND: usize = 1 << 20;

/// The clients of one process.
#[derive(Debug)]
pub struct Hub {
    path: String,
    policy: LogPolicy,
    input: Option<Arc<Input>>,
    listener: AsyncFd<UnixListener>,
    clients: Mutex<Vec<Arc<Client>>>,
    accepting: Mutex<Option<AbortHandle>>,
    output_ended: AtomicBool,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Client {
    socket: OwnedWriteHalf,
    behind: Mutex<Vec<u8>>,
    gone: AtomicBool,
    dropped: AtomicU64,
    reader: Mutex<Option<AbortHandle>>,
    /// Writes what is behind, where nobody waits for it to be written.
    writer: Mutex<Option<AbortHandle>>,
}

impl Hub {
    /// Listens at `path` and serves whoever connects; input goes to `input`.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn listen(path: &str, policy: LogPolicy, input: Option<Arc<Input>>) -> Result<Arc<Self>> {
        let doing = || format!("listen at attach socket {path}");
        // Left by an earlier life of the same container.
        let _ = std::fs::remove_file(path);
        let listener =
            SocketPath::of(Path::new(path)).and_then(|path| UnixListener::bind(path.as_ref())).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        let hub = Arc::new(Self {
            path: path.to_owned(),
            policy,
            input,
            listener: super::watch(listener).doing(doing)?,
            clients: Mutex::default(),
            accepting: Mutex::default(),
            output_ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&hub);
        let task = tokio::spawn(async move {
            while let Some(hub) = weak.upgrade() {
                let Ok(mut ready) = hub.listener.readable().await else { return };
                if hub.accept_waiting() {
                    ready.clear_ready();
                } else {
                    // Too few descriptors: who waits is looked at again.
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        *lock(&hub.accepting) = Some(task.abort_handle());
        Ok(hub)
    }

    /// Takes every connection that waits; `false` where some may be left.
    pub fn accept_waiting(&self) -> bool {
        loop {
            let socket = match self.listener.get_ref().accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            let mut clients = lock(&self.clients);
            clients.retain(|client| !client.gone.load(Ordering::Relaxed));
            if clients.len() >= MAX_CLIENTS || self.closed.load(Ordering::Relaxed) {
                tracing::warn!(path = self.path, "attach: too many clients, or the process has ended");
                continue;
            }
            let _ = socket.set_nonblocking(true);
            match UnixStream::from_std(socket) {
                Ok(socket) => clients.push(Client::serve(socket, self.input.clone())),
                Err(error) => tracing::warn!(%error, "attach"),
            }
            if let Some(client) = clients.last().filter(|_| self.output_ended.load(Ordering::Relaxed)) {
                client.end_output();
            }
        }
    }

    /// Sends output to every client; `false` where the process must wait for [`Hub::flush`].
    pub fn send(&self, kind: FrameKind, bytes: &[u8]) -> bool {
        let mut settled = true;
        for client in lock(&self.clients).iter() {
            for chunk in bytes.chunks(MAX_FRAME) {
                settled &= client.send(kind, chunk, self.policy);
            }
        }
        settled
    }

    /// Waits until every client has taken what was sent, or is gone.
    pub async fn flush(&self) {
        let clients = lock(&self.clients).clone();
        for client in clients {
            client.flush().await;
        }
        lock(&self.clients).retain(|client| !client.gone.load(Ordering::Relaxed));
    }

    /// Tells all clients, and whoever comes later, that there is no more output. A process that has closed its output may
    /// still read what they write.
    pub fn end_output(&self) {
        self.output_ended.store(true, Ordering::Relaxed);
        for client in lock(&self.clients).iter() {
            client.end_output();
        }
    }

    /// Closes the connections and removes the socket.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(task) = lock(&self.accepting).take() {
            task.abort();
        }
        // A client that connected in the last moment learns by the end of its connection that there is nothing to see.
        self.accept_waiting();
        let _ = std::fs::remove_file(&self.path);
        for client in lock(&self.clients).drain(..) {
            client.close();
        }
    }
}

impl Client {
    fn serve(socket: UnixStream, input: Option<Arc<Input>>) -> Arc<Self> {
        let (read, write) = socket.into_split();
        let client = Arc::new(Self {
            socket: write,
            behind: Mutex::default(),
            gone: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            reader: Mutex::default(),
            writer: Mutex::default(),
        });
        let weak = Arc::downgrade(&client);
        let task = tokio::spawn(async move {
            let ended = read_frames(read, input).await;
            if let Some(client) = weak.upgrade() {
                client.gone.store(true, Ordering::Relaxed);
            }
            if let Err(error) = ended {
                tracing::debug!(%error, "attach: client left");
            }
        });
        *lock(&client.reader) = Some(task.abort_handle());
        client
    }

    /// Sends one frame as far as that goes now; `false` where bytes are left and the process must wait.
    fn send(self: &Arc<Self>, kind: FrameKind, payload: &[u8], policy: LogPolicy) -> bool {
        if self.gone.load(Ordering::Relaxed) {
            return true;
        }
        let mut behind = lock(&self.behind);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let header = [kind as u8, length[0], length[1], length[2], length[3]];
        if policy == LogPolicy::Drop && behind.len() + payload.len() > MAX_BEHIND {
            // Whole frames are left out, so that the client stays in step.
            self.dropped.fetch_add(u64::try_from(payload.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
            return true;
        }
        let mut written = 0;
        if behind.is_empty() {
            match self.socket.try_write_vectored(&[IoSlice::new(&header), IoSlice::new(payload)]) {
                Ok(count) => written = count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.gone.store(true, Ordering::Relaxed);
                    return true;
                }
            }
        }
        behind.extend_from_slice(header.get(written..).unwrap_or_default());
        behind.extend_from_slice(payload.get(written.saturating_sub(header.len())..).unwrap_or_default());
        let settled = behind.is_empty();
        drop(behind);
        if policy == LogPolicy::Block {
            return settled;
        }
        if !settled {
            self.write_on();
        }
        true
    }

    /// Has what is behind written as the client takes it.
    fn write_on(self: &Arc<Self>) {
        let mut writer = lock(&self.writer);
        if writer.as_ref().is_none_or(AbortHandle::is_finished) {
            let client = self.clone();
            *writer = Some(tokio::spawn(async move { client.flush().await }).abort_handle());
        }
    }

    async fn flush(&self) {
        while !self.gone.load(Ordering::Relaxed) {
            {
                let mut behind = lock(&self.behind);
                if behind.is_empty() {
                    return;
                }
                match self.socket.try_write(&behind) {
                    Ok(count) => {
                        behind.drain(..count);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
            if self.socket.writable().await.is_err() {
                break;
            }
        }
        self.gone.store(true, Ordering::Relaxed);
    }

    fn end_output(&self) {
        // A client that has gone has nothing to be told.
        let _ = shutdown(self.socket.as_ref().as_raw_fd(), Shutdown::Write);
    }

    fn close(&self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(bytes = dropped, "attach: a client did not read; output was dropped for it");
        }
        for task in [&self.reader, &self.writer] {
            if let Some(task) = lock(task).take() {
                task.abort();
            }
        }
    }
}

/// Reads a client's frames until it leaves or breaks the framing.
async fn read_frames(mut socket: OwnedReadHalf, input: Option<Arc<Input>>) -> std::io::Result<()> {
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header).await?;
        let [kind, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(std::io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await?;
        match (FrameKind::from_byte(kind), &input) {
            (Some(FrameKind::Stdin), Some(input)) => {
                // A process that reads no more input still has output to show.
                let _ = input.write(&payload).await;
            }
            (Some(FrameKind::CloseStdin), Some(input)) => input.close(),
            // Without standard input there is nowhere to put it, which is what a closed standard input means.
            (Some(FrameKind::Stdin | FrameKind::CloseStdin), None) => {}
            _ => return Err(std::io::Error::new(ErrorKind::InvalidData, format!("a frame of kind {kind}"))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
