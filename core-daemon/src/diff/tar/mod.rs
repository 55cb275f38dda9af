//! Reading tar streams of every dialect that layers come in: ustar, pax, GNU and their sparse files.
//!
//! The stream is hostile: sizes are bounded before anything is allocated, and pax `size` counts for both the data and
//! the next header, so that no two readers can disagree on where an entry ends. Where dialects leave room, it is read as
//! Go's archive/tar does, which most of those read with who look into layers before they are unpacked.

mod header;
mod pax;
mod source;
mod sparse;
mod writer;

use std::io::BufRead;

use crate::error::{Error, Result};
use header::Header;
use source::Source;
pub use writer::Writer;

/// Largest pax header or long name.
const MAX_EXTENSION: u64 = 1 << 20;
pub(super) const BLOCK: usize = 512;

/// Offsets and lengths of what is not a hole.
pub type Pieces = Vec<(u64, u64)>;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Something that is no file.
    Other,
}

/// One entry. Its data is read from the reader before the next entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Path as it stands there.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the file.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The pieces of a sparse file that are not holes: offset and length.
    pub pieces: Option<Pieces>,
}

/// Reads entries.
pub struct Reader<R> {
    source: Source<R>,
    /// Bytes of the current entry's data that are not read yet, and of the padding after it.
    left: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the tar in `inner`, of which not more than `limit` bytes are accepted.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { source: Source::new(inner, limit), left: 0, padding: 0, ended: false }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `InvalidArgument` where the stream is no tar; what reading it fails with.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extended = pax::Records::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.source.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind() {
                b'x' => extended = pax::parse(&self.extension(&header)?)?,
                b'g' => {
                    drop(self.extension(&header)?);
                    // It is an entry of its own, so what stood before it was about it.
                    (extended, long_path, long_link) = (pax::Records::default(), None, None);
                }
                b'L' => long_path = text(self.extension(&header)?),
                b'K' => long_link = text(self.extension(&header)?),
                _ => return self.entry(&header, extended, long_path, long_link).map(Some),
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0u8; BLOCK];
        // Two blocks of zeros end a tar; so does one, or none, at the end of the stream.
        for nth in 0..2 {
            if !self.source.block(&mut block)? {
                break;
            }
            if block.iter().any(|byte| *byte != 0) {
                if nth == 0 {
                    return Header::parse(block).map(Some);
                }
                return Err(Error::invalid("tar: something follows a single block of zeros"));
            }
        }
        self.ended = true;
        Ok(None)
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > MAX_EXTENSION {
            return Err(Error::invalid(format!("tar: header of {size} bytes, more than {MAX_EXTENSION}")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.source.read_exact(&mut bytes)?;
        self.source.skip(padding(size))?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &Header,
        extended: pax::Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let path = long_path.or(extended.path).unwrap_or_else(|| header.path());
        let kind = header.entry_kind(&path);
        let has_data = matches!(kind, Kind::File | Kind::Other);
        let size = extended.size.map_or_else(|| header.size(), Ok)?;
        if kind == Kind::Directory && header.kind() == b'0' && size > 0 {
            // To some readers that is a file, whose data they skip; to others it is a directory, which has none.
            return Err(Error::invalid("tar: a file that is called like a directory"));
        }
        let stored = if has_data { size } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let mut entry = Entry {
            link: long_link.or(extended.link).unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()? & 0o7777,
            uid: extended.uid.map_or_else(|| header.uid(), Ok)?,
            gid: extended.gid.map_or_else(|| header.gid(), Ok)?,
            size: stored,
            mtime: extended.mtime.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?,
            device: header.device()?,
            xattrs: extended.xattrs,
            pieces: None,
            path,
        };
        if kind == Kind::File {
            self.sparse(header, extended.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    fn sparse(&mut self, header: &Header, pax: Option<pax::Sparse>, entry: &mut Entry) -> Result<()> {
        let (pieces, size) = if header.kind() == b'S' {
            let (map, more, size) = header.old_sparse()?;
            (sparse::continued(&mut self.source, map, more)?, size)
        } else if let Some(pax) = pax {
            if let Some(name) = pax.name {
                entry.path = name;
            }
            let size = pax.size.ok_or_else(|| Error::invalid("tar: sparse file without its size"))?;
            if pax.inside { (sparse::inside(&mut self.source, &mut self.left)?, size) } else { (pax.pieces, size) }
        } else {
            return Ok(());
        };
        sparse::check(&pieces, size, self.left)?;
        (entry.pieces, entry.size) = (Some(pieces), size);
        Ok(())
    }

    /// Hands the entry's data on, up to `limit` bytes of it, piece by piece as it lies in the buffer.
    ///
    /// # Errors
    /// When the stream ends early, and what `take` fails with.
    pub fn data(&mut self, limit: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut wanted = limit.min(self.left);
        while wanted > 0 {
            let chunk = self.source.chunk(wanted)?;
            let length = chunk.len() as u64;
            take(chunk)?;
            self.source.consume(length);
            wanted -= length;
            self.left -= length;
        }
        Ok(())
    }

    /// Reads what comes after the last entry; answers with the length of all.
    ///
    /// # Errors
    /// When the stream cannot be read to its end.
    pub fn finish(mut self) -> Result<u64> {
        self.source.drain()?;
        Ok(self.source.total())
    }
}

/// How far it is from the end of `size` bytes to the next block.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A name up to its NUL, if there is one.
fn text(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests;
