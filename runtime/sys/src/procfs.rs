//! Writing to `/proc` so that the write arrives in `/proc`.
//!
//! A container image, or a race between containers that share a volume, can put another file where a runtime expects
//! one of procfs: the label meant for `attr/exec` then goes nowhere and the container runs unconfined, or goes where it
//! does harm. So the root is opened once and checked to be procfs's root, and a file is opened beneath it with mounts,
//! links and magic links forbidden on the way.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Error, Result};

/// The inode of the root directory of every procfs.
const ROOT_INODE: u64 = 1;

/// A checked procfs.
#[derive(Debug)]
pub struct Procfs {
    root: OwnedFd,
}

impl Procfs {
    /// Opens and checks `/proc`.
    pub fn open() -> Result<Self> {
        let failed = |errno: Errno| Error::new("open", "\"/proc\"", errno as i32);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = openat(AT_FDCWD, "/proc", flags, Mode::empty()).map_err(failed)?;
        let real = fstatfs(&root).map_err(failed)?.filesystem_type() == PROC_SUPER_MAGIC
            && fstat(&root).map_err(failed)?.st_ino == ROOT_INODE;
        if real { Ok(Self { root }) } else { Err(Error::new("open", "\"/proc\" (not procfs)", libc::EXDEV)) }
    }

    /// Makes one of this process's own, of its pid namespace, that nobody else can see or mount over.
    pub fn private() -> Result<Self> {
        Ok(Self { root: crate::mount::FileSystem::open("proc")?.mount(0)? })
    }

    /// Opens `path`, which has no links and no mounts in it.
    pub fn open_file(&self, path: &str, flags: OFlag) -> Result<OwnedFd> {
        let failed = |errno: Errno| Error::new("openat2", format!("\"/proc/{path}\""), errno as i32);
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.root, path, how).map_err(failed)
    }

    /// The directory of the calling thread, such as `12/task/12`.
    pub fn this_thread(&self) -> Result<String> {
        let failed = |errno: Errno| Error::new("readlinkat", "\"/proc/thread-self\"", errno as i32);
        let target = readlinkat(&self.root, "thread-self").map_err(failed)?;
        target.into_string().map_err(|_| failed(Errno::EILSEQ))
    }

    /// Writes `value` into `path` in one call.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        let file = self.open_file(path, OFlag::O_WRONLY)?;
        loop {
            match nix::unistd::write(&file, value.as_bytes()) {
                Ok(written) if written == value.len() => return Ok(()),
                Ok(_) => return Err(Error::new("write", format!("\"/proc/{path}\", {value:?}"), libc::EIO)),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Error::new("write", format!("\"/proc/{path}\", {value:?}"), errno as i32));
                }
            }
        }
    }

    /// Reads the start of `path`, enough for every file of one value.
    pub fn read(&self, path: &str) -> Result<String> {
        let file = self.open_file(path, OFlag::O_RDONLY)?;
        let mut text = [0_u8; 4096];
        match nix::unistd::read(&file, &mut text) {
            Ok(got) => Ok(String::from_utf8_lossy(&text[..got]).into_owned()),
            Err(errno) => Err(Error::new("read", format!("\"/proc/{path}\""), errno as i32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_refuses_links() {
        let proc = Procfs::open().unwrap();
        let own = proc.this_thread().unwrap();
        assert!(proc.read(&format!("{own}/status")).unwrap().starts_with("Name:"));
        assert!(proc.read("self/status").unwrap_err().is(&[libc::ELOOP]));
        assert!(proc.read("../etc/passwd").unwrap_err().is(&[libc::EXDEV]));
        assert!(proc.open_file(&format!("{own}/root"), OFlag::O_PATH).unwrap_err().is(&[libc::ELOOP]));
    }
}
