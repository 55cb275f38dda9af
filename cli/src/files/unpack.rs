//! A tar into files.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, mkfifoat, symlinkat, unlinkat};

use super::header::{Entry, Kind, skip};
use super::padding;

/// Where an archive of one file or directory goes.
#[derive(Debug)]
pub struct Target {
    /// The directory.
    pub within: OwnedFd,
    /// What the file or directory is called there; none: what is in the directory goes there without it.
    pub called: Option<OsString>,
    /// The paths in the archive do not begin with the name of what was asked for, because that is a root.
    pub bare: bool,
    /// Owners and all bits of modes are kept; otherwise it is ours, and no file gains privileges.
    pub owners: bool,
}

/// Unpacks an archive, and says how many bytes of files were in it.
///
/// # Errors
/// What reading or writing fails with, with the path; an entry that leads elsewhere.
pub fn unpack(from: &mut impl Read, target: &Target) -> io::Result<u64> {
    let (mut total, mut directories) = (0, Vec::new());
    while let Some(entry) = Entry::read(from)? {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {}", shown.escape_debug(), crate::client::reason(&error)))
        };
        let Some(parts) = place(&entry.path, target).map_err(named)? else { continue };
        one(from, target, &entry, &parts).map_err(named)?;
        total += entry.size;
        if entry.kind == Kind::Directory {
            directories.push((entry, parts));
        }
    }
    // Last, because a directory may forbid what is to be made in it, and changes with it.
    for (entry, parts) in directories.iter().rev() {
        let (parent, name) = parent(target, parts)?;
        let directory = open_directory(parent.as_fd(), name)?;
        fchmod(&directory, mode(entry, target))?;
        futimens(&directory, &TimeSpec::UTIME_OMIT, &time(entry))?;
    }
    // What is left of the sender's padding.
    io::copy(from, &mut io::sink())?;
    Ok(total)
}

/// The parts of an entry's path below the target; none for the target itself.
fn place(path: &[u8], target: &Target) -> io::Result<Option<Vec<OsString>>> {
    let elsewhere = || io::Error::new(io::ErrorKind::InvalidData, "leads elsewhere");
    let mut parts = Vec::new();
    for part in Path::new(OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_owned()),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(elsewhere()),
        }
    }
    if !target.bare {
        if parts.is_empty() {
            return Err(elsewhere());
        }
        parts.remove(0);
    }
    if let Some(name) = &target.called {
        parts.insert(0, name.clone());
    }
    Ok((!parts.is_empty()).then_some(parts))
}

fn open_directory(within: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(within, name, flags, Mode::empty())?)
}

/// The directory that a path's last part is in. No link is followed on the way.
fn parent<'a>(target: &Target, parts: &'a [OsString]) -> io::Result<(OwnedFd, &'a OsStr)> {
    let (name, above) = parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    let mut directory = target.within.try_clone()?;
    for part in above {
        directory = match open_directory(directory.as_fd(), part) {
            // Not every archive has an entry for each directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mkdirat(&directory, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                open_directory(directory.as_fd(), part)?
            }
            other => other?,
        };
    }
    Ok((directory, name))
}

fn one(from: &mut impl Read, target: &Target, entry: &Entry, parts: &[OsString]) -> io::Result<()> {
    let (within, name) = parent(target, parts)?;
    if entry.kind == Kind::Directory {
        match mkdirat(&within, name, Mode::from_bits_truncate(0o700)) {
            Err(Errno::EEXIST) if open_directory(within.as_fd(), name).is_ok() => {}
            Err(Errno::EEXIST) => {
                unlinkat(&within, name, UnlinkatFlags::NoRemoveDir)?;
                mkdirat(&within, name, Mode::from_bits_truncate(0o700))?;
            }
            made => made?,
        }
    } else {
        // Never written through what is there, which may be a link.
        match unlinkat(&within, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => {}
            removed => removed?,
        }
    }
    match entry.kind {
        Kind::Directory => {}
        Kind::File => file(from, target, entry, within.as_fd(), name)?,
        Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.link), &within, name)?,
        Kind::HardLink => {
            let linked = place(&entry.link, target)?.ok_or(io::ErrorKind::InvalidData)?;
            let (other, other_name) = parent(target, &linked)?;
            linkat(&other, other_name, &within, name, AtFlags::empty())?;
            return Ok(());
        }
        Kind::Fifo => mkfifoat(&within, name, mode(entry, target))?,
        Kind::Device => return Err(io::Error::other("is a device, which is not copied")),
    }
    if target.owners {
        let (uid, gid) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
        fchownat(&within, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if !matches!(entry.kind, Kind::Directory | Kind::File) {
        utimensat(&within, name, &TimeSpec::UTIME_OMIT, &time(entry), UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

fn file(from: &mut impl Read, target: &Target, entry: &Entry, within: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(within, name, flags, Mode::from_bits_truncate(0o600))?);
    let copied = io::copy(&mut from.take(entry.size), &mut file)?;
    if copied < entry.size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    skip(from, padding(entry.size))?;
    if target.owners {
        let (uid, gid) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
        nix::unistd::fchown(&file, Some(uid), Some(gid))?;
    }
    // After the owner, whose change takes bits away.
    fchmod(&file, mode(entry, target))?;
    futimens(&file, &TimeSpec::UTIME_OMIT, &time(entry))?;
    Ok(())
}

fn mode(entry: &Entry, target: &Target) -> Mode {
    Mode::from_bits_truncate(entry.mode & if target.owners { 0o7777 } else { 0o777 })
}

fn time(entry: &Entry) -> TimeSpec {
    TimeSpec::new(i64::try_from(entry.mtime).unwrap_or(i64::MAX), 0)
}
