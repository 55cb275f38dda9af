//! An image of what is in a directory, such as the upper directory of an overlay with the kernel's marks in it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use rung_sys::beneath::{self, Root};
use rung_sys::{holes, xattr};

use super::layout::has_place;
use super::{Content, Id, Image, Node, Tree};
use crate::error::{Doing, Result};

/// Writes an image of the directory `from` to the new file `to`, and flushes it.
///
/// # Errors
/// Names the file that cannot be read; when the image cannot be written.
pub fn from_directory(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("make an image of {}", from.display());
    let root = Root::open(from).doing(doing)?;
    let mut walk =
        Walk { tree: Tree::new(), image: Image::create(to)?, links: HashMap::new(), buffer: vec![0; 1 << 18] };
    let here = OsStr::new(".");
    let stat =
        beneath::stat(root.as_fd(), here).doing(doing)?.ok_or_else(|| std::io::Error::from(nix::Error::ENOENT))?;
    let top = walk.described(root.as_fd(), here, &stat).doing(doing)?;
    *walk.tree.node_mut(Tree::ROOT) = top;
    walk.inside(root.as_fd(), Tree::ROOT, Path::new("")).doing(doing)?;
    let file = walk.image.finish(&walk.tree).doing(doing)?;
    file.sync_all().doing(doing)
}

struct Walk {
    tree: Tree,
    image: Image,
    /// Files of several names: device and inode.
    links: HashMap<(u64, u64), Id>,
    buffer: Vec<u8>,
}

impl Walk {
    fn inside(&mut self, directory: BorrowedFd<'_>, id: Id, path: &Path) -> Result<()> {
        beneath::check_depth(path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for name in beneath::entries(directory)? {
            let Some(stat) = beneath::stat(directory, &name)? else { continue };
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(known) = self.links.get(&inode) {
                self.tree.insert(id, name.as_bytes(), *known);
                continue;
            }
            let node = self.described(directory, &name, &stat).doing(|| format!("{name:?}"))?;
            let is_directory = node.is_directory();
            let child = self.tree.add(node);
            self.tree.insert(id, name.as_bytes(), child);
            if is_directory {
                let inner = openat(directory, name.as_os_str(), flags, Mode::empty()).map_err(std::io::Error::from)?;
                self.inside(inner.as_fd(), child, &path.join(&name))?;
            } else if stat.st_nlink > 1 {
                self.links.insert(inode, child);
            }
        }
        Ok(())
    }

    /// A file with its attributes and contents; those of a directory are not in it yet.
    fn described(&mut self, directory: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> Result<Node> {
        let content = match beneath::file_type(stat) {
            SFlag::S_IFDIR => Content::Directory(std::collections::BTreeMap::new()),
            SFlag::S_IFREG => self.contents(directory, name, stat)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(directory, name).map_err(std::io::Error::from)?;
                Content::Link(target.as_bytes().into())
            }
            _ => Content::Special(stat.st_rdev),
        };
        let mut node = Node::new(stat.st_mode, content);
        (node.uid, node.gid) = (stat.st_uid, stat.st_gid);
        node.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        for key in xattr::list(directory, name)?.into_iter().filter(|key| has_place(key)) {
            if let Some(value) = xattr::get(directory, name, &key)? {
                node.xattrs.push((key, value));
            }
        }
        Ok(node)
    }

    fn contents(&mut self, directory: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> Result<Content> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(directory, name, flags, Mode::empty()).map_err(std::io::Error::from)?);
        let start = self.image.begin()?;
        let size = stat.st_size;
        let length = |from: i64, to: i64| u64::try_from(to - from).unwrap_or(0);
        let mut at = 0;
        // What a file has grown by meanwhile is not in the image, and what it has lost is a hole there.
        while let Some((data, end)) = holes::next_data(&file, at)?.filter(|(data, _)| *data < size) {
            self.image.hole(length(at, data))?;
            at = end.min(size);
            let mut left = length(data, at);
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = file.read(&mut self.buffer[..wanted])?;
                if count == 0 {
                    self.image.hole(left)?;
                    break;
                }
                self.image.append(&self.buffer[..count])?;
                left -= count as u64;
            }
        }
        self.image.hole(length(at, size))?;
        Ok(Content::File { start, size: u64::try_from(size).unwrap_or(0) })
    }
}
