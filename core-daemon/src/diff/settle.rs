//! The part of applying a layer that needs those below it: directories the tar does not mention look as they do below,
//! or lead where a link below leads; files that only a hard link mentions are copied up; what hides nothing goes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, mknodat};
use nix::unistd::{linkat, symlinkat};
use rung_sys::beneath::{self, Root};
use rung_sys::{holes, xattr};

use super::apply::{Deferred, Link, Times, plain_directory, real_path, set_times};
use super::attributes;
use super::lowers::{Found, Lowers};
use super::tar::Entry;
use super::whiteout;
use crate::error::{Doing, Error, Result};
use crate::id;

/// Makes the layer in `root` fit the directories of the layers below it, newest first.
///
/// # Errors
/// `InvalidArgument` for a hard link to what no layer has; otherwise what the kernel says, with the path.
pub fn settle(root: &Root, lowers: &[PathBuf], deferred: Deferred) -> Result<()> {
    if deferred.is_empty() {
        return Ok(());
    }
    let Deferred { implicit, links, hiding, mut times } = deferred;
    let lowers = Lowers::open(lowers).doing(|| "open the layers below")?;
    let mut moved: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    // In order, so that a directory comes before what is in it.
    for path in implicit {
        let path = after(&moved, &path);
        directory(root, &lowers, &path, &mut moved, &mut times).doing(|| format!("settle directory {path:?}"))?;
    }
    let links: BTreeMap<PathBuf, Link> = links.into_iter().map(|(path, link)| (after(&moved, &path), link)).collect();
    let moved_to = moved.values().cloned().collect();
    let mut making =
        Links { root, lowers: &lowers, links: &links, moved_to, copies: BTreeMap::new(), times: &mut times };
    let mut made = Vec::new();
    for (path, link) in &links {
        if making.link(path, &link.target).doing(|| format!("settle link {path:?}"))? {
            made.push((link.number, path, &link.entry));
        }
    }
    made.sort_unstable_by_key(|(number, ..)| *number);
    for (_, path, entry) in made {
        describe(root, path, entry).doing(|| format!("settle link {path:?}"))?;
    }
    for path in hiding {
        let path = after(&moved, &path);
        uncover(root, &lowers, &path).doing(|| format!("settle whiteouts in {path:?}"))?;
    }
    let times = times.into_iter().map(|(path, time)| (after(&moved, &path), time)).collect();
    set_times(root, &times)
}

/// Gives the file that a link is what the link's entry says.
fn describe(root: &Root, link: &Path, entry: &Entry) -> Result<()> {
    let (Some(within), Some(name)) = (link.parent(), link.file_name()) else { return Ok(()) };
    let within = root.directory(within)?;
    let Some(stat) = beneath::stat(within.as_fd(), name)? else { return Ok(()) };
    Ok(attributes::set_of_link(within.as_fd(), name, &stat, entry)?)
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
            let Some(target) = lowers.leads_to(&real)?.filter(|target| !target.starts_with(&real)) else {
                return Ok(());
            };
            relocate(root, lowers, &real, &target, times)?;
            moved.insert(path.to_owned(), target.clone());
            moved.insert(real, target);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Takes removed names out of a directory that has nothing below it: overlayfs would list them, and find none of them.
fn uncover(root: &Root, lowers: &Lowers, path: &Path) -> Result<()> {
    let Ok(fd) = root.directory(path) else { return Ok(()) };
    let Some(real) = real_path(root, fd.as_fd()).filter(|real| !real.as_os_str().is_empty()) else { return Ok(()) };
    let is_merged = |found: Found| beneath::file_type(&found.stat) == SFlag::S_IFDIR;
    if !hides_below(root, &real)? && lowers.find(&real, false)?.is_some_and(is_merged) {
        return Ok(());
    }
    for name in beneath::entries(fd.as_fd())? {
        if beneath::stat(fd.as_fd(), &name)?.is_some_and(|stat| whiteout::is_whiteout(&stat)) {
            beneath::remove_tree(fd.as_fd(), &name)?;
        }
    }
    Ok(())
}

/// Whether a directory, or one that it is in, is marked as hiding what is below it.
fn hides_below(root: &Root, path: &Path) -> Result<bool> {
    for ancestor in path.ancestors() {
        if whiteout::is_opaque(root.directory(ancestor)?.as_fd())? {
            return Ok(true);
        }
    }
    Ok(false)
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
    let (Some(within), Some(name)) = (from.parent(), from.file_name()) else { return Ok(()) };
    // Out of the way: what is in it may have its very name, and go to the directory that it is in.
    let within = root.directory(within)?;
    let aside = OsString::from(format!(".moved-{}", id::random::<8>()?));
    renameat(&within, name, &within, aside.as_os_str()).map_err(io::Error::from)?;
    merge(source.as_fd(), target.as_fd(), from)?;
    Ok(beneath::remove_tree(within.as_fd(), &aside)?)
}

/// The directory at a path without links, made with the attributes that the layers below show.
fn make_like_below(root: &Root, lowers: &Lowers, path: &Path, times: &mut Times) -> Result<std::os::fd::OwnedFd> {
    let mut made = Vec::new();
    let fd = root.make_directories(path, &mut |path| made.push(path.to_owned()))?;
    for path in made {
        let directory = root.directory(&path)?;
        match lowers.find(&path, false)? {
            Some(found) if beneath::file_type(&found.stat) == SFlag::S_IFDIR => {
                inherit(directory.as_fd(), &path, &found, times)?;
            }
            _ => plain_directory(directory.as_fd(), OsStr::new("."))?,
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

/// Hard links to files of the layers below, being made.
struct Links<'a> {
    root: &'a Root,
    lowers: &'a Lowers,
    /// All of them, by name.
    links: &'a BTreeMap<PathBuf, Link>,
    /// Where directories were moved to.
    moved_to: BTreeSet<PathBuf>,
    /// Where the one copy of each file is, by the file's path below.
    copies: BTreeMap<PathBuf, PathBuf>,
    times: &'a mut Times,
}

impl Links<'_> {
    /// Makes one; false where a later entry of the layer took the name.
    fn link(&mut self, link: &Path, target: &Path) -> Result<bool> {
        let real = self.lowers.real(target)?;
        // What it links to may be such a link itself.
        let target = self.links.get(&real).map_or(target, |link| &link.target);
        let found = self.lowers.find(target, false)?;
        let (Some(within), Some(name)) = (link.parent(), link.file_name()) else { return Ok(false) };
        let to = make_like_below(self.root, self.lowers, within, self.times)?;
        if beneath::stat(to.as_fd(), name)?.is_some() {
            return Ok(false);
        }
        let path = found.as_ref().map_or(&real, |found| &found.path);
        let copy = match (self.copies.get(path), &found) {
            (Some(copy), _) => copy.clone(),
            (None, Some(found)) => self.copy(found, link, target)?,
            (None, None) if self.is_own(path, target)? => path.clone(),
            (None, None) => return Err(missing(link, target)),
        };
        if copy != link {
            let (Some(within), Some(copied)) = (copy.parent(), copy.file_name()) else { return Ok(false) };
            let from = self.root.directory(within)?;
            linkat(&from, copied, &to, name, AtFlags::empty()).map_err(io::Error::from)?;
        }
        self.copies.insert(path.clone(), copy);
        Ok(true)
    }

    /// Copies a file up under its own name, so that both names are one file; where the layer removes or replaces that
    /// name, only under the link's. Says where the copy is.
    fn copy(&mut self, found: &Found, link: &Path, target: &Path) -> Result<PathBuf> {
        let place = if self.shows_below(&found.path)? {
            &found.path
        } else if self.is_own(&found.path, target)? {
            return Ok(found.path.clone());
        } else {
            link
        };
        let (Some(within), Some(name)) = (place.parent(), place.file_name()) else { return Err(missing(link, place)) };
        let to = make_like_below(self.root, self.lowers, within, self.times)?;
        copy_up(found, to.as_fd(), name)?;
        Ok(place.to_owned())
    }

    /// Whether the layer leaves what the layers below have at a path without links as it is.
    fn shows_below(&self, path: &Path) -> Result<bool> {
        if path.ancestors().any(|ancestor| self.links.contains_key(ancestor)) {
            return Ok(false);
        }
        let mut way = PathBuf::new();
        for part in path.iter() {
            let directory = self.root.directory(&way)?;
            if whiteout::is_opaque(directory.as_fd())? {
                return Ok(false);
            }
            match beneath::stat(directory.as_fd(), part)? {
                None => return Ok(true),
                Some(stat) if beneath::file_type(&stat) != SFlag::S_IFDIR => return Ok(false),
                Some(_) => way.push(part),
            }
        }
        Ok(false)
    }

    /// Whether `target` leads to a file of the layer's own because links below lead there, or led that file there. One
    /// that has just that path came after the link: it would have been found.
    fn is_own(&self, path: &Path, target: &Path) -> Result<bool> {
        if path == target && !path.ancestors().any(|ancestor| self.moved_to.contains(ancestor)) {
            return Ok(false);
        }
        let (Some(within), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
        let Ok(within) = self.root.directory(within) else { return Ok(false) };
        let stat = beneath::stat(within.as_fd(), name)?;
        Ok(stat.is_some_and(|stat| beneath::file_type(&stat) != SFlag::S_IFDIR && !whiteout::is_whiteout(&stat)))
    }
}

/// Copies a file, of whatever type but a directory, to a name that is free.
fn copy_up(found: &Found, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let kind = beneath::file_type(&found.stat);
    let source = found.path.file_name().filter(|_| kind != SFlag::S_IFDIR);
    let source = source.ok_or_else(|| Error::invalid(format!("hard link to {:?}, a directory", found.path)))?;
    match kind {
        SFlag::S_IFREG => copy_contents(found.parent.as_fd(), source, to, name)?,
        SFlag::S_IFLNK => {
            let leads_to = readlinkat(&found.parent, source).map_err(io::Error::from)?;
            symlinkat(leads_to.as_os_str(), to, name).map_err(io::Error::from)?;
        }
        kind => {
            mknodat(to, name, kind, Mode::from_bits_truncate(0o600), found.stat.st_rdev).map_err(io::Error::from)?
        }
    }
    copy_attributes(found.parent.as_fd(), source, &found.stat, to, name)?;
    Ok(attributes::set_mtime(to, name, mtime(&found.stat))?)
}

fn copy_contents(from: BorrowedFd<'_>, source: &OsStr, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut from = File::from(openat(from, source, read, Mode::empty())?);
    let mut copy = File::from(openat(to, name, write, Mode::from_bits_truncate(0o600))?);
    holes::copy(&mut from, &mut copy)
}
