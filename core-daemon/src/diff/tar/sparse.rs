//! Where the data of sparse files goes.

use std::io::BufRead;

use super::BLOCK;
use super::header::pieces;
use super::pax::{MAX_PIECES, decimal};
use super::source::Source;
use crate::error::{Error, Result};

/// Pieces of an old GNU sparse file: those of the header, and of the blocks that continue it.
pub(super) fn continued<R: BufRead>(
    source: &mut Source<R>,
    mut map: Vec<(u64, u64)>,
    mut more: bool,
) -> Result<Vec<(u64, u64)>> {
    let mut block = [0u8; BLOCK];
    while more {
        source.read_exact(&mut block)?;
        map.extend(pieces(&block[..504])?);
        more = block[504] != 0;
        if map.len() > MAX_PIECES {
            return Err(Error::invalid("tar: sparse file of too many pieces"));
        }
    }
    Ok(map)
}

/// Pieces of a pax 1.0 sparse file: decimal lines in whole blocks before the data, counted in `left`.
pub(super) fn inside<R: BufRead>(source: &mut Source<R>, left: &mut u64) -> Result<Vec<(u64, u64)>> {
    let invalid = || Error::invalid("tar: malformed list of a sparse file's pieces");
    let mut block = [0u8; BLOCK];
    let mut at = BLOCK;
    let mut line = || -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK {
                *left = left.checked_sub(BLOCK as u64).ok_or_else(invalid)?;
                source.read_exact(&mut block)?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return decimal(&digits),
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(invalid()),
            }
        }
    };
    let count = usize::try_from(line()?).map_err(|_| invalid())?;
    if count > MAX_PIECES {
        return Err(invalid());
    }
    (0..count).map(|_| Ok((line()?, line()?))).collect()
}

/// Pieces must be in order, apart, inside the file, and as long together as the data that is there.
pub(super) fn check(pieces: &[(u64, u64)], size: u64, stored: u64) -> Result<()> {
    let invalid = || Error::invalid("tar: sparse file whose pieces do not fit");
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in pieces {
        if *offset < end {
            return Err(invalid());
        }
        end = offset.checked_add(*length).filter(|end| *end <= size).ok_or_else(invalid)?;
        sum += length;
    }
    if sum == stored { Ok(()) } else { Err(invalid()) }
}
