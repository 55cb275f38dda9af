//! Standard input: read by a thread of its own, since a terminal cannot be read without blocking anybody else who has it
//! open.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use gantry_proto::gantry::engine::v1::{CloseStdin, SessionInput, session_input};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Semaphore, mpsc};

use super::{Leave, send};
use crate::parse::keys::DetachKeys;

/// Read at once; half a frame of the daemon's.
const CHUNK: usize = 32 << 10;
/// Chunks read ahead of what the daemon takes.
const AHEAD: usize = 2;

/// Starts reading. The channel closes at the end of input; the thread ends with it or with the process.
pub(super) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (chunks, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    if chunks.blocking_send(buffer[..count].to_vec()).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody we share the terminal with made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut descriptors = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut descriptors, PollTimeout::NONE).is_err_and(|error| error != nix::errno::Errno::EINTR) {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
    });
    receiver
}

/// The way to the process's standard input.
pub(super) struct ToProcess {
    pub(super) input: mpsc::Sender<SessionInput>,
    /// A permit for each piece that may be sent before the daemon says that one was taken. What the process does not
    /// read waits here, so that signals find the way free.
    pub(super) room: Arc<Semaphore>,
}

impl ToProcess {
    /// Sends a piece once there is room for it; false where the session is over.
    async fn write(&self, bytes: Vec<u8>) -> bool {
        let Ok(room) = self.room.acquire().await else { return false };
        room.forget();
        send(&self.input, session_input::Event::Stdin(bytes.into())).await
    }
}

/// Hands on what is read, and its end.
pub(super) async fn forward(
    mut chunks: mpsc::Receiver<Vec<u8>>,
    process: ToProcess,
    mut detach: Option<DetachKeys>,
    leave: mpsc::Sender<Leave>,
) {
    while let Some(chunk) = chunks.recv().await {
        let (bytes, detached) = match &mut detach {
            Some(keys) => keys.filter(&chunk),
            None => (chunk, false),
        };
        if !bytes.is_empty() && !process.write(bytes).await {
            return;
        }
        if detached {
            let _ = leave.send(Leave::Detach).await;
            return;
        }
    }
    let held = detach.map(|mut keys| keys.rest()).unwrap_or_default();
    if !held.is_empty() && !process.write(held).await {
        return;
    }
    send(&process.input, session_input::Event::CloseStdin(CloseStdin {})).await;
}
