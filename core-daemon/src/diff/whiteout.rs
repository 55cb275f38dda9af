//! Names in a layer that say what it removes, and what overlayfs and a plain directory make of them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode as Bits, SFlag, mknodat};
use rung_sys::{beneath, xattr};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// What the last part of a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A file of the layer.
    File,
    /// The lower file of this name is removed.
    Whiteout(&'a OsStr),
    /// The lower contents of the directory are removed.
    Opaque,
    /// Something of the writer's own.
    Nothing,
}

impl<'a> Meaning<'a> {
    pub(super) fn of(name: &'a OsStr) -> Self {
        let bytes = name.as_bytes();
        match bytes.strip_prefix(PREFIX) {
            None => Self::File,
            _ if bytes == OPAQUE => Self::Opaque,
            _ if bytes.starts_with(RESERVED) => Self::Nothing,
            Some(b"" | b"." | b"..") => Self::Nothing,
            Some(hidden) => Self::Whiteout(OsStr::from_bytes(hidden)),
        }
    }
}

/// Whether this is how overlayfs keeps a removed file.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    beneath::file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// Marks a name as removed. What this layer itself has there stays: a directory hides what is below it instead.
pub(super) fn hide(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match beneath::stat(directory, name)? {
        None => Ok(mknodat(directory, name, SFlag::S_IFCHR, Bits::empty(), 0)?),
        Some(stat) if beneath::file_type(&stat) == SFlag::S_IFDIR => make_opaque(directory, name),
        Some(_) => Ok(()),
    }
}

/// Marks a directory as hiding what is below it.
pub(super) fn make_opaque(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    xattr::set(directory, name, opaque_key(), b"y")
}

/// Where the mark is kept: a user namespace other than the first has its own place for it (`userxattr`).
pub(super) fn opaque_key() -> &'static [u8] {
    static KEY: LazyLock<&[u8]> = LazyLock::new(|| {
        if rung_sys::namespace::in_user_namespace() { b"user.overlay.opaque" } else { b"trusted.overlay.opaque" }
    });
    &KEY
}

/// Whether a directory hides what is below it.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let value = xattr::get(directory, OsStr::new(""), opaque_key())?;
    Ok(value.is_some_and(|value| value == b"y"))
}

/// Removes `name`, at `path` from the root, and what is below it, except what this layer made.
pub(super) fn prune(directory: BorrowedFd<'_>, name: &OsStr, path: &Path, made: &HashSet<PathBuf>) -> io::Result<()> {
    if !made.contains(path) {
        return beneath::remove_tree(directory, name);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Bits::empty()) {
        Ok(fd) => prune_inside(fd.as_fd(), path, made),
        // It is a file, of this layer.
        Err(_) => Ok(()),
    }
}

/// Removes everything in a directory, except what this layer made.
pub(super) fn prune_inside(directory: BorrowedFd<'_>, path: &Path, made: &HashSet<PathBuf>) -> io::Result<()> {
    beneath::entries(directory)?.iter().try_for_each(|name| prune(directory, name, &path.join(name), made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let of = |name: &'static str| Meaning::of(OsStr::new(name));
        assert_eq!(of("a"), Meaning::File);
        assert_eq!(of(".wh"), Meaning::File);
        assert_eq!(of(".wh.a"), Meaning::Whiteout(OsStr::new("a")));
        assert_eq!(of(".wh..wh..opq"), Meaning::Opaque);
        assert_eq!(of(".wh..wh.plnk"), Meaning::Nothing);
        for escape in [".wh.", ".wh..", ".wh..."] {
            assert_eq!(of(escape), Meaning::Nothing, "{escape}");
        }
    }
}
