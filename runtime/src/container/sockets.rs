//! The sockets through which callers get descriptors: the console's and the first process's.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rung_sys::fd_pass;

use crate::error::{Doing as _, Result};

/// Sends the master of a terminal; the text is its name, which receivers show.
pub fn send_console(socket: &Path, master: &OwnedFd) -> Result<()> {
    send(socket, b"/dev/ptmx", master).doing(|| format!("send the terminal to {}", socket.display()))
}

/// Sends a process descriptor; `kind` tells what it is of.
pub fn send_pidfd(socket: &Path, pidfd: &OwnedFd, kind: &str) -> Result<()> {
    send(socket, kind.as_bytes(), pidfd).doing(|| format!("send the process descriptor to {}", socket.display()))
}

fn send(socket: &Path, text: &[u8], fd: &OwnedFd) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    Ok(fd_pass::send(stream.as_fd(), text, &[fd.as_fd()])?)
}
