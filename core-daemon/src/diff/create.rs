//! The changes of a directory as a layer's tar: what was added, changed and removed, each directory before what is in
//! it, in the order of names.
//!
//! Two trees are compared entry by entry, except where the changes lie apart already, in the upper directory of an
//! overlay: then that is walked alone, and the kernel's marks of removal become the layer's.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, major, minor};
use rung_sys::beneath::{self, Root};
use rung_sys::xattr;

use super::tar::{Entry, Kind, Writer};
use super::whiteout;
use crate::error::{Doing, Error, Result};

/// The one attribute that layers carry on: the others are the machine's.
const CAPABILITY: &[u8] = b"security.capability";

/// What to compare.
pub enum Changes<'a> {
    /// Everything in a directory.
    All(&'a Root),
    /// One file or directory in a directory.
    One(&'a OwnedFd, &'a OsStr),
    /// The upper directory of an overlay.
    Upper(&'a Root),
    /// A directory against what it was.
    Between(&'a Root, &'a Root),
}

/// What of the changes is written, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The latest time, in seconds.
    pub latest: Option<i64>,
    /// Files that are new and empty because something was mounted on them: they are left out.
    pub mounted_on: &'a [&'a str],
}

/// Writes the changes as a tar.
///
/// # Errors
/// What reading the directories or writing fails with, with the path.
pub fn create<W: Write>(changes: &Changes<'_>, wanted: Wanted<'_>, to: W) -> Result<W> {
    let (before, after, upper) = match changes {
        Changes::All(after) => (None, *after, false),
        Changes::One(within, name) => {
            let mut layer = Layer::new(to, false, wanted);
            layer.name(None, within.as_fd(), Path::new(name), name)?;
            return layer.tar.finish().doing(|| "write archive");
        }
        Changes::Upper(after) => (None, *after, true),
        Changes::Between(before, after) => (Some(*before), *after, false),
    };
    let mut layer = Layer::new(to, upper, wanted);
    let before = before.map(|before| before.directory(Path::new(""))).transpose()?;
    let after = after.directory(Path::new(""))?;
    layer.directory(before.as_ref().map(AsFd::as_fd), after.as_fd(), Path::new(""))?;
    layer.tar.finish().doing(|| "write layer")
}

/// Writes a layer that only removes: the paths, beneath the root.
///
/// # Errors
/// What writing fails with.
pub fn removals<W: Write>(paths: impl IntoIterator<Item = PathBuf>, to: W) -> io::Result<W> {
    let mut tar = Writer::new(to);
    for path in paths.into_iter().filter(|path| path.file_name().is_some()) {
        tar.entry(&removal(&path), &mut io::empty())?;
    }
    tar.finish()
}

fn removal(path: &Path) -> Entry {
    let mut name = OsString::from(".wh.");
    name.push(path.file_name().unwrap_or_default());
    plain(&path.with_file_name(name), Kind::File, 0)
}

struct Layer<'a, W> {
    tar: Writer<W>,
    upper: bool,
    wanted: Wanted<'a>,
    /// Directories on the way here that are not written yet, because nothing below them was.
    parents: Vec<(PathBuf, Entry)>,
    /// Files of several names: device and inode to the name that is written.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<'a, W: Write> Layer<'a, W> {
    fn new(to: W, upper: bool, wanted: Wanted<'a>) -> Self {
        Self { tar: Writer::new(to), upper, wanted, parents: Vec::new(), links: HashMap::new() }
    }

    fn directory(&mut self, before: Option<BorrowedFd<'_>>, after: BorrowedFd<'_>, path: &Path) -> Result<()> {
        beneath::check_depth(path)?;
        let now: BTreeSet<OsString> = beneath::entries(after)?.into_iter().collect();
        let was: BTreeSet<OsString> = match before {
            Some(before) => beneath::entries(before)?.into_iter().collect(),
            None => BTreeSet::new(),
        };
        for name in was.union(&now) {
            let path = path.join(name);
            if now.contains(name) {
                let old = before.filter(|_| was.contains(name));
                self.name(old, after, &path, name).doing(|| format!("layer: {}", path.display()))?;
            } else {
                self.removed(&path)?;
            }
        }
        Ok(())
    }

    fn name(&mut self, before: Option<BorrowedFd<'_>>, after: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<()> {
        // What is gone meanwhile was not there: a running container's files change.
        let Some(stat) = beneath::stat(after, name)? else { return Ok(()) };
        if self.upper && whiteout::is_whiteout(&stat) {
            return self.removed(path);
        }
        let was = before.map(|before| beneath::stat(before, name)).transpose()?.flatten();
        if was.is_none() && is_mounted_on(path, &stat, self.wanted.mounted_on) {
            return Ok(());
        }
        let Some(entry) = self.describe(after, path, name, &stat)? else { return Ok(()) };
        let changed = match (&was, before) {
            (Some(was), Some(before)) => is_changed(before, was, after, &stat, name)?,
            _ => true,
        };
        if entry.kind != Kind::Directory {
            return if changed { self.write(path, entry, after, name, &stat) } else { Ok(()) };
        }
        if changed {
            self.write_parents()?;
            self.tar.entry(&entry, &mut io::empty())?;
        } else {
            self.parents.push((path.to_owned(), entry));
        }
        let (inside, was) = (open(after, name)?, was.filter(is_directory));
        let before = before.filter(|_| was.is_some()).map(|before| open(before, name)).transpose()?;
        if self.upper && whiteout::is_opaque(inside.as_fd())? {
            self.removed(&path.join(".wh..opq"))?;
        }
        self.directory(before.as_ref().map(AsFd::as_fd), inside.as_fd(), path)?;
        self.parents.pop_if(|(parent, _)| parent == path);
        Ok(())
    }

    fn write_parents(&mut self) -> Result<()> {
        for (_, entry) in std::mem::take(&mut self.parents) {
            self.tar.entry(&entry, &mut io::empty())?;
        }
        Ok(())
    }

    fn removed(&mut self, path: &Path) -> Result<()> {
        self.write_parents()?;
        Ok(self.tar.entry(&removal(path), &mut io::empty())?)
    }

    fn write(
        &mut self,
        path: &Path,
        mut entry: Entry,
        within: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
    ) -> Result<()> {
        self.write_parents()?;
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                entry.kind = Kind::HardLink;
                entry.link = first.as_os_str().as_bytes().to_vec();
                (entry.size, entry.xattrs) = (0, Vec::new());
                return Ok(self.tar.entry(&entry, &mut io::empty())?);
            }
            self.links.insert(inode, path.to_owned());
        }
        if entry.kind != Kind::File {
            return Ok(self.tar.entry(&entry, &mut io::empty())?);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(within, name, flags, Mode::empty()).map_err(io::Error::from)?);
        Ok(self.tar.entry(&entry, &mut file)?)
    }

    /// The entry of a file; `None` for what layers do not have.
    fn describe(&self, within: BorrowedFd<'_>, path: &Path, name: &OsStr, stat: &FileStat) -> Result<Option<Entry>> {
        let kind = match beneath::file_type(stat) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => Kind::Symlink,
            SFlag::S_IFCHR => Kind::Character,
            SFlag::S_IFBLK => Kind::Block,
            SFlag::S_IFIFO => Kind::Fifo,
            // A socket means nothing without the process that made it.
            _ => return Ok(None),
        };
        let mut entry = plain(path, kind, stat.st_mode & 0o7777);
        (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
        entry.mtime.0 = self.wanted.latest.map_or(stat.st_mtime, |latest| stat.st_mtime.min(latest));
        match kind {
            Kind::Directory => entry.path.push(b'/'),
            Kind::File => entry.size = u64::try_from(stat.st_size).unwrap_or(0),
            Kind::Symlink => {
                entry.link = readlinkat(within, name).map_err(io::Error::from)?.as_bytes().to_vec();
            }
            Kind::Character | Kind::Block => {
                let number = |part: u64| u32::try_from(part).map_err(|_| Error::invalid("device number out of range"));
                entry.device = (number(major(stat.st_rdev))?, number(minor(stat.st_rdev))?);
            }
            _ => {}
        }
        if matches!(kind, Kind::File | Kind::Directory)
            && let Some(value) = capability(within, name)?
        {
            entry.xattrs.push((CAPABILITY.to_vec(), value));
        }
        Ok(Some(entry))
    }
}

/// Whether a file is only there because something was mounted on it.
pub(super) fn is_mounted_on(path: &Path, stat: &FileStat, places: &[&str]) -> bool {
    let is_empty = beneath::file_type(stat) == SFlag::S_IFREG && stat.st_size == 0;
    is_empty && places.iter().any(|place| Path::new(place.trim_start_matches('/')) == path)
}

fn plain(path: &Path, kind: Kind, mode: u32) -> Entry {
    Entry {
        path: path.as_os_str().as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: (0, 0),
        device: (0, 0),
        xattrs: Vec::new(),
        pieces: None,
    }
}

fn capability(within: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    match xattr::get(within, name, CAPABILITY) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        other => Ok(other?),
    }
}

fn is_directory(stat: &FileStat) -> bool {
    beneath::file_type(stat) == SFlag::S_IFDIR
}

fn open(within: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(within, name, flags, Mode::empty())?)
}

fn is_changed(
    before: BorrowedFd<'_>,
    was: &FileStat,
    after: BorrowedFd<'_>,
    now: &FileStat,
    name: &OsStr,
) -> Result<bool> {
    let shape = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    if shape(was) != shape(now) || capability(before, name)? != capability(after, name)? {
        return Ok(true);
    }
    let time = |stat: &FileStat| (stat.st_mtime, stat.st_mtime_nsec);
    Ok(match beneath::file_type(now) {
        SFlag::S_IFDIR => false,
        SFlag::S_IFLNK => {
            let target = |within| readlinkat(within, name).map_err(io::Error::from);
            target(before)? != target(after)?
        }
        SFlag::S_IFREG if was.st_size != now.st_size || time(was) != time(now) => true,
        // Times in whole seconds come from a tar: equal ones do not prove equal contents.
        SFlag::S_IFREG if now.st_mtime_nsec == 0 && (was.st_dev, was.st_ino) != (now.st_dev, now.st_ino) => {
            !is_same_content(before, after, name)?
        }
        _ => false,
    })
}

fn is_same_content(before: BorrowedFd<'_>, after: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let open = |within: BorrowedFd<'_>| -> io::Result<File> { Ok(openat(within, name, flags, Mode::empty())?.into()) };
    let (mut one, mut other) = (open(before)?, open(after)?);
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(other.read(&mut b)? == 0);
        }
        if other.read_exact(&mut b[..length]).is_err() || a[..length] != b[..length] {
            return Ok(false);
        }
    }
}
