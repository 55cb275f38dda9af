//! The readiness protocol of systemd (sd_notify) between a container and the service manager that waits for it.
//!
//! The container gets a socket of its own at `/run/notify`, because the manager's is out of its sight, and the manager
//! takes messages only from processes of its service. What the program says there is told on, with the number of the
//! process that the manager shall watch from then on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_sys::fd_pass;
use rung_sys::poll::{self, Interest};
use rung_sys::socket_path::SocketPath;

use crate::error::{Doing as _, Error, Result};
use crate::log;

/// Where the container finds the directory of its socket.
pub const DIRECTORY: &str = "/run/notify";

/// The name of the socket in it.
pub const SOCKET: &str = "notify.sock";

/// How long the manager may take to look at what it was sent.
const BARRIER: Duration = Duration::from_secs(30);

/// The manager's socket, when there is a manager that waits.
pub fn manager() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Makes the directory that the container gets to see.
pub fn make_directory(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o755).create(path);
    made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .doing(|| format!("make {}", path.display()))
}

/// A socket that the container speaks to.
#[derive(Debug)]
pub struct Readiness {
    socket: UnixDatagram,
    manager: PathBuf,
}

impl Readiness {
    /// Binds the socket in the directory that [`make_directory`] has made. What is said before anybody listens waits in
    /// the socket.
    pub fn bind(directory: &Path, manager: PathBuf) -> Result<Self> {
        let bound = || -> std::io::Result<UnixDatagram> {
            let path = SocketPath::of(&directory.join(SOCKET))?;
            let socket = UnixDatagram::bind(path.as_ref())?;
            // Whatever user the program runs as, it may speak.
            std::fs::set_permissions(path.as_ref(), std::fs::Permissions::from_mode(0o777))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = bound().doing(|| format!("NOTIFY_SOCKET: bind {}", directory.join(SOCKET).display()))?;
        Ok(Self { socket, manager })
    }

    /// To be polled beside others.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what has come; the first line that says that the program is ready.
    pub fn ready_line(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer).ok()?;
            let line = buffer[..length].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY="));
            if let Some(line) = line {
                return Some(line.to_vec());
            }
        }
    }

    /// Waits until the program is ready, or has ended, and tells the manager.
    ///
    /// There is no deadline: how long a program takes to be ready is for the manager to judge.
    pub fn proxy(&self, process: BorrowedFd<'_>, pid: i32) -> Result<()> {
        loop {
            let woken = poll::wait(&[(self.as_fd(), Interest::Read), (process, Interest::Read)], None)?;
            if let Some(line) = self.ready_line() {
                return self.tell(&line, pid)?.wait();
            }
            if woken.iter().any(|ready| ready.index == 1) {
                return Ok(());
            }
        }
    }

    /// Tells the manager that the program is ready, and which process to watch.
    pub fn tell(&self, line: &[u8], pid: i32) -> Result<Barrier> {
        let told = || -> Result<Barrier> {
            let manager = UnixDatagram::unbound()?;
            // One that is stopped, with its queue full, holds up nobody for ever.
            manager.set_write_timeout(Some(BARRIER))?;
            manager.connect_addr(&address(&self.manager)?)?;
            manager.send(&[line, b"\n"].concat())?;
            manager.send(format!("MAINPID={pid}\n").as_bytes())?;
            let (reader, writer) = std::io::pipe()?;
            fd_pass::send(manager.as_fd(), b"BARRIER=1", &[writer.as_fd()])?;
            Ok(Barrier(reader.into()))
        };
        told().doing(|| format!("NOTIFY_SOCKET: tell {}", self.manager.display()))
    }
}

/// Ends once the manager has processed everything that was sent before. The sender must live until then, because the
/// manager looks up which service the sending process belongs to.
#[derive(Debug)]
pub struct Barrier(OwnedFd);

impl Barrier {
    fn wait(&self) -> Result<()> {
        if poll::wait(&[(self.0.as_fd(), Interest::Hangup)], Some(BARRIER))?.is_empty() {
            // A manager that does not know the message keeps the descriptor, and has the rest all the same.
            log::warning(&format!("NOTIFY_SOCKET: the service manager has not answered BARRIER=1 within {BARRIER:?}"));
        }
        Ok(())
    }
}

fn address(path: &Path) -> Result<SocketAddr> {
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => Ok(SocketAddr::from_abstract_name(name)?),
        [b'/', ..] => Ok(SocketAddr::from_pathname(path)?),
        other => {
            let shown = PathBuf::from(std::ffi::OsString::from_vec(other.to_vec()));
            Err(Error::invalid(format!("{} is neither absolute nor abstract", shown.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readiness_is_told_and_the_barrier_falls() {
        let temporary = tempfile::tempdir().unwrap();
        let (own, host) = (temporary.path().join("notify"), temporary.path().join("host.sock"));
        make_directory(&own).unwrap();
        let manager = UnixDatagram::bind(&host).unwrap();
        let readiness = Readiness::bind(&own, host).unwrap();
        let program = UnixDatagram::unbound().unwrap();
        program.connect(own.join(SOCKET)).unwrap();
        program.send(b"STATUS=warming up").unwrap();
        assert_eq!(readiness.ready_line(), None);
        program.send(b"STATUS=done\nREADY=1").unwrap();
        let line = readiness.ready_line().unwrap();
        let barrier = readiness.tell(&line, 42).unwrap();
        for expected in [&b"READY=1\n"[..], b"MAINPID=42\n"] {
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
        let mut buffer = [0; 64];
        let (length, fds) = fd_pass::receive(manager.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (&b"BARRIER=1"[..], 1));
        assert!(poll::wait(&[(barrier.0.as_fd(), Interest::Hangup)], Some(Duration::ZERO)).unwrap().is_empty());
        drop(fds);
        barrier.wait().unwrap();
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let temporary = tempfile::tempdir().unwrap();
        let readiness = Readiness::bind(temporary.path(), "/nowhere".into()).unwrap();
        // The end of a pipe stands for the end of a process: both can be read from then on.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        readiness.proxy(reader.as_fd(), 1).unwrap();
        assert!(address(Path::new("relative")).is_err());
    }
}
