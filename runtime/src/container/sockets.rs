//! The sockets through which callers get descriptors: the console's and the first process's.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rung_sys::fd_pass;

use crate::error::{Doing as _, Result};

/// A caller that does not take what it has asked for must not hold up the start of a container for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends the master of a terminal; the text is its name, which receivers show.
pub fn send_console(socket: &Path, master: &OwnedFd) -> Result<()> {
    send(socket, b"/dev/ptmx", master).doing(|| format!("send the terminal to {}", socket.display()))
}

/// Sends a process descriptor; `kind` tells what it is of.
pub fn send_pidfd(socket: &Path, pidfd: &OwnedFd, kind: &str) -> Result<()> {
    send(socket, kind.as_bytes(), pidfd).doing(|| format!("send the process descriptor to {}", socket.display()))
}

fn send(socket: &Path, text: &[u8], fd: &OwnedFd) -> Result<()> {
    let stream = fd_pass::connect(socket, DEADLINE)?;
    Ok(fd_pass::send(stream.as_fd(), text, &[fd.as_fd()])?)
}
