//! The format on disk: where everything about files goes, and how it is written there. Numbers are little-endian.

use super::tree::{Content, Id, Tree};
use super::{BLOCK, Image};
use crate::error::{Error, Result};

const MAGIC: u32 = 0xe0f5_e1e2;
/// Bytes of the superblock.
pub(super) const SUPERBLOCK: usize = 128;
/// Inodes lie in slots of this size, and are called by the slot that they begin in.
const SLOT: u64 = 32;
/// Bytes of an inode, in its long form.
const INODE: u64 = 64;
/// The slot of the root's inode. Slots 0 and 1 stay free: 0 means "none" in some places of the format.
const ROOT_SLOT: u64 = 2;
/// Bytes before an inode's attributes, and of each one without its name and value.
const XATTR_HEADER: usize = 12;
const XATTR_ENTRY: usize = 4;
/// Bytes of a name's entry in a directory, without the name.
const ENTRY: usize = 12;
/// Long form, contents in one run of blocks.
const FORMAT_LONG_FLAT: u16 = 1;
/// Attribute names begin with one of these, which is kept as a number.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Where a file is in the image.
#[derive(Clone, Copy, Default)]
struct Place {
    slot: u64,
    links: u32,
    /// For a directory or link: where its contents are, once written.
    start: u64,
    size: u64,
}

/// The places of all files that have a name.
pub(super) struct Layout {
    /// Files in the order of their inodes.
    order: Vec<Id>,
    places: Vec<Place>,
    /// For each directory, the one that it is in.
    parents: Vec<Id>,
}

impl Layout {
    pub(super) fn of(tree: &Tree) -> Result<Self> {
        let mut layout =
            Self { order: Vec::new(), places: vec![Place::default(); tree.count()], parents: vec![0; tree.count()] };
        let mut next = ROOT_SLOT;
        let mut waiting = vec![Tree::ROOT];
        while let Some(id) = waiting.pop() {
            layout.order.push(id);
            layout.places[id].slot = next;
            let xattrs = u64::try_from(xattr_size(tree, id)?).unwrap_or(u64::MAX);
            next += (INODE + xattrs).div_ceil(SLOT);
            layout.places[id].links += if tree.node(id).is_directory() { 2 } else { 0 };
            for (_, child) in tree.children(id) {
                if tree.node(child).is_directory() {
                    layout.places[id].links += 1;
                    layout.parents[child] = id;
                    waiting.push(child);
                } else {
                    if layout.places[child].links == 0 {
                        waiting.push(child);
                    }
                    layout.places[child].links += 1;
                }
            }
        }
        Ok(layout)
    }

    /// Writes directories and the targets of links, which are contents like those of files.
    pub(super) fn write_contents(&mut self, tree: &Tree, image: &mut Image) -> Result<()> {
        for at in 0..self.order.len() {
            let id = self.order[at];
            let bytes = match &tree.node(id).content {
                Content::Directory(_) => self.directory(tree, id)?,
                Content::Link(target) => target.to_vec(),
                _ => continue,
            };
            self.places[id].start = image.begin()?;
            self.places[id].size = bytes.len() as u64;
            image.append(&bytes)?;
        }
        Ok(())
    }

    /// A directory's blocks: entries, then their names, in the order of names. A block's first entry says by where its
    /// name is how many entries there are.
    fn directory(&self, tree: &Tree, id: Id) -> Result<Vec<u8>> {
        let mut names: Vec<(&[u8], Id)> = tree.children(id).collect();
        names.extend([(&b"."[..], id), (&b".."[..], self.parents[id])]);
        names.sort_unstable_by_key(|(name, _)| *name);
        let block = usize::try_from(BLOCK).unwrap_or(0);
        let mut bytes = Vec::new();
        while !names.is_empty() {
            let mut room = block;
            let mut count = 0;
            while let Some(left) = names.get(count).and_then(|(name, _)| room.checked_sub(ENTRY + name.len())) {
                (room, count) = (left, count + 1);
            }
            if count == 0 {
                return Err(Error::invalid("erofs: name longer than 255 bytes"));
            }
            bytes.resize(bytes.len().next_multiple_of(block), 0);
            let mut name_at = ENTRY * count;
            for (name, child) in &names[..count] {
                bytes.extend_from_slice(&self.places[*child].slot.to_le_bytes());
                bytes.extend_from_slice(&u16::try_from(name_at).unwrap_or(0).to_le_bytes());
                bytes.extend_from_slice(&[file_type(tree.node(*child).mode), 0]);
                name_at += name.len();
            }
            names.drain(..count).for_each(|(name, _)| bytes.extend_from_slice(name));
        }
        Ok(bytes)
    }

    pub(super) fn write_inodes(&self, tree: &Tree, image: &mut Image) -> Result<()> {
        let slots = |count: u64| usize::try_from(count * SLOT).unwrap_or(usize::MAX);
        image.append(&vec![0; slots(ROOT_SLOT)])?;
        for (number, id) in self.order.iter().enumerate() {
            let mut bytes = self.inode(tree, *id, number)?;
            bytes.resize(bytes.len().next_multiple_of(slots(1)), 0);
            image.append(&bytes)?;
        }
        Ok(())
    }

    fn inode(&self, tree: &Tree, id: Id, number: usize) -> Result<Vec<u8>> {
        let (node, place) = (tree.node(id), &self.places[id]);
        let (size, low) = match &node.content {
            Content::Directory(_) | Content::Link(_) => (place.size, block_of(place.start)?),
            Content::File { size: 0, .. } => (0, 0),
            Content::File { start, size } => (*size, block_of(*start)?),
            Content::Special(device) => (0, device_number(*device)?),
        };
        let xattrs = xattr_size(tree, id)?;
        let count = if xattrs == 0 { 0 } else { 1 + (xattrs - XATTR_HEADER) / 4 };
        let count = u16::try_from(count).map_err(|_| Error::invalid("erofs: attributes of more than 256 KiB"))?;
        let mode = u16::try_from(node.mode).map_err(|_| Error::invalid("erofs: mode is out of range"))?;
        let number = u32::try_from(number + 1).map_err(|_| Error::invalid("erofs: too many files"))?;
        let mut bytes = Vec::with_capacity(64 + xattrs);
        bytes.extend_from_slice(&FORMAT_LONG_FLAT.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&mode.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&size.to_le_bytes());
        for value in [low, number, node.uid, node.gid] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&node.mtime.0.to_le_bytes());
        bytes.extend_from_slice(&node.mtime.1.to_le_bytes());
        bytes.extend_from_slice(&place.links.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        if xattrs > 0 {
            bytes.extend_from_slice(&[0; XATTR_HEADER]);
            for (key, value) in &node.xattrs {
                let (index, rest) = split(key)?;
                let length = u16::try_from(value.len()).map_err(|_| Error::invalid("erofs: attribute over 64 KiB"))?;
                bytes.extend_from_slice(&[u8::try_from(rest.len()).unwrap_or(0), index]);
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(rest);
                bytes.extend_from_slice(value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        Ok(bytes)
    }

    /// The superblock of an image of `end` bytes whose inodes begin at `inodes`.
    pub(super) fn superblock(&self, inodes: u64, end: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(SUPERBLOCK);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let shift = u8::try_from(BLOCK.trailing_zeros()).unwrap_or(0);
        bytes.extend_from_slice(&[shift, 0]);
        bytes.extend_from_slice(&u16::try_from(ROOT_SLOT).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&(self.order.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(&block_of(end)?.to_le_bytes());
        bytes.extend_from_slice(&block_of(inodes)?.to_le_bytes());
        bytes.resize(SUPERBLOCK, 0);
        Ok(bytes)
    }
}

/// What a superblock says, ours or another's.
pub(super) struct Superblock {
    /// A block has two to the power of this bytes.
    pub(super) block_bits: u8,
    /// The same of how many blocks one of a directory has.
    pub(super) directory_bits: u8,
    /// The slot of the root's inode.
    pub(super) root: u16,
    /// Blocks of the image, and in which inodes and attributes that inodes share begin.
    pub(super) blocks: u32,
    pub(super) inodes: u32,
    pub(super) attributes: u32,
    /// What a reader must know.
    pub(super) features: u32,
    /// Other devices that parts of it are on.
    pub(super) devices: u16,
}

impl Superblock {
    /// What these bytes say, if they are a superblock.
    pub(super) fn parse(bytes: &[u8; SUPERBLOCK]) -> Option<Self> {
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let short = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        (number(0) == MAGIC).then(|| Self {
            block_bits: bytes[12],
            directory_bits: bytes[90],
            root: short(14),
            blocks: number(36),
            inodes: number(40),
            attributes: number(44),
            features: number(80),
            devices: short(86),
        })
    }

    /// Bytes of so many blocks; more than there can be where a block is larger than any may be.
    pub(super) fn bytes(&self, blocks: u32) -> u64 {
        if self.block_bits > 31 { u64::MAX } else { u64::from(blocks) << self.block_bits }
    }
}

fn block_of(offset: u64) -> Result<u32> {
    u32::try_from(offset / BLOCK).map_err(|_| Error::invalid("erofs: image of more than 2 TiB"))
}

/// The bytes that an inode's attributes take.
fn xattr_size(tree: &Tree, id: Id) -> Result<usize> {
    let xattrs = &tree.node(id).xattrs;
    let mut size = if xattrs.is_empty() { 0 } else { XATTR_HEADER };
    for (key, value) in xattrs {
        size += (XATTR_ENTRY + split(key)?.1.len() + value.len()).next_multiple_of(4);
    }
    Ok(size)
}

/// Whether the format has a place for an attribute of this name.
pub fn has_place(key: &[u8]) -> bool {
    split(key).is_ok()
}

fn split(key: &[u8]) -> Result<(u8, &[u8])> {
    let found = PREFIXES.iter().find_map(|(prefix, index)| Some((*index, key.strip_prefix(*prefix)?)));
    found
        .filter(|(_, rest)| rest.len() <= 255)
        .ok_or_else(|| Error::invalid(format!("erofs: no place for the attribute {:?}", String::from_utf8_lossy(key))))
}

/// The type as directory entries have it.
fn file_type(mode: u32) -> u8 {
    match mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        _ => 0,
    }
}

/// A device's number in the kernel's own encoding: the minor's low byte, the major, the rest of the minor.
fn device_number(device: u64) -> Result<u32> {
    use nix::sys::stat::{major, minor};
    let range = || Error::invalid("erofs: device number is out of range");
    let (major, minor) =
        (u32::try_from(major(device)).map_err(|_| range())?, u32::try_from(minor(device)).map_err(|_| range())?);
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(range());
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}
