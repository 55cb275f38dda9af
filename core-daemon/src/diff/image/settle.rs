//! The part of an image that needs the layers below: as `diff::settle` does it for directories.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode as Bits, SFlag};
use rung_sys::{beneath, xattr};

use super::Layer;
use crate::diff::attributes;
use crate::diff::lowers::{Found, Lowers};
use crate::diff::whiteout;
use crate::erofs::{self, Content, Id, Node, Tree};
use crate::error::{Error, Result};

impl Layer {
    /// Gives implicit directories the attributes that they have below; where a link is below, what is in them moves to
    /// where it leads.
    pub(super) fn settle_directories(&mut self, lowers: &Lowers, directory: Id, path: &Path) -> Result<()> {
        beneath::check_depth(path)?;
        let children: Vec<(OsString, Id)> =
            self.tree.children(directory).map(|(name, id)| (OsStr::from_bytes(name).to_owned(), id)).collect();
        for (name, id) in children {
            self.settle_directory(lowers, directory, &name, id, path)?;
        }
        Ok(())
    }

    fn settle_directory(&mut self, lowers: &Lowers, within: Id, name: &OsStr, id: Id, path: &Path) -> Result<()> {
        if !self.tree.node(id).is_directory() {
            return Ok(());
        }
        let path = path.join(name);
        if self.implicit.remove(&id)
            && let Some(found) = lowers.find(&path, false)?
        {
            match beneath::file_type(&found.stat) {
                SFlag::S_IFDIR => self.inherit(id, &found)?,
                SFlag::S_IFLNK => {
                    if let Some(to) = lowers.leads_to(&path)?.filter(|to| !to.starts_with(&path)) {
                        self.tree.remove(within, name.as_bytes());
                        return self.relocate(lowers, id, &to);
                    }
                }
                _ => {}
            }
        }
        self.settle_directories(lowers, id, &path)
    }

    /// Moves what is in a directory that has no name any more to where a link below leads.
    fn relocate(&mut self, lowers: &Lowers, from: Id, path: &Path) -> Result<()> {
        let to = self.like_below(lowers, path)?;
        let names: Vec<OsString> =
            self.tree.children(from).map(|(name, _)| OsStr::from_bytes(name).to_owned()).collect();
        self.merge(from, to);
        self.moved_to.insert(path.to_owned());
        for name in names {
            if let Some(id) = self.tree.child(to, name.as_bytes()) {
                self.settle_directory(lowers, to, &name, id, path)?;
            }
        }
        Ok(())
    }

    /// The directory at a path without links, made with the attributes that the layers below show.
    fn like_below(&mut self, lowers: &Lowers, path: &Path) -> Result<Id> {
        let id = self.walk(path, true)?.ok_or_else(|| Error::internal("a made directory is not there"))?;
        for ancestor in path.ancestors() {
            if let Some(id) = self.walk(ancestor, false)?.filter(|id| self.implicit.contains(id))
                && let Some(found) = lowers.find(ancestor, false)?
                && beneath::file_type(&found.stat) == SFlag::S_IFDIR
            {
                self.implicit.remove(&id);
                self.inherit(id, &found)?;
            }
        }
        Ok(id)
    }

    fn inherit(&mut self, id: Id, below: &Found) -> Result<()> {
        let name = below.path.file_name().unwrap_or(OsStr::new("."));
        copy_attributes(self.tree.node_mut(id), below, name)
    }

    /// Moves everything in `from` to `to`; what comes replaces what is there, except that directories are merged.
    fn merge(&mut self, from: Id, to: Id) {
        let links: Vec<Vec<u8>> =
            self.links.range((from, Vec::new())..(from + 1, Vec::new())).map(|((_, name), _)| name.clone()).collect();
        for name in links {
            if let Some(link) = self.links.remove(&(from, name.clone())) {
                self.links.insert((to, name), link);
            }
        }
        let moved: Vec<(Vec<u8>, Id)> = self.tree.children(from).map(|(name, id)| (name.to_vec(), id)).collect();
        for (name, id) in moved {
            let there = self.tree.child(to, &name).filter(|there| self.tree.node(*there).is_directory());
            match there {
                Some(there) if self.tree.node(id).is_directory() => self.merge(id, there),
                _ => self.tree.insert(to, &name, id),
            }
        }
    }

    /// A file that only a hard link mentions: it comes up from below, once, under both names. None where a later entry of
    /// the layer took the name.
    pub(super) fn copy_up(
        &mut self,
        lowers: &Lowers,
        (directory, name): (Id, &[u8]),
        target: &Path,
        copies: &mut BTreeMap<PathBuf, Id>,
    ) -> Result<Option<Id>> {
        let real = lowers.real(target)?;
        // What it links to may be such a link itself.
        let target = self.link_at(&real).unwrap_or_else(|| target.to_owned());
        let found = lowers.find(&target, false)?;
        if self.tree.child(directory, name).is_some() {
            return Ok(None);
        }
        let path = found.as_ref().map_or(&real, |found| &found.path);
        let id = match (copies.get(path).copied().or_else(|| self.own_file(path, &target)), &found) {
            (Some(id), _) => id,
            (None, None) => return Err(Error::invalid(format!("hard link to {target:?}, which is in no layer"))),
            (None, Some(found)) => {
                let target_name = found.path.file_name().unwrap_or(OsStr::new("."));
                let id = self.copied(found, target_name)?;
                // Where the layer removes or replaces its name, it has only the link's.
                if self.shows_below(&found.path) {
                    let within = self.like_below(lowers, found.path.parent().unwrap_or(Path::new("")))?;
                    self.tree.insert(within, target_name.as_bytes(), id);
                }
                id
            }
        };
        self.tree.insert(directory, name, id);
        copies.insert(path.clone(), id);
        Ok(Some(id))
    }

    /// The target of the hard link at a path without links, where that is to a file that is not in this layer.
    fn link_at(&self, path: &Path) -> Option<PathBuf> {
        let within = self.at(path.parent()?)?;
        self.links.get(&(within, path.file_name()?.as_bytes().to_vec())).map(|link| link.target.clone())
    }

    /// What the layer itself has at a path without links.
    fn at(&self, path: &Path) -> Option<Id> {
        path.iter().try_fold(Tree::ROOT, |at, part| self.tree.child(at, part.as_bytes()))
    }

    /// Takes removed names out of directories that have nothing below them: overlayfs would list them, and find none of
    /// them.
    pub(super) fn uncover(&mut self, lowers: &Lowers, directory: Id, path: &Path, mut is_bare: bool) -> Result<()> {
        beneath::check_depth(path)?;
        is_bare |= is_opaque(self.tree.node(directory));
        let children: Vec<(OsString, Id)> =
            self.tree.children(directory).map(|(name, id)| (OsStr::from_bytes(name).to_owned(), id)).collect();
        let is_hiding = children.iter().any(|(_, id)| super::is_whiteout(self.tree.node(*id)));
        if is_hiding && !is_bare && !path.as_os_str().is_empty() {
            let found = lowers.find(path, false)?;
            is_bare = found.is_none_or(|found| beneath::file_type(&found.stat) != SFlag::S_IFDIR);
        }
        for (name, id) in children {
            if self.tree.node(id).is_directory() {
                self.uncover(lowers, id, &path.join(&name), is_bare)?;
            } else if is_bare && super::is_whiteout(self.tree.node(id)) {
                self.tree.remove(directory, name.as_bytes());
            }
        }
        Ok(())
    }

    /// Whether the layer leaves what the layers below have at a path without links as it is.
    fn shows_below(&self, path: &Path) -> bool {
        let mut at = Tree::ROOT;
        for part in path.iter() {
            let node = self.tree.node(at);
            if !node.is_directory() || is_opaque(node) {
                return false;
            }
            match self.tree.child(at, part.as_bytes()) {
                Some(child) => at = child,
                None => return !self.links.contains_key(&(at, part.as_bytes().to_vec())),
            }
        }
        false
    }

    /// A file of the layer's own that `target` leads to because links below lead there, or led that file there. One that
    /// has just that path came after the link: it would have been found.
    fn own_file(&self, path: &Path, target: &Path) -> Option<Id> {
        if path == target && !path.ancestors().any(|ancestor| self.moved_to.contains(ancestor)) {
            return None;
        }
        self.at(path).filter(|id| !self.tree.node(*id).is_directory() && !super::is_whiteout(self.tree.node(*id)))
    }

    fn copied(&mut self, found: &Found, name: &OsStr) -> Result<Id> {
        let content = match beneath::file_type(&found.stat) {
            SFlag::S_IFDIR => return Err(Error::invalid(format!("hard link to {:?}, a directory", found.path))),
            SFlag::S_IFREG => self.copied_contents(found, name)?,
            SFlag::S_IFLNK => {
                let leads_to = readlinkat(&found.parent, name).map_err(std::io::Error::from)?;
                Content::Link(leads_to.as_bytes().into())
            }
            _ => Content::Special(found.stat.st_rdev),
        };
        let mut node = Node::new(found.stat.st_mode, content);
        copy_attributes(&mut node, found, name)?;
        Ok(self.tree.add(node))
    }

    fn copied_contents(&mut self, found: &Found, name: &OsStr) -> Result<Content> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&found.parent, name, flags, Bits::empty()).map_err(std::io::Error::from)?);
        let (start, mut size) = (self.image.begin()?, 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(Content::File { start, size });
            }
            // The image that it comes from does not say where it has holes.
            if count == buffer.len() && buffer.iter().all(|byte| *byte == 0) {
                self.image.hole(count as u64)?;
            } else {
                self.image.append(&buffer[..count])?;
            }
            size += count as u64;
        }
    }
}

fn is_opaque(node: &Node) -> bool {
    node.xattrs.iter().any(|(key, _)| key == whiteout::opaque_key())
}

fn copy_attributes(node: &mut Node, found: &Found, name: &OsStr) -> Result<()> {
    let stat = &found.stat;
    node.mode = (node.mode & SFlag::S_IFMT.bits()) | (stat.st_mode & 0o7777);
    (node.uid, node.gid) = (stat.st_uid, stat.st_gid);
    node.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    for key in xattr::list(found.parent.as_fd(), name)? {
        if !attributes::is_overlay(&key)
            && erofs::has_place(&key)
            && let Some(value) = xattr::get(found.parent.as_fd(), name, &key)?
        {
            node.set_xattr(&key, &value);
        }
    }
    Ok(())
}
