//! Writing tar streams: ustar headers, and a pax header before where one is too small. The same files give the same
//! bytes.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, padding};

/// Largest number of a header's field of 8 and of 12 bytes.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// Writes entries.
pub struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Writes an entry, with as much of `data` as the entry says it has.
    ///
    /// # Errors
    /// What writing or reading fails with; `UnexpectedEof` where there is less data.
    pub fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let mut header = header(b"", b"", b'x', records.len() as u64);
            seal(&mut header);
            self.inner.write_all(&header)?;
            self.padded(&records)?;
        }
        let size = if entry.kind == Kind::File { entry.size } else { 0 };
        self.inner.write_all(&entry_header(entry, size))?;
        let copied = io::copy(&mut data.take(size), &mut self.inner)?;
        if copied < size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file became shorter while it was read"));
        }
        self.zeros(padding(size))
    }

    /// Writes the end, and gives back what was written to.
    ///
    /// # Errors
    /// What writing fails with.
    pub fn finish(mut self) -> io::Result<W> {
        self.zeros(2 * BLOCK as u64)?;
        Ok(self.inner)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.zeros(padding(bytes.len() as u64))
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(count), &mut self.inner).map(drop)
    }
}

/// What does not fit into the plain header.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // The length counts itself.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} ").as_bytes());
        records.extend_from_slice(&[key, b"=", value, b"\n"].concat());
    };
    let fits = |text: &[u8]| text.len() <= 100 && text.is_ascii();
    if !fits(&entry.path) {
        add(b"path", &entry.path);
    }
    if !fits(&entry.link) {
        add(b"linkpath", &entry.link);
    }
    if entry.uid > MAX_ID {
        add(b"uid", entry.uid.to_string().as_bytes());
    }
    if entry.gid > MAX_ID {
        add(b"gid", entry.gid.to_string().as_bytes());
    }
    if entry.size > MAX_SIZE {
        add(b"size", entry.size.to_string().as_bytes());
    }
    if u64::try_from(entry.mtime.0).is_ok_and(|seconds| seconds > MAX_SIZE) || entry.mtime.0 < 0 {
        add(b"mtime", entry.mtime.0.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

fn entry_header(entry: &Entry, size: u64) -> [u8; BLOCK] {
    let kind = match entry.kind {
        Kind::File | Kind::Other => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let mut block = header(&entry.path, &entry.link, kind, size.min(MAX_SIZE));
    octal(&mut block[100..108], u64::from(entry.mode));
    octal(&mut block[108..116], u64::from(entry.uid.min(MAX_ID)));
    octal(&mut block[116..124], u64::from(entry.gid.min(MAX_ID)));
    octal(&mut block[136..148], u64::try_from(entry.mtime.0).unwrap_or(0).min(MAX_SIZE));
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    seal(&mut block);
    block
}

fn header(path: &[u8], link: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let put = |field: &mut [u8], text: &[u8]| {
        let length = text.len().min(field.len());
        field[..length].copy_from_slice(&text[..length]);
    };
    put(&mut block[..100], path);
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = kind;
    put(&mut block[157..257], link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    field[..width].copy_from_slice(&text.as_bytes()[text.len() - width..]);
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    block[148..156].copy_from_slice(text.as_bytes());
}
