//! Filling a tmpfs with what it is going to cover (`tmpcopyup`).

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{fchownat, symlinkat};
use rung_sys::xattr;

use super::target;
use crate::error::{Doing as _, Error, Kind, Result};

/// Deeper trees than this are refused: each level costs two descriptors, of which a process has a thousand.
const MAX_DEPTH: usize = 256;

/// Copies everything below `from` to `to`; links are copied as links.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    if !target::is_directory(from)? {
        return Err(Error::new(Kind::Invalid, "tmpcopyup: the destination is no directory"));
    }
    let source = openat(from, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    copy_directory(source, to, 0).doing(|| "tmpcopyup")
}

fn copy_directory(from: OwnedFd, to: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::new(Kind::Invalid, format!("directories nest deeper than {MAX_DEPTH}")));
    }
    let mut directory = Dir::from_fd(from.try_clone()?)?;
    let names: nix::Result<Vec<_>> = directory.iter().map(|entry| Ok(entry?.file_name().to_owned())).collect();
    drop(directory);
    for name in names? {
        if !matches!(name.to_bytes(), b"." | b"..") {
            copy_entry(from.as_fd(), to, &name, depth).doing(|| format!("copy {name:?}"))?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<()> {
    let found = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
    let mode = Mode::from_bits_truncate(found.st_mode & 0o7777);
    let open_flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(to, name, mode)?;
            let inner = openat(from, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
            let made = openat(to, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_directory(inner, made.as_fd(), depth + 1)?;
        }
        SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
        SFlag::S_IFREG => {
            let mut source = File::from(openat(from, name, open_flags, Mode::empty())?);
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut made = File::from(openat(to, name, flags, mode)?);
            std::io::copy(&mut source, &mut made)?;
        }
        _ => mknodat(to, name, kind, mode, found.st_rdev)?,
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(found.st_uid), nix::unistd::Gid::from_raw(found.st_gid));
    fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind != SFlag::S_IFLNK {
        // The umask and the change of owner both took bits away.
        fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        copy_attributes(from, to, OsStr::from_bytes(name.to_bytes()))?;
    }
    Ok(())
}

/// File capabilities, access lists and the like: what this file system has and this process may set. The label is the
/// mount's own.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let no_matter = |error: &std::io::Error| matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM));
    let attributes = match xattr::list(from, name) {
        Err(error) if no_matter(&error) => return Ok(()),
        other => other.doing(|| "list the attributes")?,
    };
    for attribute in attributes.iter().filter(|attribute| *attribute != b"security.selinux") {
        let Some(value) = xattr::get(from, name, attribute)? else { continue };
        match xattr::set(to, name, attribute, &value) {
            Err(error) if !no_matter(&error) => {
                return Err(error).doing(|| format!("set the attribute {}", String::from_utf8_lossy(attribute)));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_deep_trees_are_copied() {
        let (from, to) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let deep: std::path::PathBuf = (0..100).map(|_| "d").collect();
        std::fs::create_dir_all(from.path().join(&deep)).expect("made");
        std::fs::write(from.path().join("f"), "text").expect("written");
        let (from, target) = (File::open(from.path()).expect("open"), File::open(to.path()).expect("open"));
        let set = xattr::set(from.as_fd(), OsStr::new("f"), b"user.a", b"value");
        copy(from.as_fd(), target.as_fd()).expect("copied");
        assert!(to.path().join(deep).is_dir());
        assert_eq!(std::fs::read_to_string(to.path().join("f")).expect("read"), "text");
        let again = copy(from.as_fd(), target.as_fd()).expect_err("the first entry is there").to_string();
        assert!(again.contains("copy \"d\": ") || again.contains("copy \"f\": "), "{again}");
        // A file system without attributes proves nothing either way.
        if set.is_ok() {
            let found = xattr::get(target.as_fd(), OsStr::new("f"), b"user.a").expect("read");
            assert_eq!(found.as_deref(), Some(&b"value"[..]));
        }
    }
}
