//! Named pipes that the client made.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use tokio::io::unix::AsyncFd;

use crate::io::copy::Sink;
use crate::io::watch;
use crate::{Doing, Error, Result};

/// Opens a destination of output.
///
/// A FIFO is opened for both directions: opening does not wait for a reader, and while we hold a reading end ourselves
/// the container is not ended by a client that goes away and may come back. What it writes meanwhile fills the pipe, then
/// waits. A client that gives a plain file's path gets its output appended there.
///
/// # Errors
/// Where the path cannot be opened, or is neither.
pub fn open_output(path: &Path) -> Result<Sink> {
    let file = open(path, OpenOptions::new().read(true).write(true))?;
    let kind = file.metadata().doing(|| format!("look at {}", path.display()))?.file_type();
    if kind.is_fifo() {
        return Ok(Sink::Fifo(watch(OwnedFd::from(file)).doing(|| format!("watch {}", path.display()))?));
    }
    if kind.is_file() {
        let opened = OpenOptions::new().append(true).open(path);
        return Ok(Sink::File(opened.doing(|| format!("open {}", path.display()))?));
    }
    Err(Error::invalid(format!("{} is neither a FIFO nor a file", path.display())))
}

/// Opens the source of standard input, and a writer that holds it open: a client that goes away, and may come back, does
/// not end the process's input. The end comes once the writer is dropped and every client has closed its own.
///
/// # Errors
/// Where the path cannot be opened or is no FIFO.
pub fn open_input(path: &Path) -> Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let file = open(path, OpenOptions::new().read(true))?;
    let kind = file.metadata().doing(|| format!("look at {}", path.display()))?.file_type();
    if !kind.is_fifo() {
        return Err(Error::invalid(format!("{} is not a FIFO", path.display())));
    }
    // The same FIFO, whatever the path leads to by now.
    let same = std::path::PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let writer = open(&same, OpenOptions::new().write(true))?;
    Ok((watch(OwnedFd::from(file)).doing(|| format!("watch {}", path.display()))?, writer.into()))
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!("{} is not an absolute path", path.display())));
    }
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).doing(|| format!("open {}", path.display()))
}
