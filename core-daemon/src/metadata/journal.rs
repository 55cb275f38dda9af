//! The metadata told a second time: all records, and after them every change, beside the database.
//!
//! ```text
//! meta.journal ── frame … frame, the last of them `whole`: all records at one moment
//!                 frame …                                  each transaction since, in order
//! frame ── length (4 bytes) · CRC-32 (4 bytes) · message
//! ```
//!
//! A damaged database is made anew from it. It is written after the database and never flushed by itself: a crash of the
//! daemon loses nothing of it, and a crash of the machine at most what the database still has.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use redb::TableHandle as _;
use rung_sys::atomic_file::sync_directory;

use super::schema::{self, Table};
use super::tx::{ReadTx, Tx};
use crate::error::{Doing, Result};

/// Rows of a frame when all records are written.
const ROWS: usize = 512;
/// Longest message that is believed.
const MAX_FRAME: usize = 256 << 20;
/// Fewest bytes of changes after which all is written anew.
const MIN_CHANGES: u64 = 4 << 20;

/// A record, or that there is none any more.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Row {
    #[prost(string, tag = "1")]
    table: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(bytes = "vec", optional, tag = "4")]
    value: Option<Vec<u8>>,
}

impl Row {
    pub(super) fn new(table: Table, namespace: &str, key: &str, value: Option<&[u8]>) -> Self {
        let (table, value) = (table.name().to_owned(), value.map(<[u8]>::to_vec));
        Self { table, namespace: namespace.to_owned(), key: key.to_owned(), value }
    }

    pub(super) fn is_of(&self, table: Table) -> bool {
        self.table == table.name()
    }
}

/// What is written at once.
#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(message, repeated, tag = "1")]
    rows: Vec<Row>,
    /// All records of the moment are written.
    #[prost(bool, tag = "2")]
    whole: bool,
}

/// The journal of an open database.
pub(super) struct Journal {
    path: PathBuf,
    /// None where it does not say what the database does: it is written anew with the next change.
    file: Option<File>,
    /// Bytes of all records, and of the file.
    whole: u64,
    length: u64,
}

impl Journal {
    /// Where the journal of the database at `path` is.
    pub(super) fn path_of(path: &Path) -> PathBuf {
        path.with_extension("journal")
    }

    /// A journal of the database at `path`, which is to be written.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: Self::path_of(path), file: None, whole: 0, length: 0 }
    }

    /// It is not what the database says any more: the next change writes it anew.
    pub(super) fn forget(&mut self) {
        self.file = None;
    }

    /// Notes a transaction that is committed.
    pub(super) fn note(&mut self, rows: Vec<Row>, database: &redb::Database) {
        if let Some(file) = &mut self.file
            && self.length - self.whole < MIN_CHANGES.max(2 * self.whole)
        {
            match write_frame(file, &Frame { rows, whole: false }) {
                Ok(length) => {
                    self.length += length;
                    return;
                }
                Err(error) => tracing::warn!(%error, "a change of the metadata is not in its journal"),
            }
        }
        self.rewrite(database);
    }

    /// Writes all records anew. Where that fails, the next change tries again.
    pub(super) fn rewrite(&mut self, database: &redb::Database) {
        self.file = None;
        match self.try_rewrite(database) {
            Ok((file, length)) => (self.file, self.whole, self.length) = (Some(file), length, length),
            Err(error) => {
                drop(std::fs::remove_file(self.fresh()));
                tracing::warn!(%error, "the metadata has no journal that it could be made anew from");
            }
        }
    }

    fn fresh(&self) -> PathBuf {
        self.path.with_extension("journal.new")
    }

    fn try_rewrite(&self, database: &redb::Database) -> Result<(File, u64)> {
        let doing = || format!("write {}", self.path.display());
        let fresh = self.fresh();
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).doing(doing)?;
        let mut writer = BufWriter::new(file);
        let (mut length, mut rows) = (0, Vec::new());
        let view = ReadTx::begin(database)?;
        for table in schema::ALL {
            view.scan_all(table, &mut |namespace, key, value| {
                rows.push(Row::new(table, namespace, key, Some(value)));
                if rows.len() >= ROWS {
                    let frame = Frame { rows: std::mem::take(&mut rows), whole: false };
                    length += write_frame(&mut writer, &frame).doing(doing)?;
                }
                Ok(())
            })?;
        }
        length += write_frame(&mut writer, &Frame { rows, whole: true }).doing(doing)?;
        let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error).doing(doing)?;
        file.sync_all().and_then(|()| std::fs::rename(&fresh, &self.path)).doing(doing)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        sync_directory(directory).map_err(std::io::Error::from).doing(doing)?;
        Ok((file, length))
    }
}

/// Writes a frame whole; what is written of one that fails is damaged, and ends the journal.
fn write_frame(to: &mut impl Write, frame: &Frame) -> std::io::Result<u64> {
    let message = frame.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(|_| std::io::Error::from(ErrorKind::InvalidInput))?;
    let mut bytes = Vec::with_capacity(message.len() + 8);
    bytes.extend(length.to_le_bytes());
    bytes.extend(checksum(&message).to_le_bytes());
    bytes.extend(message);
    to.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Every record: table, namespace, key and value.
pub(super) type Rows = std::collections::BTreeMap<(String, String, String), Vec<u8>>;

/// What a journal says.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) rows: Rows,
    /// What follows cannot be read.
    pub(super) is_clipped: bool,
}

/// Reads the journal of the database at `path`, as far as it is right; `None` where that is not even all records of some
/// moment.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Told>> {
    let path = Journal::path_of(path);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => std::io::BufReader::new(other.doing(|| format!("open {}", path.display()))?),
    };
    let mut told = Told { rows: Rows::new(), is_clipped: false };
    let mut is_whole = false;
    loop {
        match read_frame(&mut file).doing(|| format!("read {}", path.display()))? {
            Next::Frame(frame) => {
                is_whole |= frame.whole;
                for Row { table, namespace, key, value } in frame.rows {
                    match value {
                        Some(value) => drop(told.rows.insert((table, namespace, key), value)),
                        None => drop(told.rows.remove(&(table, namespace, key))),
                    }
                }
            }
            Next::End => break,
            Next::Damage => {
                told.is_clipped = true;
                break;
            }
        }
    }
    Ok(is_whole.then_some(told))
}

/// What comes next in a journal.
enum Next {
    Frame(Frame),
    End,
    Damage,
}

fn read_frame(from: &mut impl Read) -> std::io::Result<Next> {
    let mut head = Vec::with_capacity(8);
    from.by_ref().take(8).read_to_end(&mut head)?;
    let Ok(head) = <[u8; 8]>::try_from(&head[..]) else {
        return Ok(if head.is_empty() { Next::End } else { Next::Damage });
    };
    let [a, b, c, d, sum @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME {
        return Ok(Next::Damage);
    }
    let mut message = Vec::new();
    from.take(length as u64).read_to_end(&mut message)?;
    if message.len() != length || checksum(&message) != u32::from_le_bytes(sum) {
        return Ok(Next::Damage);
    }
    Ok(Frame::decode(&message[..]).map_or(Next::Damage, Next::Frame))
}
