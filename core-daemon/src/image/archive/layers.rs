//! The layers of a docker archive, which says of them only where they are in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::FileExt;

use rung_spec::digest::Digest;
use rung_spec::image::{Compression, Descriptor, media_types};

use super::read::Files;
use crate::content::{Content, Ingest, IngestWriter};
use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::image::walk::MAX_LAYERS;
use crate::labels::{self, Labels};

/// Bytes that are read and written at once.
const BUFFER: usize = 256 << 10;

/// The descriptors of layers by their paths: of their compressed forms where those are here, or are wanted.
pub(super) fn resolve(
    content: &Content,
    ctx: &Context,
    files: &Files,
    paths: &[String],
    compress: bool,
) -> Result<Vec<Descriptor>> {
    if paths.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("it has {} layers, more than {MAX_LAYERS}", paths.len())));
    }
    let mut stored = Vec::new();
    for path in paths {
        let found = files.find(path).ok_or_else(|| Error::invalid(format!("layer {path:?} is not in the archive")))?;
        stored.push(found.clone());
    }
    let known = compressed_forms(content, ctx, &stored)?;
    let mut layers = Vec::new();
    for layer in stored {
        let digest = known.get(&layer.digest).unwrap_or(&layer.digest);
        let blob = content.reader(ctx, digest)?;
        let mut head = [0; 8];
        let length = blob.file.read_at(&mut head, 0).doing(|| format!("read content {digest}"))?;
        let compression = Compression::sniff(&head[..length]);
        let (digest, size) = match compression {
            Compression::None if compress => pack(content, ctx, &layer.digest, blob.file)?,
            _ => (digest.clone(), blob.size),
        };
        let media_type = match compression {
            Compression::Gzip => media_types::DOCKER_LAYER_GZIP,
            Compression::Zstd => media_types::DOCKER_LAYER_ZSTD,
            Compression::None if compress => media_types::DOCKER_LAYER_GZIP,
            Compression::None => media_types::DOCKER_LAYER,
        };
        layers.push(Descriptor::new(media_type, digest, size));
    }
    Ok(layers)
}

/// Blobs that are known to be compressed forms of plain ones, and are here whole.
fn compressed_forms(content: &Content, ctx: &Context, plain: &[Descriptor]) -> Result<HashMap<Digest, Digest>> {
    let mut known = HashMap::new();
    for info in content.list(ctx)? {
        let Some(of) = info.labels.get(labels::UNCOMPRESSED) else { continue };
        if let Some(layer) = plain.iter().find(|layer| layer.digest.as_str() == of)
            && let Ok(digest) = Digest::parse(&info.digest)
            && content.hold(ctx, &digest)?
        {
            known.insert(layer.digest.clone(), digest);
        }
    }
    Ok(known)
}

/// Stores a plain layer once more, with gzip.
fn pack(content: &Content, ctx: &Context, plain: &Digest, file: File) -> Result<(Digest, u64)> {
    let mut ingest = content.writer_once(ctx, &format!("compress-{plain}"), 0, None)?;
    if let Err(error) = compress(file, &mut ingest) {
        ingest.abort();
        return Err(error.context(format!("compress {plain}")));
    }
    let size = ingest.offset();
    let labels = Labels::from([(labels::UNCOMPRESSED.to_owned(), plain.to_string())]);
    Ok((ingest.store(size, None, labels)?, size))
}

fn compress(file: File, ingest: &mut Ingest) -> Result<()> {
    let stored = BufWriter::with_capacity(BUFFER, IngestWriter(ingest));
    let mut encoder = flate2::write::GzEncoder::new(stored, flate2::Compression::default());
    io::copy(&mut BufReader::with_capacity(BUFFER, file), &mut encoder)?;
    Ok(encoder.finish()?.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_packed_while_another_packs_it_too() {
        let (_dir, content, ctx) = super::super::store();
        let plain = content.put(&ctx, b"plain", Labels::new()).expect("put");
        let _other = content.writer(&ctx, &format!("compress-{plain}"), 0, None).expect("another import");
        let packed = || pack(&content, &ctx, &plain, content.reader(&ctx, &plain).expect("blob").file);
        let (digest, size) = packed().expect("pack");
        assert_eq!(content.info(&ctx, &digest).expect("info").labels[labels::UNCOMPRESSED], plain.as_str());
        let mut back = String::new();
        let stored = content.reader(&ctx, &digest).expect("packed").file;
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(stored), &mut back).expect("inflate");
        assert_eq!((back.as_str(), packed().expect("again")), ("plain", (digest, size)));
    }
}
