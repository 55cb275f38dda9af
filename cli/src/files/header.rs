//! Headers: ustar, with pax records where a name or a number is too large for it.

use std::io::{self, Read, Write};

use super::{BLOCK, padding};

/// Most bytes of pax records.
const MAX_RECORDS: u64 = 1 << 20;
/// Largest number of a field of 12 bytes.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// A device.
    Device,
}

/// One entry, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) size: u64,
    pub(super) mtime: u64,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("archive: {what}"))
}

impl Entry {
    /// Reads the next one; `None` at the end.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut records = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if !read_block(from, &mut block)? || block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            if number(&block[148..156])? != sum(&block) {
                return Err(malformed("header is damaged"));
            }
            let size = number(&block[124..136])?;
            if block[156] == b'x' {
                if size > MAX_RECORDS {
                    return Err(malformed("header is too long"));
                }
                records.clear();
                from.take(size).read_to_end(&mut records)?;
                skip(from, padding(size))?;
                continue;
            }
            let mut entry = Self::of(&block, size)?;
            entry.take(&records)?;
            if entry.kind != Kind::File {
                entry.size = 0;
            }
            return Ok(Some(entry));
        }
    }

    fn of(block: &[u8; BLOCK], size: u64) -> io::Result<Self> {
        let kind = match block[156] {
            b'0' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(malformed(&format!("kind {:?} is unknown", char::from(other)))),
        };
        let id = |field: &[u8]| Ok::<_, io::Error>(u32::try_from(number(field)?).unwrap_or(u32::MAX));
        let mut path = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        Ok(Self {
            path,
            link: text(&block[157..257]).to_vec(),
            kind,
            mode: id(&block[100..108])? & 0o7777,
            owner: (id(&block[108..116])?, id(&block[116..124])?),
            size,
            mtime: number(&block[136..148])?,
        })
    }

    /// Takes over pax records: `LENGTH KEY=VALUE`, repeated.
    fn take(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || malformed("header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = std::str::from_utf8(&records[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let length = length.filter(|length| *length > space + 1 && *length <= records.len()).ok_or_else(bad)?;
            let record = records[space + 1..length].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let whole = || {
                let text = std::str::from_utf8(value).ok()?;
                text.split('.').next()?.parse::<u64>().ok()
            };
            match key {
                b"path" => self.path = value.to_vec(),
                b"linkpath" => self.link = value.to_vec(),
                b"size" => self.size = whole().ok_or_else(bad)?,
                // A time before 1970 is the beginning.
                b"mtime" => self.mtime = whole().unwrap_or(0),
                b"uid" => self.owner.0 = whole().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad)?,
                b"gid" => self.owner.1 = whole().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad)?,
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }

    /// Writes it; the bytes of a file follow, and padding.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            let size = records.len() as u64;
            to.write_all(&block(b"", b"", b'x', 0o644, (0, 0), size, 0))?;
            to.write_all(&records)?;
            io::copy(&mut io::repeat(0).take(padding(size)), to)?;
        }
        let kind = match self.kind {
            Kind::File | Kind::Device => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        to.write_all(&block(&self.path, &self.link, kind, self.mode, self.owner, self.size, self.mtime))
    }

    /// What does not fit into the plain header.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            // The length counts itself.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            records.extend_from_slice(format!("{length} {key}=").as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        };
        let fits = |text: &[u8]| text.len() <= 100 && text.is_ascii();
        if !fits(&self.path) {
            add("path", &self.path);
        }
        if !fits(&self.link) {
            add("linkpath", &self.link);
        }
        if self.size > MAX_OCTAL {
            add("size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > 0o7_777_777 {
                add(key, id.to_string().as_bytes());
            }
        }
        records
    }
}

fn block(path: &[u8], link: &[u8], kind: u8, mode: u32, owner: (u32, u32), size: u64, mtime: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let put = |field: &mut [u8], text: &[u8]| {
        let length = text.len().min(field.len());
        field[..length].copy_from_slice(&text[..length]);
    };
    put(&mut block[..100], path);
    put(&mut block[157..257], link);
    octal(&mut block[100..108], mode.into());
    octal(&mut block[108..116], owner.0.into());
    octal(&mut block[116..124], owner.1.into());
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], mtime);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum = sum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let most = (1 << (3 * width)) - 1;
    field[..width].copy_from_slice(format!("{:0width$o}", value.min(most)).as_bytes());
}

/// The sum of all bytes, where those of the sum itself count as spaces.
fn sum(block: &[u8; BLOCK]) -> u64 {
    let plain: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    plain - own + 8 * u64::from(b' ')
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> io::Result<u64> {
    let digits = std::str::from_utf8(text(field)).map_err(|_| malformed("a number is malformed"))?.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| malformed("a number is malformed"))
}

/// Reads a block; false where there is nothing more.
fn read_block(from: &mut impl Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    let first = loop {
        match from.read(block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    from.read_exact(&mut block[first..]).map(|()| true)
}

pub(super) fn skip(from: &mut impl Read, bytes: u64) -> io::Result<()> {
    io::copy(&mut from.take(bytes), &mut io::sink()).map(drop)
}
