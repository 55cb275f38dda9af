//! Images that others have made: kept as they are, once their superblock says nothing that we would not mount.
//!
//! The kernel checks what it reads, too, but not always before it uses it. What can be said without reading the whole is
//! said here: an image is whole, has all its parts in its own file, and uses nothing that is newer than what is known of the
//! format.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::layout::{SUPERBLOCK, Superblock};
use crate::error::{Doing, Error, Kind, Result};

/// What is written goes on to the disk in pieces of this size, so that flushing all of it does not take long in the end.
const EARLY: u64 = 8 << 20;
const PIECE: usize = 256 << 10;
/// Features that a reader must know: packed clusters of several kinds, files of chunks, packed tails, pieces of files kept
/// together, each once, and prefixes of attributes. One bit says of several devices as well as of a second way of packing;
/// whether there are other devices is told elsewhere. Later ones give fields of the superblock another meaning.
const FEATURES: u32 = 0x7f;

/// Writes the image that `from` brings to the new file `path`, and looks at it. Answers with its length.
///
/// # Errors
/// `InvalidArgument` where it is no image that can be mounted by itself; `ResourceExhausted` for more than `limit` bytes;
/// else what reading and writing fail with.
pub fn store(path: &Path, from: &mut impl Read, limit: u64) -> Result<u64> {
    let doing = || format!("write {}", path.display());
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(path).doing(doing)?;
    let (mut buffer, mut length, mut started) = (vec![0; PIECE], 0, 0);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        length += count as u64;
        if length > limit {
            return Err(Error::new(Kind::ResourceExhausted, format!("erofs image of more than {limit} bytes")));
        }
        file.write_all(&buffer[..count]).doing(doing)?;
        if length - started >= EARLY {
            rung_sys::writeback::start(file.as_fd(), started, length - started);
            started = length;
        }
    }
    check(&file, length).doing(|| "erofs image")?;
    Ok(length)
}

fn check(file: &File, length: u64) -> Result<()> {
    let mut bytes = [0; SUPERBLOCK];
    if length < 1024 + SUPERBLOCK as u64 {
        return Err(Error::invalid(format!("has only {length} bytes")));
    }
    file.read_exact_at(&mut bytes, 1024)?;
    let superblock = Superblock::parse(&bytes).ok_or_else(|| Error::invalid("has no superblock"))?;
    superblock.problem(length).map_or(Ok(()), |problem| Err(Error::invalid(problem)))
}

impl Superblock {
    /// Why an image of this length is not mounted.
    fn problem(&self, length: u64) -> Option<String> {
        let (unknown, own) = (self.features & !FEATURES, self.bytes(self.blocks));
        let root = self.bytes(self.inodes).saturating_add(u64::from(self.root) * 32);
        Some(match () {
            () if !(9..=12).contains(&self.block_bits) => format!("has blocks of 2^{} bytes", self.block_bits),
            () if self.directory_bits != 0 => "has directories of larger blocks".to_owned(),
            () if unknown != 0 => format!("uses features that are not known here ({unknown:#x})"),
            () if self.devices != 0 => format!("has parts on {} other devices", self.devices),
            () if own > length => format!("has {length} bytes, and says that it has {own}"),
            () if own == 0 => "says that it is empty".to_owned(),
            () if root.saturating_add(32) > own => "has no root in it".to_owned(),
            () if self.bytes(self.attributes) >= own => "has shared attributes beyond its end".to_owned(),
            () => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Image, Tree};
    use super::*;

    #[test]
    fn only_what_is_whole_and_known_is_taken() {
        let dir = tempfile::tempdir().expect("directory");
        let own = dir.path().join("own");
        Image::create(&own).expect("create").finish(&Tree::new()).expect("finish");
        let good = std::fs::read(&own).expect("read");
        let length = good.len();
        let taken = |bytes: &[u8]| {
            let path = dir.path().join("taken");
            let stored = store(&path, &mut &bytes[..], 1 << 20);
            std::fs::remove_file(&path).expect("remove");
            stored
        };
        assert_eq!(taken(&good).expect("our own"), length as u64);
        // What follows an image, as a tree of hashes does, is not a part of it.
        taken(&[&good[..], &[7; 999]].concat()).expect("with something behind it");
        let changed = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[1024 + at..1024 + at + value.len()].copy_from_slice(value);
            taken(&bytes).err().map(|error| (error.kind(), error.to_string()))
        };
        for (at, value, said) in [
            (0, &[0][..], "has no superblock"),
            (12, &[8], "has blocks of 2^8 bytes"),
            (12, &[200], "has blocks of 2^200 bytes"),
            (12, &[16], "has blocks of 2^16 bytes"),
            (14, &[255, 255], "has no root in it"),
            (36, &[255, 255, 255, 255], "and says that it has"),
            (36, &[0, 0, 0, 0], "says that it is empty"),
            (40, &[255, 255, 255, 255], "has no root in it"),
            (44, &[255, 255, 255, 255], "has shared attributes beyond its end"),
            (80, &[0x80], "uses features that are not known here (0x80)"),
            (83, &[0x80], "uses features that are not known here (0x80000000)"),
            (86, &[1, 0], "has parts on 1 other devices"),
            (90, &[1], "has directories of larger blocks"),
        ] {
            let (kind, text) = changed(at, value).unwrap_or_else(|| panic!("{at} {value:?} is taken"));
            assert!(kind == Kind::InvalidArgument && text.contains(said), "{at} {value:?}: {text}");
        }
        for end in [0, 1024, 1100, length - 1] {
            assert_eq!(taken(&good[..end]).expect_err("cut off").kind(), Kind::InvalidArgument, "{end}");
        }
        let error = store(&dir.path().join("long"), &mut std::io::repeat(0), 1 << 20).expect_err("too long");
        assert_eq!(error.kind(), Kind::ResourceExhausted);
    }
}
