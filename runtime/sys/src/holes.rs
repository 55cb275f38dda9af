//! Files with holes: where their data is, and copies that have the same holes.

use std::fs::File;
use std::io::{self, Read as _};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Goes to the first data of a file from `at` on, and says where it begins and where the next hole does. `None`: only a hole
/// is left. On a file system without holes everything is data.
///
/// # Errors
/// What the kernel says.
pub fn next_data(file: &File, at: i64) -> io::Result<Option<(i64, i64)>> {
    let start = match lseek(file, at, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    lseek(file, start, Whence::SeekSet)?;
    Ok(Some((start, end)))
}

/// Copies a file into an empty one, whatever their offsets. Holes stay holes: a length that is made up takes no space and no
/// time. A file system that can shares the blocks.
///
/// # Errors
/// What reading or writing fails with.
pub fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at)? {
        lseek(&*to, start, Whence::SeekSet)?;
        io::copy(&mut from.take(u64::try_from(end - start).unwrap_or(0)), to)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_same_holes() {
        let (mut from, mut to) = (tempfile::tempfile().expect("file"), tempfile::tempfile().expect("file"));
        copy(&mut from, &mut to).expect("empty");
        from.write_all_at(b"middle", 1 << 30).expect("write");
        from.set_len(1 << 40).expect("length");
        copy(&mut from, &mut to).expect("copy");
        let copied = to.metadata().expect("metadata");
        assert_eq!(copied.len(), 1 << 40);
        assert!(copied.blocks() * 512 < 1 << 20, "the holes take space");
        let mut middle = [0; 6];
        to.read_exact_at(&mut middle, 1 << 30).expect("read");
        assert_eq!(&middle, b"middle");
        assert_eq!(next_data(&from, 1 << 39).expect("look"), None);
    }
}
