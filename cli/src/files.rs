//! Files of this machine as a tar, and a tar as files: what `gantry cp` carries.
//!
//! An archive comes out of a container and is hostile. Every part of a path in it is opened by itself, beneath the directory
//! that was asked for and following no link, so that no entry is written elsewhere, whatever links the archive holds.

mod header;
mod pack;
mod unpack;

pub use pack::{Source, pack};
pub use unpack::{Target, unpack};

/// Bytes of a block of a tar.
const BLOCK: usize = 512;

/// Bytes from `size` to the next block.
fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

#[cfg(test)]
mod tests;
