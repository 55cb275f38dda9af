//! The part of applying a layer that needs those below it: directories the tar does not mention look as they do below,
//! or lead where a link below leads; files that only a hard link mentions are copied up.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::linkat;
use rung_sys::beneath::{self, Root};
use rung_sys::xattr;

use super::apply::{Deferred, Times, real_path, set_times};
use super::attributes;
use super::lowers::{Found, Lowers};
use crate::error::{Doing, Error, Result};

/// Makes the layer in `root` fit the directories of the layers below it, newest first.
///
/// # Errors
/// `InvalidArgument` for a hard link to what no layer has; otherwise what the kernel says, with the path.
pub fn settle(root: &Root, lowers: &[PathBuf], deferred: Deferred) -> Result<()> {
    let Deferred { implicit, links, mut times } = deferred;
    if lowers.is_empty() || (implicit.is_empty() && links.is_empty()) {
        return match links.first() {
            Some((link, target)) => Err(missing(link, target)),
            None => Ok(()),
        };
    }
    let lowers = Lowers::open(lowers).doing(|| "open the layers below")?;
    let mut moved: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    // In order, so that a directory comes before what is in it.
    for path in implicit {
        let path = after(&moved, &path);
        directory(root, &lowers, &path, &mut moved, &mut times).doing(|| format!("settle directory {path:?}"))?;
    }
    for (link, target) in links {
        let link = after(&moved, &link);
        hard_link(root, &lowers, &link, &target, &mut times).doing(|| format!("settle link {link:?}"))?;
    }
    let times = times.into_iter().map(|(path, time)| (after(&moved, &path), time)).collect();
    set_times(root, &times)
}

fn missing(link: &Path, target: &Path) -> Error {
    Error::invalid(format!("apply {link:?}: hard link to {target:?}, which is in no layer"))
}

/// Where a path is now, after directories were moved.
fn after(moved: &BTreeMap<PathBuf, PathBuf>, path: &Path) -> PathBuf {
    let nearest = path.ancestors().find_map(|ancestor| Some((ancestor, moved.get(ancestor)?)));
    match nearest {
        Some((from, to)) => path.strip_prefix(from).map_or_else(|_| path.to_owned(), |rest| to.join(rest)),
        None => path.to_owned(),
    }
}

fn directory(
    root: &Root,
    lowers: &Lowers,
    path: &Path,
    moved: &mut BTreeMap<PathBuf, PathBuf>,
    times: &mut Times,
) -> Result<()> {
    let Ok(fd) = root.directory(path) else { return Ok(()) };
    // The layer's own links lead to where it really is.
    let Some(real) = real_path(root, fd.as_fd()).filter(|real| !real.as_os_str().is_empty()) else { return Ok(()) };
    let Some(found) = lowers.find(&real, false)? else { return Ok(()) };
    match beneath::file_type(&found.stat) {
        SFlag::S_IFDIR => inherit(fd.as_fd(), &real, &found, times),
        SFlag::S_IFLNK => {
            let Some(target) = lowers.find(&real, true)? else { return Ok(()) };
            if beneath::file_type(&target.stat) != SFlag::S_IFDIR || target.path.starts_with(&real) {
                return Ok(());
            }
            relocate(root, lowers, &real, &target.path, times)?;
            moved.insert(path.to_owned(), target.path.clone());
            moved.insert(real, target.path);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Gives a directory the attributes that the layers below show.
fn inherit(directory: BorrowedFd<'_>, path: &Path, below: &Found, times: &mut Times) -> Result<()> {
    let here = OsStr::new(".");
    let name = below.path.file_name().unwrap_or(here);
    copy_attributes(below.parent.as_fd(), name, &below.stat, directory, here)?;
    times.insert(path.to_owned(), mtime(&below.stat));
    Ok(())
}

fn mtime(stat: &FileStat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

fn copy_attributes(
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    stat: &FileStat,
    to: BorrowedFd<'_>,
    to_name: &OsStr,
) -> Result<()> {
    attributes::own(to, to_name, stat.st_uid, stat.st_gid)?;
    for key in xattr::list(from, from_name)? {
        if attributes::is_overlay(&key) {
            continue;
        }
        if let Some(value) = xattr::get(from, from_name, &key)? {
            xattr::set(to, to_name, &key, &value)?;
        }
    }
    if beneath::file_type(stat) != SFlag::S_IFLNK {
        attributes::permit(to, to_name, stat.st_mode & 0o7777)?;
    }
    Ok(())
}

/// Moves the contents of a directory to where a link below leads, so that the link is not hidden by the directory.
fn relocate(root: &Root, lowers: &Lowers, from: &Path, to: &Path, times: &mut Times) -> Result<()> {
    let target = make_like_below(root, lowers, to, times)?;
    let source = root.directory(from)?;
    merge(source.as_fd(), target.as_fd(), from)?;
    let (Some(within), Some(name)) = (from.parent(), from.file_name()) else { return Ok(()) };
    Ok(beneath::remove_tree(root.directory(within)?.as_fd(), name)?)
}

/// The directory at a path without links, made with the attributes that the layers below show.
fn make_like_below(root: &Root, lowers: &Lowers, path: &Path, times: &mut Times) -> Result<std::os::fd::OwnedFd> {
    let mut made = Vec::new();
    let fd = root.make_directories(path, &mut |path| made.push(path.to_owned()))?;
    for path in made {
        if let Some(found) = lowers.find(&path, false)?
            && beneath::file_type(&found.stat) == SFlag::S_IFDIR
        {
            inherit(root.directory(&path)?.as_fd(), &path, &found, times)?;
        }
    }
    Ok(fd)
}

/// Moves everything in `from`, which is at `path`, to `to`; what comes replaces what is there, except that directories
/// are merged.
fn merge(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
    beneath::check_depth(path)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    for name in beneath::entries(from)? {
        let both =
            (openat(from, name.as_os_str(), flags, Mode::empty()), openat(to, name.as_os_str(), flags, Mode::empty()));
        if let (Ok(source), Ok(target)) = both {
            merge(source.as_fd(), target.as_fd(), &path.join(&name))?;
            beneath::remove_tree(from, &name)?;
        } else {
            beneath::remove_tree(to, &name)?;
            renameat(from, name.as_os_str(), to, name.as_os_str()).map_err(io::Error::from)?;
        }
    }
    Ok(())
}

fn hard_link(root: &Root, lowers: &Lowers, link: &Path, target: &Path, times: &mut Times) -> Result<()> {
    let found = lowers.find(target, false)?.ok_or_else(|| missing(link, target))?;
    let name = found.path.file_name().ok_or_else(|| missing(link, target))?;
    let within = make_like_below(root, lowers, found.path.parent().unwrap_or(Path::new("")), times)?;
    if beneath::stat(within.as_fd(), name)?.is_none() {
        copy_up(&found, within.as_fd(), name)?;
    }
    let (Some(to), Some(to_name)) = (link.parent(), link.file_name()) else { return Ok(()) };
    let to = make_like_below(root, lowers, to, times)?;
    match linkat(&within, name, &to, to_name, AtFlags::empty()) {
        // A later entry of the layer took the name.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn copy_up(found: &Found, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    if beneath::file_type(&found.stat) != SFlag::S_IFREG {
        return Err(Error::invalid(format!("hard link to {:?}, which is no file", found.path)));
    }
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut source = File::from(openat(&found.parent, name, read, Mode::empty()).map_err(io::Error::from)?);
    let mut copy = File::from(openat(to, name, write, Mode::from_bits_truncate(0o600)).map_err(io::Error::from)?);
    io::copy(&mut source, &mut copy)?;
    copy_attributes(found.parent.as_fd(), name, &found.stat, to, name)?;
    Ok(attributes::set_mtime(to, name, mtime(&found.stat))?)
}
