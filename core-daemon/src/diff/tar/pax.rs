//! pax extended headers: `length key=value\n`, repeated.

use super::header::id;
use crate::error::{Error, Result};

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Most pieces of a sparse file that a header lists.
pub(super) const MAX_PIECES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Sparse>,
}

/// What the GNU.sparse records say.
#[derive(Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) pieces: Vec<(u64, u64)>,
    /// The list of pieces stands before the data.
    pub(super) inside: bool,
    offset: Option<u64>,
}

pub(super) fn parse(mut bytes: &[u8]) -> Result<Records> {
    let mut records = Records::default();
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes)?;
        records.take(key, value)?;
        bytes = rest;
    }
    Ok(records)
}

fn malformed() -> Error {
    Error::invalid("tar: malformed pax header")
}

fn record(bytes: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
    let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| malformed())?;
    if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return Err(malformed());
    }
    let body = &bytes[space + 1..length - 1];
    let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
    Ok((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

impl Records {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let name = |value: &[u8]| if value.contains(&0) { Err(malformed()) } else { Ok(value.to_vec()) };
        let owner = |value: &[u8]| id(signed(value)?);
        match key {
            b"path" => self.path = said(value, name)?,
            b"linkpath" => self.link = said(value, name)?,
            b"size" => self.size = said(value, decimal)?,
            b"uid" => self.uid = said(value, owner)?,
            b"gid" => self.gid = said(value, owner)?,
            b"mtime" => self.mtime = said(value, time)?,
            _ if key.starts_with(XATTR) && key.len() > XATTR.len() => {
                self.xattrs.push((key[XATTR.len()..].to_vec(), value.to_vec()));
            }
            _ if key.starts_with(b"GNU.sparse.") => self.take_sparse(&key[11..], value)?,
            _ => {}
        }
        Ok(())
    }

    fn take_sparse(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let sparse = self.sparse.get_or_insert_default();
        match key {
            b"major" => sparse.inside = value == b"1",
            b"name" => sparse.name = Some(value.to_vec()),
            b"realsize" | b"size" => sparse.size = Some(decimal(value)?),
            b"offset" => sparse.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = sparse.offset.take().ok_or_else(malformed)?;
                sparse.pieces.push((offset, decimal(value)?));
            }
            b"map" if !value.is_empty() => {
                let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(decimal).collect::<Result<_>>()?;
                if !numbers.len().is_multiple_of(2) {
                    return Err(malformed());
                }
                sparse.pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {}
        }
        if sparse.pieces.len() > MAX_PIECES { Err(malformed()) } else { Ok(()) }
    }
}

/// What a value says. An empty one takes back what a header before said, which here is what the plain header says.
fn said<T>(value: &[u8], read: impl Fn(&[u8]) -> Result<T>) -> Result<Option<T>> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some) }
}

/// A number of bytes, of which no file has more than 2^63.
pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    u64::try_from(signed(text)?).map_err(|_| malformed())
}

fn signed(text: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    if text.starts_with(['+', '-']) {
        return Err(malformed());
    }
    text.parse().map_err(|_| malformed())
}

/// `seconds[.fraction]`, before 1970 with a minus.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().map_err(|_| malformed())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| malformed())?;
    if negative && nanoseconds > 0 {
        return Ok((seconds.checked_sub(1).ok_or_else(malformed)?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}
