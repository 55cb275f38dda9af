//! Sockets at paths that are longer than an address may be.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Longest path in an address, which ends with a NUL.
const LONGEST: usize = 107;

/// A path for an address: the socket's own, or a short way to it that is good for as long as this is there.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl SocketPath {
    /// The way to the socket at `path`.
    ///
    /// # Errors
    /// Where its directory cannot be opened, and it has to be.
    pub fn of(path: &Path) -> io::Result<Self> {
        let (directory, name) = match (path.parent(), path.file_name()) {
            (Some(directory), Some(name)) if path.as_os_str().len() > LONGEST => (directory, name),
            _ => return Ok(Self { path: path.to_owned(), _directory: None }),
        };
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_may_lie_deep() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        for path in [deep.join("socket"), dir.path().join("socket")] {
            let _listener = UnixListener::bind(SocketPath::of(&path).unwrap().as_ref()).unwrap();
            assert!(path.exists());
            UnixStream::connect(SocketPath::of(&path).unwrap().as_ref()).unwrap();
        }
        assert_eq!(SocketPath::of(Path::new("/run/x")).unwrap().as_ref(), Path::new("/run/x"));
    }
}
