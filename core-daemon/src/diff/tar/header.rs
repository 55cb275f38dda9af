//! The 512-byte header: fields by offset, numbers in octal or base 256.

use super::{BLOCK, Kind, Pieces};
use crate::error::{Error, Result};

pub(super) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Self> {
        let header = Self { block };
        let damaged = || Error::invalid("tar: header with a wrong checksum; this is no tar, or it is damaged");
        let stored = header.number(148, 8).map_err(|_| damaged())?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let at = |(place, byte): (usize, &u8)| if (148..156).contains(&place) { 32 } else { value(*byte) };
            header.block.iter().enumerate().map(at).sum()
        };
        // Old writers summed signed bytes.
        if sum(i64::from) == stored || sum(|byte| i64::from(byte.cast_signed())) == stored {
            Ok(header)
        } else {
            Err(damaged())
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn entry_kind(&self, path: &[u8]) -> Kind {
        match self.kind() {
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Other,
        }
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let field = &self.block[offset..offset + length];
        field.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.bytes(0, 100);
        // Only POSIX has a prefix; GNU keeps times there.
        let prefix = if &self.block[257..263] == b"ustar\0" { self.bytes(345, 155) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.bytes(157, 100).to_vec()
    }

    /// A number in octal, or in base 256 where the first bit is set.
    fn number(&self, offset: usize, length: usize) -> Result<i64> {
        number(&self.block[offset..offset + length])
    }

    pub(super) fn size(&self) -> Result<u64> {
        u64::try_from(self.number(124, 12)?).map_err(|_| Error::invalid("tar: negative size"))
    }

    pub(super) fn mode(&self) -> Result<u32> {
        small(self.number(100, 8)?, "mode")
    }

    pub(super) fn uid(&self) -> Result<u32> {
        id(self.number(108, 8)?)
    }

    pub(super) fn gid(&self) -> Result<u32> {
        id(self.number(116, 8)?)
    }

    pub(super) fn mtime(&self) -> Result<i64> {
        self.number(136, 12)
    }

    pub(super) fn device(&self) -> Result<(u32, u32)> {
        if &self.block[257..262] != b"ustar" {
            return Ok((0, 0));
        }
        Ok((small(self.number(329, 8)?, "device")?, small(self.number(337, 8)?, "device")?))
    }

    /// The first pieces of an old GNU sparse file, whether more follow, and the file's length.
    pub(super) fn old_sparse(&self) -> Result<(Pieces, bool, u64)> {
        let pieces = pieces(&self.block[386..482])?;
        let size = u64::try_from(self.number(483, 12)?).map_err(|_| Error::invalid("tar: negative size"))?;
        Ok((pieces, self.block[482] != 0, size))
    }
}

/// Pairs of twelve-byte numbers, up to the first that is empty.
pub(super) fn pieces(bytes: &[u8]) -> Result<Pieces> {
    let unsigned = |field: &[u8]| -> Result<u64> {
        u64::try_from(number(field)?).map_err(|_| Error::invalid("tar: negative offset in a sparse file"))
    };
    let mut pieces = Vec::new();
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        pieces.push((unsigned(&pair[..12])?, unsigned(&pair[12..])?));
    }
    Ok(pieces)
}

fn number(field: &[u8]) -> Result<i64> {
    let invalid = || Error::invalid("tar: header with a malformed number");
    let first = *field.first().ok_or_else(invalid)?;
    if first & 0x80 != 0 {
        // Two's complement, the marker bit standing where the sign's neighbour is.
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        value = (value << 6) | i128::from(first & 0x3f);
        for byte in &field[1..] {
            value = (value << 8) | i128::from(*byte);
            if !(-(1 << 64)..1 << 64).contains(&value) {
                return Err(invalid());
            }
        }
        return i64::try_from(value).map_err(|_| invalid());
    }
    let is_filling = |byte: &u8| matches!(*byte, 0 | b' ');
    let start = field.iter().position(|byte| !is_filling(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_filling(byte)).map_or(start, |last| last + 1);
    let mut value: i64 = 0;
    for digit in field[start..end].iter().take_while(|byte| **byte != 0) {
        if !(b'0'..=b'7').contains(digit) {
            return Err(invalid());
        }
        value =
            value.checked_mul(8).and_then(|value| value.checked_add(i64::from(digit - b'0'))).ok_or_else(invalid)?;
    }
    Ok(value)
}

fn small(value: i64, what: &str) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::invalid(format!("tar: {what} {value} is out of range")))
}

/// A user or group id; the highest means "unchanged" to the kernel and cannot be given.
pub(super) fn id(value: i64) -> Result<u32> {
    match small(value, "owner")? {
        u32::MAX => Err(Error::invalid("tar: owner 4294967295 is out of range")),
        id => Ok(id),
    }
}
