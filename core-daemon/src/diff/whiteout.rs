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

/// What a layer made in a copy of what is below it, by path, and where nothing but that is left.
#[derive(Debug, Default)]
pub(super) struct Own {
    made: HashSet<PathBuf>,
    pruned: HashSet<PathBuf>,
}

impl Own {
    /// Notes that `path`, and so every directory on the way to it, is the layer's own. Says how many bytes of names are
    /// new.
    pub(super) fn note(&mut self, path: &Path) -> usize {
        let mut new = 0;
        for ancestor in path.ancestors() {
            if self.made.contains(ancestor) {
                break;
            }
            self.made.insert(ancestor.to_owned());
            new += ancestor.as_os_str().len() + 1;
        }
        new
    }

    /// `path` is now something else, which may lead to a directory that was not pruned.
    pub(super) fn replaced(&mut self, path: &Path) {
        self.pruned.remove(path);
    }

    /// Removes `name`, at `path` from the root, and what is below it, except what the layer made.
    pub(super) fn prune(&mut self, directory: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
        if !self.made.contains(path) {
            return beneath::remove_tree(directory, name);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(directory, name, flags, Bits::empty()) {
            Ok(fd) => self.prune_inside(fd.as_fd(), path),
            // It is a file, of this layer.
            Err(_) => Ok(()),
        }
    }

    /// Removes everything in a directory, except what the layer made. Once that is done, whatever comes is the layer's.
    pub(super) fn prune_inside(&mut self, directory: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        if path.ancestors().any(|ancestor| self.pruned.contains(ancestor)) {
            return Ok(());
        }
        beneath::entries(directory)?.iter().try_for_each(|name| self.prune(directory, name, &path.join(name)))?;
        self.pruned.insert(path.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pruned_is_not_gone_through_again() {
        let dir = tempfile::tempdir().expect("directory");
        let (below, own) = (dir.path().join("d/below"), dir.path().join("d/own"));
        std::fs::create_dir_all(&below).expect("directory");
        std::fs::write(&own, "").expect("file");
        let root = std::fs::File::open(dir.path()).expect("open");
        let mut layer = Own::default();
        assert_eq!(layer.note(Path::new("d/own")), 9);
        assert_eq!(layer.note(Path::new("d/own")), 0);
        let mut prune = || layer.prune(root.as_fd(), OsStr::new("d"), Path::new("d")).expect("prune");
        prune();
        assert!(own.exists() && !below.exists());
        // Nobody but the layer itself can have made anything since.
        std::fs::create_dir(&below).expect("directory");
        prune();
        assert!(below.exists());
    }

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
