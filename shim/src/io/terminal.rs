//! The socket on which the runtime hands over a process's terminal.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::libc;
use rung_sys::poll::{self, Interest};

use crate::{Doing, Error, Result};

/// How long to wait for a terminal that the runtime has not sent, as it should have, before it exited.
const LATE: Duration = Duration::from_secs(2);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A listening console socket; its file is gone when this is dropped.
#[derive(Debug)]
pub struct Console {
    directory: File,
    name: String,
    listener: UnixListener,
}

impl Console {
    /// Listens in `bundle`. The bundle's path may be longer than a socket's may be, so that both sides reach the
    /// directory through our descriptor of it.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn listen(bundle: &Path) -> Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(bundle);
        let directory = opened.doing(|| format!("open {}", bundle.display()))?;
        let name = format!("pty{}.sock", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
        let listener = UnixListener::bind(path).doing(|| format!("listen for the terminal in {}", bundle.display()))?;
        Ok(Self { directory, name, listener })
    }

    /// The path to give to the runtime.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}/{}", std::process::id(), self.directory.as_raw_fd(), self.name)
    }

    /// The terminal's master. To be called after the runtime's verb has succeeded: then it is there.
    ///
    /// # Errors
    /// Where the runtime sent nothing, or something else.
    pub fn receive(self) -> Result<OwnedFd> {
        self.ready(self.listener.as_fd())?;
        let (connection, _) = self.listener.accept().doing(|| "accept the terminal's connection")?;
        self.ready(connection.as_fd())?;
        let mut name = [0; 4096];
        let (_, fds) = rung_sys::fd_pass::receive(connection.as_fd(), &mut name)?;
        let master = fds.into_iter().next().ok_or_else(|| Error::internal("the runtime sent no terminal"))?;
        if !rung_sys::tty::is_terminal(master.as_fd()) {
            return Err(Error::internal("the runtime sent a descriptor that is no terminal"));
        }
        Ok(master)
    }

    fn ready(&self, fd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
        if poll::wait(&[(fd, Interest::Read)], Some(LATE))?.is_empty() {
            return Err(Error::internal(format!("the runtime sent no terminal within {LATE:?}")));
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let path = format!("/proc/self/fd/{}/{}", self.directory.as_raw_fd(), self.name);
        let _ = std::fs::remove_file(path);
    }
}
