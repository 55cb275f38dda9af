//! Opening and reading files in as few system calls as it takes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// Opens a file that exists; the descriptor is closed on exec.
///
/// musl's open(2) asks for that a second time, because of kernels of long ago; its openat(2) does not.
pub fn open(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// The path of an open file, as /proc tells it.
pub fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Reads a file whole. The standard library reads the first 32 bytes of one that does not know its size, as those of
/// `/proc`, and then 32 more.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path, OFlag::O_RDONLY)?;
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        match nix::unistd::read(&file, &mut text[length..]) {
            Ok(0) => break,
            Ok(got) => length += got,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if length == text.len() {
            text.resize(length * 2, 0);
        }
    }
    text.truncate(length);
    Ok(text)
}

/// As [`read`], for a text.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
    String::from_utf8(read(path.as_ref())?).map_err(not_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for length in [0, 1, 4095, 4096, 4097, 100_000] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_to_string(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&directory.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(read_to_string("/proc/self/stat").unwrap().ends_with('\n'));
    }
}
