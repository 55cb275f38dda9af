//! How much of the disk a tree takes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

/// Space on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the blocks in use.
    pub size: u64,
    /// Files, directories and everything else with an inode.
    pub inodes: u64,
}

/// What the tree at `root` takes; a file with several names counts once. What disappears meanwhile does not count: the
/// tree may be in use.
///
/// # Errors
/// When the root cannot be read.
pub fn disk_usage(root: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut add = |metadata: &std::fs::Metadata| {
        if metadata.nlink() < 2 || metadata.is_dir() || seen.insert((metadata.dev(), metadata.ino())) {
            usage.size += metadata.blocks() * 512;
            usage.inodes += 1;
        }
    };
    add(&std::fs::symlink_metadata(root).doing(|| format!("usage of {}", root.display()))?);
    let mut waiting: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            add(&metadata);
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(usage)
}
