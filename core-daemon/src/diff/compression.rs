//! From a layer or an archive as it is stored to its plain tar.

use std::io::{BufRead, Read};

use rung_spec::image::Compression;

use crate::error::{Doing, Error, Result};

/// What whole archives may also be packed with; no runtime reads such layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    Xz,
    Bzip2,
}

impl Old {
    const ALL: [(Self, &str, &[u8]); 2] = [(Self::Xz, "xz", b"\xfd7zXZ\0"), (Self::Bzip2, "bzip2", b"BZh")];

    fn sniff(head: &[u8]) -> Option<(Self, &'static str)> {
        Self::ALL.iter().find(|(_, _, magic)| head.starts_with(magic)).map(|(old, name, _)| (*old, *name))
    }
}

/// KiB that a dictionary of xz may take: what its highest preset needs, and a little more.
const XZ_MEMORY: u32 = 72 << 10;

/// The plain tar in `stored`, whatever compression its first bytes show: gzip of any number of members, zstd of any
/// number of frames, or none.
///
/// # Errors
/// When the first bytes cannot be read; `InvalidArgument` for a compression that is refused.
pub fn decompress<'a>(mut stored: impl BufRead + Send + 'a) -> Result<(Box<dyn Read + Send + 'a>, Compression)> {
    let head = stored.fill_buf().doing(|| "read layer")?;
    let compression = Compression::sniff(head);
    if let Some((_, name)) = Old::sniff(head) {
        return Err(Error::invalid(format!(
            "packed with {name}, which is not supported for layers; use gzip, zstd or no packing"
        )));
    }
    Ok((decompress_as(stored, compression)?, compression))
}

/// As [`decompress`], whatever the first bytes show.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn decompress_as<'a>(
    stored: impl BufRead + Send + 'a,
    compression: Compression,
) -> Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).doing(|| "read layer")?;
            // What a frame may make us keep in memory: the limit that the zstd program has too.
            decoder.window_log_max(27).doing(|| "read layer")?;
            Box::new(decoder)
        }
        Compression::None => Box::new(stored),
    })
}

/// As [`decompress`], of a whole archive, which may also be packed with xz or bzip2.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn decompress_archive<'a>(mut stored: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let head = stored.fill_buf().doing(|| "read archive")?;
    Ok(match Old::sniff(head) {
        Some((Old::Xz, _)) => Box::new(lzma_rust2::XzReader::new_mem_limit(stored, true, XZ_MEMORY)),
        Some((Old::Bzip2, _)) => Box::new(bzip2::bufread::MultiBzDecoder::new(stored)),
        None => decompress(stored)?.0,
    })
}
