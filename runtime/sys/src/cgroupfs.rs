//! Cgroup directories as descriptors, and the formats of their files.
//!
//! A [`CgroupDir`] is opened once, checked to lie on a cgroup file system, and everything else goes through its
//! descriptor: a directory swapped or over-mounted later cannot redirect a write.

mod tree;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::{Error, Result};

/// Whether the cgroup (or the file in it) that a call was about is not there.
#[must_use]
pub fn is_missing(error: &Error) -> bool {
    // A file read or written while its cgroup goes away answers ENODEV instead of ENOENT.
    error.is(&[libc::ENOENT, libc::ENODEV])
}

/// Whether the caller lacked the permission.
#[must_use]
pub fn is_denied(error: &Error) -> bool {
    error.is(&[libc::EACCES, libc::EPERM, libc::EROFS])
}

fn failed(call: &'static str, path: impl AsRef<Path>, errno: Errno) -> Error {
    Error::new(call, format!("{:?}", path.as_ref()), errno as i32)
}

/// Which of the two cgroup file systems a directory is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// What is mounted at `path`, if it is a cgroup file system.
#[must_use]
pub fn version_at(path: &Path) -> Option<Version> {
    let found = nix::sys::statfs::statfs(path).ok()?.filesystem_type();
    if found == CGROUP2_SUPER_MAGIC {
        Some(Version::V2)
    } else if found == CGROUP_SUPER_MAGIC {
        Some(Version::V1)
    } else {
        None
    }
}

/// An open cgroup directory.
#[derive(Debug)]
pub struct CgroupDir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

impl CgroupDir {
    /// Opens an existing cgroup; refuses a directory of any other file system.
    ///
    /// # Errors
    /// When it cannot be opened; `ENOTSUP` when it is not a cgroup.
    pub fn open(path: &Path) -> Result<Self> {
        let at = |errno| failed("open", path, errno);
        let fd = openat(AT_FDCWD, path, DIRECTORY, Mode::empty()).map_err(at)?;
        let dir = Self { fd, path: path.to_owned() };
        dir.require_cgroup()?;
        Ok(dir)
    }

    /// Opens the cgroup at `path`, making it and the missing ones above it, down from `mount` (a cgroup mount point).
    /// The second value says whether the last directory is new.
    ///
    /// # Errors
    /// When a directory cannot be made or opened, or is not a cgroup.
    pub fn create(mount: &Path, path: &Path) -> Result<(Self, bool)> {
        let created = match make(path) {
            Err(e) if e.is(&[libc::ENOENT]) => {
                let mut above: Vec<&Path> =
                    path.ancestors().skip(1).take_while(|up| *up != mount && up.starts_with(mount)).collect();
                while let Some(up) = above.pop() {
                    make(up)?;
                }
                make(path)?
            }
            other => other?,
        };
        Ok((Self::open(path)?, created))
    }

    fn require_cgroup(&self) -> Result<()> {
        require_cgroup(&self.fd, &self.path)
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `value` into `file` in one system call, as the kernel wants it.
    ///
    /// # Errors
    /// When the file is not there or the kernel refuses the value.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        self.write_each(file, [value])
    }

    /// Writes `values` into `file` one after the other, each in a system call of its own.
    ///
    /// # Errors
    /// When the file is not there or the kernel refuses a value; those before it are written then.
    pub fn write_each<'v>(&self, file: &str, values: impl IntoIterator<Item = &'v str>) -> Result<()> {
        let fd = self.open_to_write(file)?;
        for value in values {
            let refused = |errno| Error::new("write", format!("{:?}, {value:?}", self.path.join(file)), errno as i32);
            loop {
                match nix::unistd::write(&fd, value.as_bytes()) {
                    Ok(_) => break,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(refused(errno)),
                }
            }
        }
        Ok(())
    }

    /// The descriptor of `file`, opened for writing; to be handed to a process that shall write for itself.
    ///
    /// # Errors
    /// When the file is not there or may not be written.
    pub fn open_to_write(&self, file: &str) -> Result<OwnedFd> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(&self.fd, file, flags, Mode::empty()).map_err(|errno| failed("openat", self.path.join(file), errno))
    }

    /// The descriptor of `file`, opened for reading (to poll it, or to read it many times).
    ///
    /// # Errors
    /// When the file is not there or may not be read.
    pub fn open_to_read(&self, file: &str) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(&self.fd, file, flags, Mode::empty()).map_err(|errno| failed("openat", self.path.join(file), errno))
    }

    /// The whole of `file`.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn read(&self, file: &str) -> Result<String> {
        let fd = self.open_to_read(file)?;
        read_whole(&fd).map_err(|errno| failed("read", self.path.join(file), errno))
    }

    /// Opens a file that announces its changes.
    ///
    /// # Errors
    /// When the file is not there or may not be read.
    pub fn watch(&self, file: &str) -> Result<Watched> {
        Ok(Watched { fd: self.open_to_read(file)?, path: self.path.join(file) })
    }

    /// As [`Self::read`], but `None` for a file that is not there: many are optional.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read_optional(&self, file: &str) -> Result<Option<String>> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            // Files of a disabled facility (PSI, swap accounting) exist and answer EOPNOTSUPP.
            Err(e) if is_missing(&e) || e.is(&[libc::EOPNOTSUPP]) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether `file` is there.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        nix::sys::stat::fstatat(&self.fd, file, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names of the cgroups directly below.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn children(&self) -> Result<Vec<OsString>> {
        let at = |errno| failed("getdents", &self.path, errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty()).map_err(at)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(at)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if entry.file_type() == Some(nix::dir::Type::Directory) && name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Opens the cgroup `name` directly below.
    ///
    /// # Errors
    /// When there is none.
    pub fn child(&self, name: &OsStr) -> Result<Self> {
        let path = self.path.join(name);
        match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(errno) => Err(failed("open", path, errno)),
        }
    }

    /// Makes the cgroup `name` directly below; one that is there already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_child(&self, name: &OsStr) -> Result<()> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(failed("mkdir", self.path.join(name), errno)),
        }
    }

    /// Removes the empty cgroup `name` directly below; one that is already gone is fine.
    ///
    /// # Errors
    /// `EBUSY` while it has processes or cgroups below it.
    pub fn remove_child(&self, name: &OsStr) -> Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
            Err(errno) => Err(failed("rmdir", self.path.join(name), errno)),
        }
    }

    /// The processes in this cgroup itself, not below.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn procs(&self) -> Result<Vec<i32>> {
        // A threaded cgroup refuses the process list; its threads stand for its processes.
        let text = match self.read("cgroup.procs") {
            Err(e) if e.is(&[libc::EOPNOTSUPP]) => self.read("cgroup.threads")?,
            other => other?,
        };
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Changes the owner, not the group, of the directory (`file` = None) or of one of its files.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn give(&self, file: Option<&str>, uid: u32) -> Result<()> {
        let uid = Some(nix::unistd::Uid::from_raw(uid));
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW | nix::fcntl::AtFlags::AT_EMPTY_PATH;
        let at = |errno| {
            let path = file.map_or_else(|| self.path.clone(), |name| self.path.join(name));
            failed("fchownat", path, errno)
        };
        nix::unistd::fchownat(&self.fd, file.unwrap_or(""), uid, None, flags).map_err(at)
    }
}

impl AsFd for CgroupDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<CgroupDir> for OwnedFd {
    fn from(dir: CgroupDir) -> Self {
        dir.fd
    }
}

impl AsRawFd for CgroupDir {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// An open file of a cgroup that announces its changes: a poll for `POLLPRI` wakes when there was one since the last
/// [`Self::read`]. Only a read through the polled descriptor takes the announcement back.
#[derive(Debug)]
pub struct Watched {
    fd: OwnedFd,
    path: PathBuf,
}

impl Watched {
    /// The whole of the file, as it is now.
    ///
    /// # Errors
    /// When it cannot be read, as when its cgroup is gone.
    pub fn read(&self) -> Result<String> {
        read_whole(&self.fd).map_err(|errno| failed("read", &self.path, errno))
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn read_whole(fd: &OwnedFd) -> nix::Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        match nix::sys::uio::pread(fd, &mut chunk, i64::try_from(text.len()).unwrap_or(i64::MAX)) {
            Ok(0) => break,
            Ok(got) => text.extend_from_slice(&chunk[..got]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn require_cgroup(fd: &OwnedFd, path: &Path) -> Result<()> {
    let at = |errno| failed("open", path, errno);
    match fstatfs(fd).map_err(at)?.filesystem_type() {
        CGROUP2_SUPER_MAGIC | CGROUP_SUPER_MAGIC => Ok(()),
        _ => Err(at(Errno::ENOTSUP)),
    }
}

/// Opens `file` of the cgroup at `path` for writing; refuses a file of any other file system.
///
/// # Errors
/// When it is not there or may not be written; `ENOTSUP` when it is not in a cgroup.
pub fn open_to_write(path: &Path, file: &str) -> Result<OwnedFd> {
    let path = path.join(file);
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(AT_FDCWD, &path, flags, Mode::empty()).map_err(|errno| failed("open", &path, errno))?;
    require_cgroup(&fd, &path)?;
    Ok(fd)
}

fn make(path: &Path) -> Result<bool> {
    match mkdirat(AT_FDCWD, path, Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(failed("mkdir", path, errno)),
    }
}

/// Removes the empty cgroup at `path`; one that is already gone is fine.
///
/// # Errors
/// `EBUSY` while it has processes or cgroups below it.
pub fn remove(path: &Path) -> Result<()> {
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(failed("rmdir", path, errno)),
    }
}

/// The lines of a `/proc/<pid>/cgroup`: controllers (none for v2) and path, which is any bytes: a container names the
/// cgroups that it makes, and whoever starts a program those that it is in.
pub fn memberships(table: &[u8]) -> impl Iterator<Item = (Vec<String>, PathBuf)> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let names = std::str::from_utf8(names).ok()?.split(',');
        let controllers = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some((controllers, PathBuf::from(OsStr::from_bytes(path))))
    })
}

/// The number in a file of one value; `max` is `u64::MAX`.
#[must_use]
pub fn single(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// The pairs of a flat-keyed file (`key value` lines); lines of another form are skipped.
pub fn flat_keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// The value of `key` in a flat-keyed file.
#[must_use]
pub fn flat_value(text: &str, key: &str) -> Option<u64> {
    flat_keyed(text).find_map(|(found, value)| (found == key).then_some(value))
}

/// The lines of a nested-keyed file (`key sub=value sub=value`), each as its key and its pairs.
pub fn nested_keyed(text: &str) -> impl Iterator<Item = (&str, impl Iterator<Item = (&str, &str)>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let key = words.next()?;
        Some((key, words.filter_map(|word| word.split_once('='))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_lines() {
        let table = b"12:cpu,cpuacct:/a:b\n1:name=systemd:/\xff\n0::/unified\n";
        let found: Vec<_> = memberships(table).collect();
        assert_eq!(found[0], (vec!["cpu".to_owned(), "cpuacct".to_owned()], PathBuf::from("/a:b")));
        assert_eq!(found[1], (vec!["name=systemd".to_owned()], PathBuf::from(OsStr::from_bytes(b"/\xff"))));
        assert_eq!(found[2], (vec![], PathBuf::from("/unified")));
    }

    #[test]
    fn formats() {
        assert_eq!(single("max\n"), Some(u64::MAX));
        assert_eq!(single("12\n"), Some(12));
        assert_eq!(single("a few"), None);
        assert_eq!(flat_value("oom 1\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(flat_value("oom 1\noom_kill 3\n", "oom_"), None);
        let io: Vec<_> =
            nested_keyed("8:0 rbytes=1 wbytes=2\n").map(|(key, pairs)| (key, pairs.collect::<Vec<_>>())).collect();
        assert_eq!(io, [("8:0", vec![("rbytes", "1"), ("wbytes", "2")])]);
    }

    /// A cgroup of the test's own in the v2 hierarchy of this machine; `None` without one or without root.
    pub(super) fn own_cgroup(name: &str) -> Option<CgroupDir> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mount = mounts.into_iter().find(|mount| version_at(mount) == Some(Version::V2))?;
        nix::unistd::geteuid().is_root().then_some(())?;
        let path = mount.join(format!("rung-sys-{name}-{}", std::process::id()));
        Some(CgroupDir::create(mount, &path).ok()?.0)
    }

    #[test]
    fn what_was_read_is_announced_no_more() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(dir) = own_cgroup("watch") else { return };
        let events = dir.watch("cgroup.events").unwrap();
        let woken = |limit: u16| {
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::from(limit)).unwrap() > 0
        };
        assert!(events.read().unwrap().contains("frozen 0"));
        assert!(!woken(20));
        dir.write("cgroup.freeze", "1").unwrap();
        assert!(woken(10_000));
        assert!(events.read().unwrap().contains("frozen 1"));
        assert!(!woken(20));
        remove(dir.path()).unwrap();
    }

    #[test]
    fn an_ordinary_directory_is_no_cgroup() {
        let plain = tempfile::tempdir().unwrap();
        let refused = CgroupDir::open(plain.path()).unwrap_err();
        assert_eq!(refused.errno(), libc::ENOTSUP);
        assert!(refused.to_string().starts_with("open(\"/"), "{refused}");
    }
}
