//! From a layer as it is stored to its plain tar.

use std::io::{BufRead, Read};

use rung_spec::image::Compression;

use crate::error::{Doing, Result};

/// The plain tar in `stored`, whatever compression its first bytes show: gzip of any number of members, zstd of any
/// number of frames, or none.
///
/// # Errors
/// When the first bytes cannot be read.
pub fn decompress<'a>(mut stored: impl BufRead + Send + 'a) -> Result<(Box<dyn Read + Send + 'a>, Compression)> {
    let head = stored.fill_buf().doing(|| "read layer")?;
    let compression = Compression::sniff(head);
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
