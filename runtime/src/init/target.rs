//! Finding and making places inside the container's root without ever stepping outside it.
//!
//! The image, and every volume another container can write to, is hostile: any component may be a link, and may become
//! one between two looks. So nothing here checks a path and then uses it: each component is opened by the kernel with
//! the root as the limit (`RESOLVE_IN_ROOT`), and what is returned is the descriptor that was opened.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Doing as _, Error, Kind, Result};

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// As many links are followed as the kernel itself would follow.
const MAX_LINKS: usize = 40;

/// Opens what is at `path` inside `root`, as a place (`O_PATH`).
pub fn find(root: BorrowedFd<'_>, path: &Path, follow_last: bool) -> nix::Result<OwnedFd> {
    open(root, path, OFlag::O_PATH | if follow_last { OFlag::empty() } else { OFlag::O_NOFOLLOW })
}

/// Opens what is at `path` inside `root` with these flags.
pub fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens a place inside `root` and refuses any link on the way.
pub fn find_without_links(root: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    open_with(root, path, OFlag::O_PATH, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    loop {
        // The kernel answers EAGAIN when a rename elsewhere made it lose its way; trying again is the documented cure.
        match openat2(root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve)) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens the place at `path` inside `root`, making what is missing on the way.
pub fn find_or_make(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd> {
    match find(root, path, true) {
        Err(Errno::ENOENT) => make_missing(root, path, make),
        other => other.doing(|| format!("open {} in the root", path.display())),
    }
}

/// As [`find_or_make`], for what was not found.
pub fn make_missing(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd> {
    if make == Make::Directory
        && let Some(made) = make_last(root, path)
    {
        return Ok(made);
    }
    walk(root, path, make).doing(|| format!("make mount point {}", path.display()))
}

/// Makes a directory of which nothing but itself is missing, as is usual. What somebody has put in its place meanwhile
/// is not it, and no link to anywhere.
fn make_last(root: BorrowedFd<'_>, path: &Path) -> Option<OwnedFd> {
    let (above, name) = (path.parent()?, path.file_name()?);
    let above = find(root, above, true).ok()?;
    mkdirat(&above, name, Mode::from_bits_truncate(0o755)).ok()?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(&above, name, flags, Mode::empty()).ok()
}

/// Goes down one component at a time, expanding links by hand, because a dangling link must lead to a place inside the
/// root that can be made.
fn walk(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd> {
    let mut links = 0;
    let mut pending: Vec<OsString> = parts(path);
    let mut directories: Vec<OwnedFd> = Vec::new();
    while let Some(part) = pending.pop() {
        let here = directories.last().map_or(root, OwnedFd::as_fd);
        if part == ".." {
            directories.pop();
            continue;
        }
        let is_last = pending.is_empty();
        let name = Path::new(&part);
        let opened = match openat(here, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => make_one(here, name, if is_last { make } else { Make::Directory })?,
            other => other?,
        };
        if kind_of(opened.as_fd())? == SFlag::S_IFLNK {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = PathBuf::from(readlinkat(&opened, "")?);
            // A link of procfs with an absolute text is one of those that lead to an open file, whatever the text says.
            if target.is_absolute() && fstatfs(&opened)?.filesystem_type() == PROC_SUPER_MAGIC {
                return Err(Errno::ELOOP.into());
            }
            if target.is_absolute() {
                directories.clear();
            }
            pending.extend(parts(&target));
            continue;
        }
        directories.push(opened);
    }
    match directories.pop() {
        Some(found) => Ok(found),
        None => Ok(root.try_clone_to_owned()?),
    }
}

/// The components of a path, last first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

fn make_one(directory: BorrowedFd<'_>, name: &Path, make: Make) -> Result<OwnedFd> {
    let place = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match make {
        Make::Directory => match mkdirat(directory, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        },
        Make::File => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(directory, name, flags, Mode::from_bits_truncate(0o644)) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(openat(directory, name, place, Mode::empty())?)
}

/// Opens `name` in `directory` without following a link there, making it when it is missing.
pub fn find_or_make_last(directory: BorrowedFd<'_>, name: &Path, make: Make) -> Result<OwnedFd> {
    match openat(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => make_one(directory, name, make),
        other => Ok(other?),
    }
}

/// The file type of what a descriptor refers to.
pub fn kind_of(fd: BorrowedFd<'_>) -> nix::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
}

/// Whether a descriptor refers to a directory.
pub fn is_directory(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(kind_of(fd)? == SFlag::S_IFDIR)
}

/// Opens the directory that holds `path` inside `root`, making it when it is missing, and returns it with the name.
pub fn parent_of(root: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(Kind::Invalid, format!("{} names no file", path.display())));
    };
    if name.as_bytes().is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{} names no file", path.display())));
    }
    Ok((find_or_make(root, parent, Make::Directory)?, PathBuf::from(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().expect("temp");
        let fd = std::fs::File::open(directory.path()).expect("open").into();
        (directory, fd)
    }

    #[test]
    fn missing_components_are_made() {
        let (directory, fd) = root();
        find_or_make(fd.as_fd(), Path::new("/a/b/c"), Make::File).expect("made");
        assert!(directory.path().join("a/b/c").is_file());
        assert!(
            is_directory(find_or_make(fd.as_fd(), Path::new("a/b"), Make::File).expect("found").as_fd()).expect("stat")
        );
    }

    #[test]
    fn links_stay_inside() {
        let (directory, fd) = root();
        let outside = tempfile::tempdir().expect("temp");
        symlink(outside.path(), directory.path().join("out")).expect("link");
        symlink("../../../../etc/dangling", directory.path().join("up")).expect("link");
        find_or_make(fd.as_fd(), Path::new("/out/x"), Make::Directory).expect("made");
        find_or_make(fd.as_fd(), Path::new("/up"), Make::File).expect("made");
        assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
        assert!(directory.path().join("etc/dangling").is_file());
        assert!(directory.path().join(outside.path().strip_prefix("/").expect("absolute")).join("x").is_dir());
    }

    #[test]
    fn loops_end() {
        let (directory, fd) = root();
        symlink("b", directory.path().join("a")).expect("link");
        symlink("a", directory.path().join("b")).expect("link");
        assert!(find_or_make(fd.as_fd(), Path::new("/a"), Make::File).is_err());
        assert!(find_without_links(fd.as_fd(), Path::new("/a")).is_err());
    }
}
