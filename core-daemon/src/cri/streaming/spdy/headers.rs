//! Header blocks: names and values, each with its length, in one zlib stream for each direction of the connection.
//!
//! The compression has a memory, so every block must pass here, in the order of the wire, even where its frame is of no
//! use.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use super::frame::Malformed;

/// Most bytes of a block, inflated: what arrives may be a bomb.
const MAX_BLOCK: usize = 16 << 10;
/// Most pairs of a block.
const MAX_PAIRS: u32 = 64;

/// Names, in lower case, and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(super) Vec<(String, String)>);

impl Headers {
    /// The value of a header; the first of several.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }
}

/// The compressing end of a direction.
pub(super) struct Deflater {
    zlib: Compress,
}

impl Deflater {
    pub(super) fn new() -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        // Fails only in the middle of a stream; without it the blocks would be larger, and as readable.
        let _ = zlib.set_dictionary(&dictionary());
        Self { zlib }
    }

    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        let number = |plain: &mut Vec<u8>, n: usize| {
            plain.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
        };
        number(&mut plain, headers.0.len());
        for (name, value) in &headers.0 {
            number(&mut plain, name.len());
            plain.extend_from_slice(name.as_bytes());
            number(&mut plain, value.len());
            plain.extend_from_slice(value.as_bytes());
        }
        let mut packed = Vec::with_capacity(plain.len() + 64);
        let before = self.zlib.total_in();
        loop {
            let taken = usize::try_from(self.zlib.total_in() - before).unwrap_or(plain.len());
            let room = packed.capacity() - packed.len();
            let done = self.zlib.compress_vec(&plain[taken..], &mut packed, FlushCompress::Sync);
            // A flush is complete once it leaves room.
            if done.is_err() || (packed.len() < packed.capacity() && room > 0) {
                return packed;
            }
            packed.reserve(256);
        }
    }
}

/// The inflating end of a direction.
pub(super) struct Inflater {
    zlib: Decompress,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { zlib: Decompress::new(true) }
    }

    pub(super) fn headers(&mut self, packed: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.inflate(packed)?)
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::with_capacity(1 << 10);
        let before = self.zlib.total_in();
        loop {
            let taken = usize::try_from(self.zlib.total_in() - before).unwrap_or(packed.len());
            let rest = packed.get(taken..).unwrap_or_default();
            match self.zlib.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(Malformed("its header compression ends")),
                Ok(_) if plain.len() > MAX_BLOCK => return Err(Malformed("its header block is too large")),
                Ok(_) if plain.len() < plain.capacity() => return Ok(plain),
                Ok(_) => plain.reserve(plain.len()),
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(|_| Malformed("its header compression has another dictionary"))?;
                }
                Err(_) => return Err(Malformed("its header block does not inflate")),
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, Malformed> {
    let mut rest = block;
    let pairs = number(&mut rest)?;
    if pairs > MAX_PAIRS {
        return Err(Malformed("its header block has too many headers"));
    }
    let mut headers = Vec::new();
    for _ in 0..pairs {
        let name = text(&mut rest)?.to_ascii_lowercase();
        headers.push((name, text(&mut rest)?));
    }
    Ok(Headers(headers))
}

fn number(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let (bytes, tail) = rest.split_first_chunk().ok_or(Malformed("its header block ends too early"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*bytes))
}

fn text(rest: &mut &[u8]) -> Result<String, Malformed> {
    let length = usize::try_from(number(rest)?).unwrap_or(usize::MAX);
    let (bytes, tail) = rest.split_at_checked(length).ok_or(Malformed("its header block ends too early"))?;
    *rest = tail;
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("its headers are not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn blocks_survive_one_after_the_other() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "x".repeat(9000);
        for block in [
            headers(&[]),
            headers(&[("streamtype", "stdin"), ("port", "80")]),
            headers(&[("long", &long)]),
            headers(&[("streamtype", "stdin"), ("port", "80")]),
        ] {
            assert_eq!(inflater.headers(&deflater.block(&block)), Ok(block));
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let packed = |plain: &[u8]| {
            let mut deflater = Deflater::new();
            let mut packed = Vec::with_capacity(1 << 20);
            deflater.zlib.compress_vec(plain, &mut packed, FlushCompress::Sync).expect("deflate");
            packed
        };
        for plain in [
            &[][..],
            &[0, 0, 0][..],
            &[0, 0, 0, 1][..],
            &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff][..],
            &[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0][..],
            &[0xff, 0xff, 0xff, 0xff][..],
            &vec![0; 1 << 20][..],
        ] {
            Inflater::new().headers(&packed(plain)).expect_err("malformed");
        }
        Inflater::new().headers(b"not zlib at all").expect_err("malformed");
    }
}
