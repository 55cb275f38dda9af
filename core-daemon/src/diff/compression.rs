//! From a layer as it is stored to its plain tar.

use std::io::{BufRead, Read};

use rung_spec::image::Compression;

use crate::error::{Doing, Error, Result};

/// What tars may also be packed with, and how that begins; no runtime reads such layers.
const REFUSED: [(&str, &[u8]); 2] = [("xz", b"\xfd7zXZ\0"), ("bzip2", b"BZh")];

/// The plain tar in `stored`, whatever compression its first bytes show: gzip of any number of members, zstd of any
/// number of frames, or none.
///
/// # Errors
/// When the first bytes cannot be read; `InvalidArgument` for a compression that is refused.
pub fn decompress<'a>(mut stored: impl BufRead + Send + 'a) -> Result<(Box<dyn Read + Send + 'a>, Compression)> {
    let head = stored.fill_buf().doing(|| "read layer")?;
    let compression = Compression::sniff(head);
    if let Some((name, _)) = REFUSED.iter().find(|(_, magic)| head.starts_with(magic)) {
        return Err(Error::invalid(format!(
            "packed with {name}, which is not supported; use gzip, zstd or no packing"
        )));
    }
    let plain: Box<dyn Read + Send + 'a> = match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).doing(|| "read layer")?;
            // What a frame may make us keep in memory: the limit that the zstd program has too.
            decoder.window_log_max(27).doing(|| "read layer")?;
            Box::new(decoder)
        }
        Compression::None => Box::new(stored),
    };
    Ok((plain, compression))
}
