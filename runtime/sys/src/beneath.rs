//! Paths inside a directory that somebody else fills: resolved by the kernel, which does not let them out.
//!
//! A symbolic link inside is followed as if the directory were the root; `..` at the top stays there; magic links of
//! /proc are refused. What is found is a descriptor, and the descriptor is what is acted on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::NixPath as _;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Most parts of a path that is made.
const MAX_PARTS: usize = 4096;
/// How deep directories may nest for those who go down a tree by calling themselves, which takes stack and a descriptor
/// for each level. Whoever goes down step by step can make deeper ones.
pub const MAX_DEPTH: usize = 256;
/// How far a removal goes down at a time.
const REACH: usize = 128;

/// A directory whose contents are not trusted.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens the directory at a trusted path.
    ///
    /// # Errors
    /// When it is not there or not a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Takes an open directory.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens what `path` leads to inside, following links inside.
    ///
    /// # Errors
    /// What the kernel says, such as `ENOENT`, or `ELOOP` for a magic link.
    pub fn resolve(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let relative = relative(path);
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            // EAGAIN: something was renamed meanwhile, and the kernel could not prove that the path stayed inside.
            match openat2(&self.fd, relative, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Opens the directory that `path` leads to inside.
    ///
    /// # Errors
    /// As [`Root::resolve`], and `ENOTDIR`.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Opens the directory that `path` leads to, making what is missing with mode 0755, and tells `made` of each
    /// directory it makes, by its path as given.
    ///
    /// # Errors
    /// As [`Root::resolve`]; `ENOTDIR` where a file is in the way.
    pub fn make_directories(&self, path: &Path, made: &mut dyn FnMut(&Path)) -> io::Result<OwnedFd> {
        match self.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return self.directory(path) };
        let within = self.make_directories(parent, made)?;
        match mkdirat(&within, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => made(path),
            Err(Errno::EEXIST) => self.make_link_target(&within, path, name, made)?,
            Err(error) => return Err(error.into()),
        }
        self.directory(path)
    }

    /// `name` is there but leads to nothing: where it is a link, makes what it points to.
    fn make_link_target(
        &self,
        within: &OwnedFd,
        path: &Path,
        name: &OsStr,
        made: &mut dyn FnMut(&Path),
    ) -> io::Result<()> {
        let target = nix::fcntl::readlinkat(within, name).map_err(|_| io::Error::from(Errno::ENOTDIR))?;
        let target = Path::new(&target);
        // A chain of links that each point to the next is as long as the kernel would follow.
        let joined = match path.parent() {
            Some(parent) if target.is_relative() => parent.join(target),
            _ => target.to_owned(),
        };
        if joined.components().count() > MAX_PARTS || joined.as_os_str().len() > 4096 {
            return Err(Errno::ELOOP.into());
        }
        let plain = lexical(&joined);
        if plain == lexical(path) {
            return Err(Errno::ELOOP.into());
        }
        self.make_directories(&plain, made).map(drop)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `path` without `.`, and with `..` taking away what is before it; never above the top.
pub fn lexical(path: &Path) -> std::path::PathBuf {
    let mut clean = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn relative(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() { Path::new(".") } else { path }
}

/// What is at `name` in `directory`, itself and not what it links to; `None` where there is nothing.
///
/// # Errors
/// What the kernel says.
pub fn stat(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The type bits of a mode.
pub fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Refuses a directory at `path` within a tree that is deeper than [`MAX_DEPTH`].
///
/// # Errors
/// Says so.
pub fn check_depth(path: &Path) -> io::Result<()> {
    if path.components().count() > MAX_DEPTH {
        let text = format!("directories nest deeper than {MAX_DEPTH} levels");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// Removes `name` from `directory`, with everything below it, however deep that is. Links are removed, never followed,
/// and nothing there is no error.
///
/// # Errors
/// What the kernel says of the first thing that cannot be removed.
pub fn remove_tree(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let Some(top) = remove_file(directory, name)? else { return Ok(()) };
    let mut moved = 0;
    loop {
        let before = moved;
        for entry in entries(top.as_fd())? {
            remove_below(top.as_fd(), &entry, REACH, &mut (top.as_fd(), &mut moved))?;
        }
        if moved == before {
            return remove_directory(directory, name);
        }
    }
}

/// Removes what is at a path whose directory is trusted, with everything below it, as [`remove_tree`].
///
/// # Errors
/// As [`remove_tree`].
pub fn remove(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match Root::open(parent) {
        Ok(root) => remove_tree(root.as_fd(), name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what is not a directory; a directory is opened.
fn remove_file(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        // Not a directory after all: what unlink refused stays refused.
        Err(Errno::ENOTDIR | Errno::ELOOP) => Err(Errno::EPERM.into()),
        Err(error) => Err(error.into()),
    }
}

fn remove_directory(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a tree down to `reach` levels. What lies deeper is moved up to the top, to be removed from there.
fn remove_below(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    reach: usize,
    top: &mut (BorrowedFd<'_>, &mut u64),
) -> io::Result<()> {
    let Some(fd) = remove_file(directory, name)? else { return Ok(()) };
    for entry in entries(fd.as_fd())? {
        match reach {
            0 => move_up(fd.as_fd(), &entry, top)?,
            _ => remove_below(fd.as_fd(), &entry, reach - 1, top)?,
        }
    }
    remove_directory(directory, name)
}

/// Moves `name` to a free name at the top of the tree that is removed.
fn move_up(from: BorrowedFd<'_>, name: &OsStr, (top, moved): &mut (BorrowedFd<'_>, &mut u64)) -> io::Result<()> {
    loop {
        **moved += 1;
        match rename_to_free(from, name, *top, &moved.to_string()) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `renameat2` with `RENAME_NOREPLACE`, which nix has for glibc alone.
fn rename_to_free(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, free: &str) -> nix::Result<()> {
    const NOREPLACE: libc::c_uint = 1;
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let renamed = name.with_nix_path(|name| {
        free.with_nix_path(|free| {
            // SAFETY: both names end with a zero and, like the descriptors, live through the call.
            unsafe { libc::syscall(libc::SYS_renameat2, from, name.as_ptr(), to, free.as_ptr(), NOREPLACE) }
        })
    })??;
    Errno::result(renamed).map(drop)
}

/// The names in a directory, without `.` and `..`.
///
/// # Errors
/// What the kernel says.
pub fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).expect("etc");
        std::fs::create_dir(dir.path().join("etc")).expect("outer etc");
        std::fs::write(dir.path().join("etc/secret"), b"x").expect("secret");
        symlink("../../../../etc", inside.join("up")).expect("link");
        symlink("/etc", inside.join("absolute")).expect("link");
        symlink("/proc/self/root", inside.join("magic")).expect("link");
        let root = Root::open(&inside).expect("open");
        for way in ["up", "absolute", "../../etc", "/etc", "./etc/../../etc"] {
            let found = root.directory(Path::new(way)).expect(way);
            assert!(entries(found.as_fd()).expect("entries").is_empty(), "{way}");
        }
        assert!(root.directory(Path::new("magic")).is_err());
    }

    #[test]
    fn missing_directories_are_made_through_links_inside() {
        let dir = tempfile::tempdir().expect("temporary directory");
        symlink("usr/lib", dir.path().join("lib")).expect("link");
        symlink("loop", dir.path().join("loop")).expect("link");
        let root = Root::open(dir.path()).expect("open");
        let mut made = Vec::new();
        root.make_directories(Path::new("lib/a/b"), &mut |path| made.push(path.to_owned())).expect("make");
        assert!(dir.path().join("usr/lib/a/b").is_dir());
        assert_eq!(made, ["usr", "usr/lib", "lib/a", "lib/a/b"].map(std::path::PathBuf::from));
        assert!(root.make_directories(Path::new("loop/x"), &mut |_| {}).is_err());
        std::fs::write(dir.path().join("file"), b"").expect("file");
        assert!(root.make_directories(Path::new("file/x"), &mut |_| {}).is_err());
    }

    #[test]
    fn removal_does_not_follow_links() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(dir.path().join("kept")).expect("kept");
        std::fs::write(dir.path().join("kept/file"), b"x").expect("file");
        std::fs::create_dir_all(dir.path().join("gone/a/b")).expect("gone");
        symlink("../kept", dir.path().join("gone/link")).expect("link");
        remove(&dir.path().join("gone")).expect("remove");
        assert!(!dir.path().join("gone").exists());
        assert!(dir.path().join("kept/file").exists());
        remove(&dir.path().join("gone")).expect("remove nothing");
    }

    #[test]
    fn a_tree_may_be_deeper_than_any_path() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = Root::open(dir.path()).expect("open");
        let mut at = openat(&root, ".", OFlag::O_DIRECTORY, Mode::empty()).expect("open");
        for _ in 0..6 * REACH {
            for name in ["1", "d"] {
                mkdirat(&at, name, Mode::S_IRWXU).expect("make");
            }
            at = openat(&at, "d", OFlag::O_DIRECTORY, Mode::empty()).expect("open");
        }
        remove_tree(root.as_fd(), OsStr::new("d")).expect("remove");
        assert_eq!(entries(root.as_fd()).expect("entries"), ["1"]);
    }
}
