//! The gate between `create` and `start`: a named pipe in the state directory.
//!
//! The waiting process holds the pipe open for reading and writing since before it lost sight of the host, so it needs
//! no path and no /proc to get at it. `start` opens the writing side, which fails at once when the process is gone, and
//! writes one byte. The process's descriptor is closed by the exec; `start` sees that its pipe has lost its reader, and
//! so knows that the program runs. A process that fails behind the gate leaves the reason in the pipe.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use rung_sys::poll::{self, Interest};

use crate::error::{Doing as _, Error, Kind, Result};

/// Makes the pipe and opens the side of the process that will wait.
pub fn make(path: &Path) -> Result<OwnedFd> {
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600)).doing(|| format!("make {}", path.display()))?;
    let open = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    Ok(open.doing(|| format!("open {}", path.display()))?.into())
}

/// In the process: waits until `start` opens the gate.
pub fn wait(gate: &OwnedFd) -> Result<()> {
    let mut byte = [0];
    loop {
        poll::wait(&[(gate.as_fd(), Interest::Read)], None)?;
        match nix::unistd::read(gate, &mut byte) {
            Ok(0) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno).doing(|| "wait for start"),
        }
    }
}

/// In the process: leaves the reason why the program does not run.
pub fn leave_reason(gate: &OwnedFd, error: &Error) {
    let mut message = vec![error.kind().code()];
    message.extend(super::sync::shortened(&error.to_string()));
    // Nobody is left to tell when that fails too.
    let _ = nix::unistd::write(gate, &message);
}

/// In `start`: lets the process go and waits until it has executed its program.
pub fn open(path: &Path, deadline: Option<Duration>) -> Result<()> {
    let opened = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut writer = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(Error::new(Kind::NotRunning, "container process is already dead"));
        }
        other => other.doing(|| format!("open {}", path.display()))?,
    };
    writer.write_all(b"0").doing(|| format!("write {}", path.display()))?;
    if poll::wait(&[(writer.as_fd(), Interest::Hangup)], deadline)?.is_empty() {
        return Err(Error::new(Kind::Timeout, "the container's program was not executed in time"));
    }
    let reason = read_reason(path)?;
    drop(writer);
    match reason.split_first() {
        Some((code, text)) => Err(Error::new(Kind::from_code(*code), String::from_utf8_lossy(text).into_owned())),
        None => Ok(()),
    }
}

fn read_reason(path: &Path) -> Result<Vec<u8>> {
    let mut reader: File = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .doing(|| format!("open {}", path.display()))?;
    let mut bytes = vec![0; 4096];
    match reader.read(&mut bytes) {
        Ok(length) => bytes.truncate(length),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bytes.clear(),
        Err(error) => return Err(error).doing(|| format!("read {} ({})", path.display(), reader.as_raw_fd())),
    }
    // The byte that opened the gate is still there when the process died before it could read it.
    if bytes == b"0" {
        return Ok([&[Kind::NotRunning.code()], b"container process is already dead".as_slice()].concat());
    }
    Ok(bytes)
}
