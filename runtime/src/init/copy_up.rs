//! Filling a tmpfs with what it is going to cover (`tmpcopyup`).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{fchownat, symlinkat};

use super::target;
use crate::error::{Doing as _, Error, Kind, Result};

/// Deeper trees than this are refused rather than followed with the stack.
const MAX_DEPTH: usize = 64;

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
    let names: Vec<_> =
        directory.iter().filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned())).collect();
    for name in names {
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = name.as_c_str();
        let found = fstatat(&from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(found.st_mode & 0o7777);
        let open_flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, mode)?;
                let inner = openat(&from, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
                let made = openat(to, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
                copy_directory(inner, made.as_fd(), depth + 1)?;
            }
            SFlag::S_IFLNK => symlinkat(readlinkat(&from, name)?.as_os_str(), to, name)?,
            SFlag::S_IFREG => {
                let mut source = File::from(openat(&from, name, open_flags, Mode::empty())?);
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut made = File::from(openat(to, name, flags, mode)?);
                std::io::copy(&mut source, &mut made).doing(|| format!("copy {name:?} ({})", made.as_raw_fd()))?;
            }
            _ => mknodat(to, name, kind, mode, found.st_rdev)?,
        }
        let (uid, gid) = (nix::unistd::Uid::from_raw(found.st_uid), nix::unistd::Gid::from_raw(found.st_gid));
        fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind != SFlag::S_IFLNK {
            // The umask and the change of owner both took bits away.
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(())
}
