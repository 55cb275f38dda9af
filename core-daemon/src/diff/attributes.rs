//! Owner, extended attributes, permissions and times of a made file, in the order that keeps them: a change of owner
//! clears set-id bits and capabilities, and any change of contents the times.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use rung_sys::{beneath, xattr};

use super::tar::{Entry, Kind};

/// Times that every file system can hold: from 1901 to 2446.
const EARLIEST: i64 = -(1 << 31);
const LATEST: i64 = (1 << 34) - (1 << 31) - 1;

/// Gives `name` in `directory` the attributes of `entry`, except the times of a directory, which change again.
pub(super) fn set(directory: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> io::Result<()> {
    own(directory, name, entry.uid, entry.gid)?;
    for (key, value) in &entry.xattrs {
        set_xattr(directory, name, key, value, entry.kind)?;
    }
    if entry.kind != Kind::Symlink {
        permit(directory, name, entry.mode)?;
    }
    if entry.kind != Kind::Directory {
        set_mtime(directory, name, entry.mtime)?;
    }
    Ok(())
}

/// The same for a regular file that is open: by its descriptor, where there is a call for that.
pub(super) fn set_of_file(directory: BorrowedFd<'_>, name: &OsStr, file: &File, entry: &Entry) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    for (key, value) in &entry.xattrs {
        set_xattr(directory, name, key, value, entry.kind)?;
    }
    fchmod(file, Mode::from_bits_truncate(entry.mode))?;
    let (seconds, nanoseconds) = within_range(entry.mtime);
    let time = TimeSpec::new(seconds, i64::from(nanoseconds));
    Ok(futimens(file, &time, &time)?)
}

/// Gives a file what an entry says that is but another name of it: the last entry counts. What `stat` has already is left
/// alone, because to give a file to its owner takes its capabilities away.
pub(super) fn set_of_link(directory: BorrowedFd<'_>, name: &OsStr, stat: &FileStat, entry: &Entry) -> io::Result<()> {
    let is_owners = (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid);
    if !is_owners {
        own(directory, name, entry.uid, entry.gid)?;
    }
    for (key, value) in &entry.xattrs {
        set_xattr(directory, name, key, value, entry.kind)?;
    }
    let is_permitted = is_owners && stat.st_mode & 0o7777 == entry.mode;
    if !is_permitted && beneath::file_type(stat) != SFlag::S_IFLNK {
        permit(directory, name, entry.mode)?;
    }
    let (seconds, nanoseconds) = within_range(entry.mtime);
    if (stat.st_mtime, stat.st_mtime_nsec) != (seconds, i64::from(nanoseconds)) {
        set_mtime(directory, name, entry.mtime)?;
    }
    Ok(())
}

pub(super) fn own(directory: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    Ok(fchownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Sets permission bits of what is known not to be a link.
pub(super) fn permit(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(fchmodat(directory, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?)
}

/// The nearest time that every file system can hold.
pub(super) fn within_range((seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
    match seconds {
        ..EARLIEST => (EARLIEST, 0),
        EARLIEST..=LATEST => (seconds, nanoseconds),
        _ => (LATEST, 0),
    }
}

pub(super) fn set_mtime(directory: BorrowedFd<'_>, name: &OsStr, mtime: (i64, u32)) -> io::Result<()> {
    let (seconds, nanoseconds) = within_range(mtime);
    let time = TimeSpec::new(seconds, i64::from(nanoseconds));
    Ok(utimensat(directory.as_fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Sets one attribute. What overlayfs itself keeps in attributes is not for a layer to say: it would redirect the
/// directory to another one below. What the file system has no place for is left out, as every unpacker does.
fn set_xattr(directory: BorrowedFd<'_>, name: &OsStr, key: &[u8], value: &[u8], kind: Kind) -> io::Result<()> {
    if is_overlay(key) {
        return Ok(());
    }
    match xattr::set(directory, name, key, value) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTSUP as i32) => Ok(()),
        // Only files and directories have user attributes.
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) && key.starts_with(b"user.") => {
            if matches!(kind, Kind::File | Kind::Directory) { Err(error) } else { Ok(()) }
        }
        other => other,
    }
}

pub(super) fn is_overlay(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.")
}
