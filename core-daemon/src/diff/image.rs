//! A layer's tar made into an EROFS image in one pass, by the same rules by which it is applied to a directory.
//!
//! The contents of files go to the image as they come. Names and attributes are kept in memory, because a later entry may
//! change them and the layers below may have something to say; [`Unfinished::finish`] writes them in the end.

mod settle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, makedev};
use rung_sys::beneath;

use super::apply::{Applied, Deferred, Link, MAX_PATH, Mode};
use super::attributes;
use super::lowers::{Lowers, MAX_LINKS, parts};
use super::tar::{Entry, Kind, Reader};
use super::whiteout::Meaning;
use crate::erofs::{self, Content, Id, Image, Node, Tree};
use crate::error::{self, Doing, Error, Result};

/// Most files of a layer, all of which are in memory at once.
const MAX_FILES: usize = 2_000_000;
/// Most bytes of all names, targets and attributes.
const MAX_TEXT: usize = 256 << 20;

/// Makes the new file `path` an image of what `tar` makes, of which not more than `limit` bytes are accepted.
///
/// # Errors
/// As applying a layer to a directory.
pub fn convert(path: &Path, tar: impl BufRead, mode: Mode, limit: u64) -> Result<Applied> {
    let mut reader = Reader::new(tar, limit);
    let mut layer = Layer {
        tree: Tree::new(),
        image: Image::create(path)?,
        mode,
        implicit: BTreeSet::new(),
        links: BTreeMap::new(),
        hides: false,
        moved_to: BTreeSet::new(),
        parent: None,
        text: 0,
        entries: 0,
    };
    while let Some(entry) = reader.next_entry()? {
        layer.entry(&mut reader, &entry).doing(|| format!("apply {:?}", String::from_utf8_lossy(&entry.path)))?;
    }
    let size = reader.finish()?;
    Ok(Applied { size, deferred: Deferred::default(), image: Some(Unfinished(layer)) })
}

/// An image whose files are all there, and what is said of them not yet.
#[derive(Debug)]
pub struct Unfinished(Layer);

#[derive(Debug)]
struct Layer {
    tree: Tree,
    image: Image,
    mode: Mode,
    /// Directories that were made because something is in them, without an entry of their own.
    implicit: BTreeSet<Id>,
    /// Hard links to files that are not in this layer, by directory and name.
    links: BTreeMap<(Id, Vec<u8>), Link>,
    /// Whether names are marked as removed.
    hides: bool,
    /// Where directories were moved to because a link below leads there.
    moved_to: BTreeSet<PathBuf>,
    /// The directory of the entry before, which is most often that of the next.
    parent: Option<(PathBuf, Id)>,
    text: usize,
    entries: u64,
}

impl Layer {
    fn entry<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<()> {
        if entry.path.contains(&0) || entry.path.len() > MAX_PATH || entry.link.len() > MAX_PATH {
            return Err(Error::invalid("its path is malformed"));
        }
        let xattrs: usize = entry.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.text += entry.path.len() + entry.link.len() + xattrs;
        self.entries += 1;
        if self.tree.count() > MAX_FILES || self.text > MAX_TEXT {
            let text = format!("layer of more than {MAX_FILES} files, or {MAX_TEXT} bytes of names and attributes");
            return Err(Error::new(error::Kind::ResourceExhausted, format!("{text}: use another snapshotter")));
        }
        let path = beneath::lexical(Path::new(OsStr::from_bytes(&entry.path)));
        let Some(name) = path.file_name() else {
            if entry.kind == Kind::Directory {
                describe(self.tree.node_mut(Tree::ROOT), entry);
            }
            return Ok(());
        };
        if entry.kind == Kind::Other {
            return Ok(());
        }
        let within = path.parent().unwrap_or(Path::new(""));
        match Meaning::of(name) {
            Meaning::Nothing => {}
            Meaning::Opaque if self.mode == Mode::Lowest => {}
            Meaning::Whiteout(_) if self.mode == Mode::Lowest => {}
            Meaning::Opaque => {
                let directory = self.parent(within)?;
                make_opaque(self.tree.node_mut(directory));
            }
            Meaning::Whiteout(hidden) => {
                let directory = self.parent(within)?;
                self.hide(directory, hidden.as_bytes());
            }
            Meaning::File => {
                let directory = self.parent(within)?;
                self.file(reader, entry, directory, name.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Marks a name as removed. What this layer itself has there stays: a directory hides what is below it instead.
    fn hide(&mut self, directory: Id, name: &[u8]) {
        match self.tree.child(directory, name) {
            // It is of this layer, though not made yet.
            None if self.links.contains_key(&(directory, name.to_vec())) => {}
            None => {
                let id = self.tree.add(Node::new(SFlag::S_IFCHR.bits(), Content::Special(0)));
                self.tree.insert(directory, name, id);
                self.hides = true;
            }
            Some(id) if self.tree.node(id).is_directory() => make_opaque(self.tree.node_mut(id)),
            Some(_) => {}
        }
    }

    fn file<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry, directory: Id, name: &[u8]) -> Result<()> {
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, directory, name);
        }
        let there = self.tree.child(directory, name);
        if let (Kind::Directory, Some(id)) = (entry.kind, there)
            && self.tree.node(id).is_directory()
        {
            self.implicit.remove(&id);
            describe(self.tree.node_mut(id), entry);
            return Ok(());
        }
        if there.is_some() {
            // What was removed may have been the next entry's own way.
            self.parent = None;
        }
        let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
        let (kind, content) = match entry.kind {
            Kind::File => (SFlag::S_IFREG, self.contents(reader, entry)?),
            Kind::Directory => (SFlag::S_IFDIR, Content::Directory(BTreeMap::new())),
            Kind::Symlink => (SFlag::S_IFLNK, Content::Link(entry.link.as_slice().into())),
            Kind::Character => (SFlag::S_IFCHR, Content::Special(device)),
            Kind::Block => (SFlag::S_IFBLK, Content::Special(device)),
            Kind::Fifo => (SFlag::S_IFIFO, Content::Special(0)),
            Kind::HardLink | Kind::Other => return Ok(()),
        };
        let mut node = Node::new(kind.bits(), content);
        describe(&mut node, entry);
        if there.is_some() && node.is_directory() && self.mode == Mode::Overlay {
            make_opaque(&mut node);
        }
        let id = self.tree.add(node);
        self.tree.insert(directory, name, id);
        Ok(())
    }

    fn contents<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<Content> {
        let start = self.image.begin()?;
        let image = &mut self.image;
        match &entry.pieces {
            None => reader.data(entry.size, &mut |bytes| image.append(bytes))?,
            Some(pieces) => {
                let mut end = 0;
                for (offset, length) in pieces {
                    image.hole(offset - end)?;
                    reader.data(*length, &mut |bytes| image.append(bytes))?;
                    end = offset + length;
                }
                image.hole(entry.size - end)?;
            }
        }
        Ok(Content::File { start, size: entry.size })
    }

    fn hard_link(&mut self, entry: &Entry, directory: Id, name: &[u8]) -> Result<()> {
        if self.tree.remove(directory, name).is_some() {
            self.parent = None;
        }
        let target = beneath::lexical(Path::new(OsStr::from_bytes(&entry.link)));
        let Some(target_name) = target.file_name() else { return Err(Error::invalid("hard link to the root")) };
        let within = self.find(target.parent().unwrap_or(Path::new("")))?;
        let here = within.and_then(|within| self.tree.child(within, target_name.as_bytes()));
        let is_whiteout = |id: &Id| is_whiteout(self.tree.node(*id));
        match here {
            Some(id) if self.tree.node(id).is_directory() => Err(Error::invalid("hard link to a directory")),
            Some(id) if !is_whiteout(&id) => {
                self.tree.insert(directory, name, id);
                describe(self.tree.node_mut(id), entry);
                Ok(())
            }
            None if self.mode == Mode::Overlay => {
                // What it links to may be such a link itself.
                let link = within.and_then(|within| self.links.get(&(within, target_name.as_bytes().to_vec())));
                let target = link.map_or(target, |link| link.target.clone());
                let link = Link::new(target, entry, self.entries);
                self.text += size_of::<Link>();
                self.links.insert((directory, name.to_vec()), link);
                Ok(())
            }
            _ => Err(Error::invalid(format!("hard link to {target:?}, which is not there"))),
        }
    }

    /// The directory an entry is in, made where it is missing.
    fn parent(&mut self, path: &Path) -> Result<Id> {
        if let Some((known, id)) = &self.parent
            && known == path
        {
            return Ok(*id);
        }
        let id = self.walk(path, true)?.ok_or_else(|| Error::internal("a made directory is not there"))?;
        self.parent = Some((path.to_owned(), id));
        Ok(id)
    }

    /// The directory that a path leads to in this layer, if it does.
    fn find(&mut self, path: &Path) -> Result<Option<Id>> {
        self.walk(path, false)
    }

    /// Goes down a path, following links as if the layer were all there is; with `make`, makes what is missing.
    fn walk(&mut self, path: &Path, make: bool) -> Result<Option<Id>> {
        let mut waiting: VecDeque<OsString> = parts(path);
        let mut way = vec![Tree::ROOT];
        let mut links = 0;
        while let Some(part) = waiting.pop_front() {
            if part == OsStr::new("..") {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let at = way.last().copied().unwrap_or(Tree::ROOT);
            if way.len() > beneath::MAX_DEPTH {
                let text = format!("directories nest deeper than {} levels", beneath::MAX_DEPTH);
                return Err(Error::invalid(text));
            }
            let Some(id) = self.tree.child(at, part.as_bytes()) else {
                if !make {
                    return Ok(None);
                }
                way.push(self.implicit_directory(at, part.as_bytes()));
                continue;
            };
            match &self.tree.node(id).content {
                Content::Directory(_) => way.push(id),
                Content::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS || waiting.len() > MAX_PATH {
                        return Err(std::io::Error::from(nix::errno::Errno::ELOOP).into());
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    for part in parts(Path::new(OsStr::from_bytes(target))).into_iter().rev() {
                        waiting.push_front(part);
                    }
                }
                // Something below a name that this layer removed: a directory that hides the one below.
                Content::Special(_) if make && is_whiteout(self.tree.node(id)) => {
                    let made = self.implicit_directory(at, part.as_bytes());
                    self.implicit.remove(&made);
                    make_opaque(self.tree.node_mut(made));
                    way.push(made);
                }
                _ if make => return Err(std::io::Error::from(nix::errno::Errno::ENOTDIR).into()),
                _ => return Ok(None),
            }
        }
        Ok(way.last().copied())
    }

    fn implicit_directory(&mut self, within: Id, name: &[u8]) -> Id {
        let mode = SFlag::S_IFDIR.bits() | 0o755;
        let id = self.tree.add(Node::new(mode, Content::Directory(BTreeMap::new())));
        self.tree.insert(within, name, id);
        self.implicit.insert(id);
        id
    }
}

/// Gives a file the attributes of its entry, or of one that is another name of it; its type stays.
fn describe(node: &mut Node, entry: &Entry) {
    let kind = SFlag::from_bits_truncate(node.mode & SFlag::S_IFMT.bits());
    node.mode = kind.bits() | if kind == SFlag::S_IFLNK { 0o777 } else { entry.mode & 0o7777 };
    // As the kernel does when it gives a file to somebody else.
    if (node.uid, node.gid) != (entry.uid, entry.gid) && kind == SFlag::S_IFREG {
        node.xattrs.retain(|(key, _)| key != b"security.capability");
    }
    (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, attributes::within_range(entry.mtime));
    for (key, value) in &entry.xattrs {
        let is_misplaced = key.starts_with(b"user.") && !matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR);
        // What overlayfs itself keeps in attributes is not for a layer to say.
        if !attributes::is_overlay(key) && !is_misplaced && erofs::has_place(key) {
            node.set_xattr(key, value);
        }
    }
}

fn make_opaque(node: &mut Node) {
    node.set_xattr(super::whiteout::opaque_key(), b"y");
}

fn is_whiteout(node: &Node) -> bool {
    node.mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && matches!(node.content, Content::Special(0))
}

impl Unfinished {
    /// Whether the layers below have something to say.
    pub fn needs_lowers(&self) -> bool {
        !self.0.implicit.is_empty() || !self.0.links.is_empty() || self.0.hides
    }

    /// Makes the layer fit those below it, newest first, and the image whole. It is not flushed.
    ///
    /// # Errors
    /// `InvalidArgument` for a hard link to what no layer has; when the image cannot be written.
    pub fn finish(self, lowers: &[PathBuf]) -> Result<()> {
        let needs_lowers = self.needs_lowers();
        let Self(mut layer) = self;
        if needs_lowers {
            let lowers = Lowers::open(lowers).doing(|| "open the layers below")?;
            layer.settle_directories(&lowers, Tree::ROOT, Path::new(""))?;
            let mut copies = BTreeMap::new();
            let mut made = Vec::new();
            for ((directory, name), link) in layer.links.clone() {
                let linked = layer.copy_up(&lowers, (directory, &name), &link.target, &mut copies);
                let linked = linked.doing(|| format!("settle link to {:?}", link.target))?;
                made.extend(linked.map(|id| (link.number, id, link.entry)));
            }
            made.sort_unstable_by_key(|(number, ..)| *number);
            made.iter().for_each(|(_, id, entry)| describe(layer.tree.node_mut(*id), entry));
            if layer.hides {
                layer.uncover(&lowers, Tree::ROOT, Path::new(""), false)?;
            }
        }
        layer.image.finish(&layer.tree).map(drop)
    }
}
