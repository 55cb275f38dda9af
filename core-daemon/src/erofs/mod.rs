//! EROFS images: a read-only file system in one file, which the kernel mounts as it is.
//!
//! ```text
//! block 0.. │ superblock at 1024 │ contents of files, as they came │ directories and links │ inodes with attributes
//! ```
//!
//! Nothing is compressed, and a block has 512 bytes: the padding of a tar, so that a layer's files can be written in the
//! order in which they arrive, each at the next block. What is about files stands at the end, when it is known. A [`Tree`]
//! holds it in memory until then; an [`Image`] is the file. Kernels from 6.4 on mount such images through a loop device,
//! from 6.12 on also without one.

mod directory;
mod foreign;
mod image;
mod layout;
mod tree;

use std::path::Path;

pub use directory::from_directory;
pub use foreign::store;
pub use image::Image;
pub use layout::has_place;
pub use tree::{Content, Id, Node, Tree};

use crate::error::{Doing, Error, Kind, Result};

/// Bytes of a block.
const BLOCK: u64 = 512;

/// Whether this kernel mounts what we write: tried once, with a small image in `scratch`.
///
/// # Errors
/// `Unavailable`, with what the kernel says.
pub fn probe(scratch: &Path) -> Result<()> {
    let file = scratch.join("probe.erofs");
    let tried = try_mount(&file);
    let removed = rung_sys::beneath::remove(&file);
    tried.map_err(|error| {
        let needed = "needs Linux 6.4 with EROFS, and 6.12 or loop devices";
        Error::new(Kind::Unavailable, format!("this kernel does not mount an erofs image ({error}): {needed}"))
    })?;
    removed.doing(|| format!("remove {}", file.display()))
}

/// What is wrong with an image, by its beginning and its length.
pub fn damage(path: &Path) -> Option<String> {
    let mut superblock = [0; layout::SUPERBLOCK];
    let read = std::fs::File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        if length >= 2 * BLOCK + superblock.len() as u64 {
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut superblock, 2 * BLOCK)?;
        }
        Ok(length)
    });
    let should = layout::Superblock::parse(&superblock).map(|it| it.bytes(it.blocks));
    match (read, should) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Some(format!("{} is gone", path.display())),
        (Err(error), _) => Some(format!("{}: {error}", path.display())),
        (Ok(_), None) => Some(format!("{} is no image", path.display())),
        // Something may follow an image that others have made.
        (Ok(is), Some(should)) if is < should => Some(format!("{} has {is} bytes, not {should}", path.display())),
        _ => None,
    }
}

fn try_mount(file: &Path) -> Result<()> {
    use std::io::Read;
    use std::os::fd::AsFd;
    let (mut image, mut tree) = (Image::create(file)?, Tree::new());
    let start = image.begin()?;
    image.append(b"content")?;
    let node = Node::new(0o100_644, Content::File { start, size: 7 });
    let id = tree.add(node);
    tree.insert(Tree::ROOT, b"file", id);
    image.finish(&tree)?;
    let options = rung_sys::mount_options::MountOptions::parse(["ro"]);
    let source = file.to_str().ok_or_else(|| Error::invalid("path is not UTF-8"))?;
    let mounted = rung_sys::mount_words::make("erofs", source, &options).map_err(std::io::Error::from)?;
    let fd = nix::fcntl::openat(
        mounted.as_fd(),
        "file",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(std::io::Error::from)?;
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text)?;
    if text == "content" { Ok(()) } else { Err(Error::internal("reads something else than was written")) }
}

#[cfg(test)]
mod tests;
