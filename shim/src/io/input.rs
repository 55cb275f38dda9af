//! The way into a process's standard input, shared by everybody who may write to it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::{Doing, Result};

/// A process's standard input.
#[derive(Debug)]
pub struct Input {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// The terminal has not arrived yet; writers wait for it.
    Waiting,
    Open {
        fd: Arc<AsyncFd<OwnedFd>>,
        terminal: bool,
    },
    Closed,
}

impl Default for Input {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Waiting) }
    }
}

impl Input {
    /// Input goes into `pipe` from now on.
    ///
    /// # Errors
    /// Where the pipe cannot be watched.
    pub fn open(&self, pipe: OwnedFd) -> Result<()> {
        self.set(pipe, false)
    }

    /// Input goes to the terminal behind `master` from now on.
    ///
    /// # Errors
    /// Where the terminal cannot be watched.
    pub fn open_terminal(&self, master: OwnedFd) -> Result<()> {
        self.set(master, true)
    }

    fn set(&self, fd: OwnedFd, terminal: bool) -> Result<()> {
        super::set_nonblocking(&fd)?;
        let fd = Arc::new(super::watch(fd).doing(|| "watch standard input")?);
        self.state.send_modify(|state| {
            if !matches!(state, State::Closed) {
                *state = State::Open { fd, terminal };
            }
        });
        Ok(())
    }

    /// The process reads the end of its input after what was written. A terminal stays as it is: it has no end.
    pub fn close(&self) {
        self.state.send_modify(|state| {
            if !matches!(state, State::Open { terminal: true, .. }) {
                *state = State::Closed;
            }
        });
    }

    /// Writes all of `bytes`, waiting while the process does not read; `false` where it never will.
    pub async fn write(&self, mut bytes: &[u8]) -> bool {
        let mut state = self.state.subscribe();
        let fd = match state.wait_for(|state| !matches!(state, State::Waiting)).await.as_deref() {
            Ok(State::Open { fd, .. }) => fd.clone(),
            _ => return false,
        };
        while !bytes.is_empty() {
            let Ok(mut ready) = fd.writable().await else { return false };
            match nix::unistd::write(fd.as_fd(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // Nobody reads any more.
                    self.close();
                    return false;
                }
            }
        }
        true
    }
}
