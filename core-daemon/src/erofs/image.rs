//! The file of an image: contents are appended as they come, the rest is written at the end.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::layout::Layout;
use super::{BLOCK, Tree};
use crate::error::{Doing, Error, Result};

/// Small files are written together.
const BUFFER: usize = 1 << 20;
/// What is written goes on to the disk in pieces of this size, so that flushing all of it does not take long in the end.
const EARLY: u64 = 8 << 20;
/// Blocks have 32-bit numbers.
const MAX_SIZE: u64 = BLOCK << 32;
/// The first block after the superblock.
const FIRST: u64 = 3 * BLOCK;

/// An image that is being written.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// Bytes that are not written yet, and where they go.
    buffer: Vec<u8>,
    at: u64,
    /// Up to where the kernel was asked to write to the disk already.
    started: u64,
}

impl Image {
    /// Begins an image in a new file.
    ///
    /// # Errors
    /// When the file is there already, or cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(path).doing(|| format!("make {}", path.display()))?;
        Ok(Self { file, buffer: Vec::new(), at: FIRST, started: 0 })
    }

    /// Begins the contents of a file, and says where they begin.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn begin(&mut self) -> Result<u64> {
        let end = self.at + self.buffer.len() as u64;
        let start = end.next_multiple_of(BLOCK);
        let padding = usize::try_from(start - end).unwrap_or(0);
        self.buffer.resize(self.buffer.len() + padding, 0);
        Ok(start)
    }

    /// Appends to the contents of the file that was begun last.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() >= BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER / 2 {
            self.file.write_all_at(bytes, self.at)?;
            self.at += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Appends zeros, which take no space.
    ///
    /// # Errors
    /// `InvalidArgument` where the image would be too large; when it cannot be written.
    pub fn hole(&mut self, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush()?;
        let end = self.at.checked_add(length).filter(|end| *end <= MAX_SIZE);
        self.at = end.ok_or_else(|| Error::invalid("erofs: image of more than 2 TiB"))?;
        Ok(())
    }

    /// Writes what `tree` says of the files, and so makes the image whole. Nothing of it is flushed to disk.
    ///
    /// # Errors
    /// `InvalidArgument` for what the format has no place for; when the image cannot be written.
    pub fn finish(mut self, tree: &Tree) -> Result<File> {
        let mut layout = Layout::of(tree)?;
        layout.write_contents(tree, &mut self)?;
        let inodes = self.begin()?;
        layout.write_inodes(tree, &mut self)?;
        let end = self.begin()?;
        self.flush()?;
        self.file.set_len(end)?;
        self.file.write_all_at(&layout.superblock(inodes, end)?, 1024)?;
        Ok(self.file)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        if self.at - self.started >= EARLY {
            rung_sys::writeback::start(self.file.as_fd(), self.started, self.at - self.started);
            self.started = self.at;
        }
        Ok(())
    }
}
