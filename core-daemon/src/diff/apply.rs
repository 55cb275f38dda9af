//! A layer's tar applied to a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode as Bits, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};
use rung_sys::beneath::{self, Root};

use super::attributes;
use super::image::Unfinished;
use super::tar::{Entry, Kind, Reader};
use super::whiteout::{self, Meaning, Own};
use crate::error::{self, Doing, Error, Result};

/// Most entries of a layer.
const MAX_ENTRIES: u64 = 10_000_000;
/// Most bytes of names that are kept until the layer ends.
const MAX_TEXT: usize = 256 << 20;
/// Longest path, as the kernel has it.
pub(super) const MAX_PATH: usize = 4096;

/// Files from this size on are on their way to the disk while the rest of the layer comes in: flushing them all in the end
/// would be the longest part of a pull.
const EARLY: u64 = 128 << 10;

/// What the directory is, and so how removals are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The lowest layer: there is nothing below to remove.
    Lowest,
    /// A layer of an overlay: removals are kept for the kernel.
    Overlay,
    /// A copy of what is below: removals are done.
    Direct,
    /// No layer: nothing is removed, whatever it is called.
    Files,
}

/// What applying a layer came to.
#[derive(Debug)]
pub struct Applied {
    /// Length of the plain tar.
    pub size: u64,
    /// What the layers below decide.
    pub deferred: Deferred,
    /// Where it became an image: what is still to be written of it.
    pub image: Option<Unfinished>,
}

/// What a layer leaves open until the layers below it are known.
#[derive(Debug, Default)]
pub struct Deferred {
    /// Directories that were made because something is in them, without an entry of their own.
    pub(super) implicit: BTreeSet<PathBuf>,
    /// Hard links to files that are not in this layer, by name.
    pub(super) links: BTreeMap<PathBuf, Link>,
    /// Directories with removed names, which may have nothing below them.
    pub(super) hiding: BTreeSet<PathBuf>,
    /// Times of directories, which `settle` disturbs.
    pub(super) times: Times,
}

/// A hard link that waits for the layers below.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Where the file is.
    pub(super) target: PathBuf,
    /// What the link says of the file, without its names.
    pub(super) entry: Entry,
    /// Which of the layer's entries it is: the last that is about a file counts.
    pub(super) number: u64,
}

impl Link {
    pub(super) fn new(target: PathBuf, entry: &Entry, number: u64) -> Self {
        let (path, link, pieces) = Default::default();
        Self { target, entry: Entry { path, link, pieces, xattrs: entry.xattrs.clone(), ..*entry }, number }
    }

    /// How much memory it takes.
    fn size(&self) -> usize {
        let xattrs: usize = self.entry.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        size_of::<Self>() + self.target.as_os_str().len() + xattrs
    }
}

/// Times of directories.
pub(super) type Times = BTreeMap<PathBuf, (i64, u32)>;

impl Deferred {
    /// Nothing is left open.
    pub fn is_empty(&self) -> bool {
        self.implicit.is_empty() && self.links.is_empty() && self.hiding.is_empty()
    }

    /// What was at `path` and below it is gone.
    fn forget(&mut self, path: &Path) {
        let from_here = self.implicit.range(path.to_owned()..);
        let gone: Vec<PathBuf> = from_here.take_while(|it| it.starts_with(path)).cloned().collect();
        gone.iter().for_each(|path| _ = self.implicit.remove(path));
        let from_here = self.links.range(path.to_owned()..);
        let gone: Vec<PathBuf> =
            from_here.map(|(link, _)| link).take_while(|it| it.starts_with(path)).cloned().collect();
        gone.iter().for_each(|path| _ = self.links.remove(path));
    }
}

/// Applies `tar` to the directory `root`, of which not more than `limit` bytes are accepted.
///
/// # Errors
/// `InvalidArgument` for what is no tar, `DataLoss` for one that is truncated, `ResourceExhausted` for one that is too
/// large or a full disk; otherwise what the kernel says, with the path. What was made stays for the caller to remove.
pub fn apply(root: Root, tar: impl BufRead, mode: Mode, limit: u64) -> Result<Applied> {
    let mut reader = Reader::new(tar, limit);
    let deferred = Deferred::default();
    let mut layer = Layer { root, mode, parent: None, deferred, own: Own::default(), text: 0, entries: 0 };
    while let Some(entry) = reader.next_entry()? {
        layer.entry(&mut reader, &entry).doing(|| format!("apply {:?}", String::from_utf8_lossy(&entry.path)))?;
    }
    let size = reader.finish()?;
    set_times(&layer.root, &layer.deferred.times)?;
    Ok(Applied { size, deferred: layer.deferred, image: None })
}

struct Layer {
    root: Root,
    mode: Mode,
    /// The directory of the entry before, which is most often that of the next.
    parent: Option<(PathBuf, OwnedFd)>,
    deferred: Deferred,
    /// With [`Mode::Direct`]: what this layer made.
    own: Own,
    /// Bytes of names that are kept.
    text: usize,
    entries: u64,
}

impl Layer {
    fn entry<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Error::invalid(format!("layer of more than {MAX_ENTRIES} files")));
        }
        if self.text > MAX_TEXT {
            return Err(Error::new(
                error::Kind::ResourceExhausted,
                format!("layer of more than {MAX_TEXT} bytes of names"),
            ));
        }
        if entry.path.contains(&0) || entry.path.len() > MAX_PATH || entry.link.len() > MAX_PATH {
            return Err(Error::invalid("its path is malformed"));
        }
        let path = beneath::lexical(Path::new(OsStr::from_bytes(&entry.path)));
        let Some(name) = path.file_name() else { return self.top(entry) };
        if entry.kind == Kind::Other {
            return Ok(());
        }
        let within = path.parent().unwrap_or(Path::new(""));
        let meaning = if self.mode == Mode::Files { Meaning::File } else { Meaning::of(name) };
        match meaning {
            Meaning::Nothing => Ok(()),
            Meaning::Opaque => self.opaque(within),
            Meaning::Whiteout(hidden) => self.whiteout(within, hidden),
            Meaning::File => {
                let parent = self.take_parent(within)?;
                let made = self.file(reader, entry, parent.as_fd(), &path, name);
                // What was removed may have been the parent's own way.
                if made? {
                    self.parent = Some((within.to_owned(), parent));
                }
                Ok(())
            }
        }
    }

    /// The entry of the root itself.
    fn top(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind == Kind::Directory {
            attributes::set(self.root.as_fd(), OsStr::new("."), entry)?;
            self.deferred.times.insert(PathBuf::new(), entry.mtime);
        }
        Ok(())
    }

    /// Makes one file; false where the directories known so far may not be what they were.
    fn file<R: BufRead>(
        &mut self,
        reader: &mut Reader<R>,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
    ) -> Result<bool> {
        // Most files are new: what is in the way of one is looked for only when it cannot be made.
        let made = if entry.kind == Kind::File { create_file(parent, name)? } else { None };
        let (cleared, replaced) = if made.is_some() { (false, false) } else { self.clear(entry, parent, path, name)? };
        if self.mode == Mode::Direct {
            self.text += self.own.note(path);
            if cleared {
                self.own.replaced(path);
            }
        }
        match entry.kind {
            Kind::Directory => self.directory(entry, parent, path, name, replaced)?,
            Kind::File => {
                let made = made.map_or_else(|| create_file(parent, name), |made| Ok(Some(made)))?;
                let mut file = made.ok_or_else(|| io::Error::from(Errno::EEXIST))?;
                write_file(reader, entry, &mut file)?;
                attributes::set_of_file(parent, name, &file, entry)?;
            }
            Kind::HardLink => self.hard_link(entry, parent, path, name)?,
            Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.link), parent, name).map_err(io::Error::from)?,
            Kind::Character => make_node(entry, parent, name, SFlag::S_IFCHR)?,
            Kind::Block => make_node(entry, parent, name, SFlag::S_IFBLK)?,
            Kind::Fifo => make_node(entry, parent, name, SFlag::S_IFIFO)?,
            Kind::Other => return Ok(true),
        }
        // A link's were given to the file that it is.
        if !matches!(entry.kind, Kind::HardLink | Kind::File) {
            attributes::set(parent, name, entry)?;
        }
        Ok(!cleared)
    }

    /// Removes what is in the way: everything but a directory where a directory comes. Says whether anything was
    /// removed, and whether what comes replaces rather than adds to what is below.
    fn clear(&mut self, entry: &Entry, parent: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<(bool, bool)> {
        let Some(stat) = beneath::stat(parent, name)? else { return Ok((false, false)) };
        if entry.kind == Kind::Directory && beneath::file_type(&stat) == SFlag::S_IFDIR {
            return Ok((false, false));
        }
        beneath::remove_tree(parent, name)?;
        self.deferred.forget(path);
        Ok((true, true))
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        replaced: bool,
    ) -> Result<()> {
        match mkdirat(parent, name, Bits::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if replaced && self.mode == Mode::Overlay {
            whiteout::make_opaque(parent, name)?;
        }
        self.deferred.implicit.remove(path);
        if self.deferred.times.insert(path.to_owned(), entry.mtime).is_none() {
            self.text += path.as_os_str().len();
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, parent: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<()> {
        let target = beneath::lexical(Path::new(OsStr::from_bytes(&entry.link)));
        let Some(target_name) = target.file_name() else {
            return Err(Error::invalid("hard link to the root"));
        };
        let here = match self.root.directory(target.parent().unwrap_or(Path::new(""))) {
            Ok(directory) => beneath::stat(directory.as_fd(), target_name)?.map(|stat| (directory, stat)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => return Err(error.into()),
        };
        match here {
            Some((_, stat)) if beneath::file_type(&stat) == SFlag::S_IFDIR => {
                Err(Error::invalid("hard link to a directory"))
            }
            Some((directory, stat)) if self.mode != Mode::Overlay || !whiteout::is_whiteout(&stat) => {
                linkat(&directory, target_name, parent, name, AtFlags::empty()).map_err(io::Error::from)?;
                Ok(attributes::set_of_link(parent, name, &stat, entry)?)
            }
            None if self.mode == Mode::Overlay => {
                // What it links to may be such a link itself.
                let target = self.deferred.links.get(&target).map_or(target, |link| link.target.clone());
                let link = Link::new(target, entry, self.entries);
                self.text += path.as_os_str().len() + link.size();
                self.deferred.links.insert(path.to_owned(), link);
                Ok(())
            }
            _ => Err(Error::invalid(format!("hard link to {target:?}, which is not there"))),
        }
    }

    fn whiteout(&mut self, within: &Path, hidden: &OsStr) -> Result<()> {
        match self.mode {
            Mode::Lowest | Mode::Files => Ok(()),
            // It is of this layer, though not made yet.
            Mode::Overlay if self.deferred.links.contains_key(&within.join(hidden)) => Ok(()),
            Mode::Overlay => {
                let parent = self.take_parent(within)?;
                whiteout::hide(parent.as_fd(), hidden)?;
                // Where it really is: a link on the way may be replaced later.
                if let Some(real) = real_path(&self.root, parent.as_fd()) {
                    let length = real.as_os_str().len();
                    self.text += if self.deferred.hiding.insert(real) { length } else { 0 };
                }
                self.parent = Some((within.to_owned(), parent));
                Ok(())
            }
            Mode::Direct => {
                let Some(parent) = self.existing(within)? else { return Ok(()) };
                self.parent = None;
                Ok(self.own.prune(parent.as_fd(), hidden, &within.join(hidden))?)
            }
        }
    }

    fn opaque(&mut self, within: &Path) -> Result<()> {
        match self.mode {
            Mode::Lowest | Mode::Files => Ok(()),
            Mode::Overlay => {
                let parent = self.take_parent(within)?;
                whiteout::make_opaque(parent.as_fd(), OsStr::new(""))?;
                self.parent = Some((within.to_owned(), parent));
                Ok(())
            }
            Mode::Direct => {
                let Some(parent) = self.existing(within)? else { return Ok(()) };
                self.parent = None;
                Ok(self.own.prune_inside(parent.as_fd(), within)?)
            }
        }
    }

    fn existing(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.root.directory(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory an entry is in, made where it is missing; the caller gives it back in `parent`.
    fn take_parent(&mut self, path: &Path) -> Result<OwnedFd> {
        if let Some((known, fd)) = self.parent.take()
            && known == path
        {
            return Ok(fd);
        }
        match self.make(path) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory && self.mode == Mode::Overlay => {
                self.reopen(path)?;
                Ok(self.make(path)?)
            }
            other => Ok(other?),
        }
    }

    fn make(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let mut new = Vec::new();
        let directory = self.root.make_directories(path, &mut |made| new.push(made.to_owned()));
        for made in new {
            let it = self.root.directory(&made)?;
            plain_directory(it.as_fd(), OsStr::new("."))?;
            self.text += made.as_os_str().len();
            self.deferred.implicit.insert(made);
        }
        directory
    }

    /// Something below a name that this layer removed: the name becomes a directory that hides the one below.
    fn reopen(&mut self, path: &Path) -> Result<()> {
        let mut ancestors: Vec<&Path> = path.ancestors().filter(|ancestor| ancestor.file_name().is_some()).collect();
        ancestors.reverse();
        for ancestor in ancestors {
            let (Some(within), Some(name)) = (ancestor.parent(), ancestor.file_name()) else { continue };
            let parent = self.root.directory(within)?;
            if beneath::stat(parent.as_fd(), name)?.is_some_and(|stat| whiteout::is_whiteout(&stat)) {
                beneath::remove_tree(parent.as_fd(), name)?;
                mkdirat(&parent, name, Bits::from_bits_truncate(0o755)).map_err(io::Error::from)?;
                plain_directory(parent.as_fd(), name)?;
                return Ok(whiteout::make_opaque(parent.as_fd(), name)?);
            }
        }
        Ok(())
    }
}

/// Sets the times of directories, once nothing is made in them any more. One that is gone again is left out.
pub(super) fn set_times(root: &Root, times: &Times) -> Result<()> {
    for (path, mtime) in times {
        if let Ok(directory) = root.directory(path) {
            attributes::set_mtime(directory.as_fd(), OsStr::new("."), *mtime)?;
        }
    }
    Ok(())
}

/// Gives a directory without an entry what it has by itself: a set-group-id bit above it, and the daemon's umask, say
/// nothing of it.
pub(super) fn plain_directory(within: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    attributes::own(within, name, 0, 0)?;
    attributes::permit(within, name, 0o755)
}

/// A new file; `None` where the name is taken.
fn create_file(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<File>> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Bits::from_bits_truncate(0o600)) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(Errno::EEXIST) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write_file<R: BufRead>(reader: &mut Reader<R>, entry: &Entry, file: &mut File) -> Result<()> {
    let Some(pieces) = &entry.pieces else {
        reader.data(entry.size, &mut |bytes| Ok(file.write_all(bytes)?))?;
        if entry.size >= EARLY {
            rung_sys::writeback::start(file.as_fd(), 0, 0);
        }
        return Ok(());
    };
    file.set_len(entry.size)?;
    for (offset, length) in pieces {
        let mut at = *offset;
        reader.data(*length, &mut |bytes| {
            file.write_all_at(bytes, at)?;
            at += bytes.len() as u64;
            Ok(())
        })?;
    }
    Ok(())
}

fn make_node(entry: &Entry, parent: BorrowedFd<'_>, name: &OsStr, kind: SFlag) -> Result<()> {
    let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
    let device = if kind == SFlag::S_IFIFO { 0 } else { device };
    Ok(mknodat(parent, name, kind, Bits::from_bits_truncate(0o600), device).map_err(io::Error::from)?)
}

/// A path as it was given to the kernel, back from a descriptor: `None` where it is not below `root`.
pub(super) fn real_path(root: &Root, fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let of = |fd: BorrowedFd<'_>| -> Option<OsString> {
        use std::os::fd::AsRawFd;
        Some(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?.into_os_string())
    };
    let (root, path) = (of(root.as_fd())?, of(fd)?);
    let rest = path.as_bytes().strip_prefix(root.as_bytes())?;
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    Some(PathBuf::from(OsString::from_vec(rest.to_vec())))
}
