//! A damaged database: finding out that it is one, and making it anew from its journal.

use std::path::{Path, PathBuf};

use redb::TableHandle as _;
use rung_sys::atomic_file::sync_directory;

use super::journal::Rows;
use super::tx::{ReadTx, Tx as _, WriteTx};
use super::{Db, failed, journal, schema};
use crate::error::{Doing, Error, Kind, Result};

/// The verb of the daemon's program that reads a database.
pub const VERIFY: &str = "verify-metadata";

/// What reading a whole database came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Every page and record is right.
    Whole,
    /// Pages were wrong, and it has gone back to an earlier state that is right.
    Mended,
}

/// Reads the whole database at `path`, which nobody may have open. The library that reads it may panic where pages are
/// damaged, so a process of its own should do this.
///
/// # Errors
/// `DataLoss` where it is damaged; others where it cannot be opened, for which it is not to blame.
pub fn verify(path: &Path) -> Result<Condition> {
    let doing = || format!("open {}", path.display());
    let opened = redb::Database::open(path).map_err(|error| match error {
        // All that a gantryd of this version can have written in another format is by damage.
        redb::DatabaseError::UpgradeRequired(_) => Error::new(Kind::DataLoss, format!("damaged: {error}")),
        error => blame(failed(error)),
    });
    let mut database = opened.doing(doing)?;
    let is_whole = database.check_integrity().map_err(failed).map_err(blame).doing(doing)?;
    let view = ReadTx::begin(&database)?;
    for table in schema::ALL {
        match view.scan_all(table, &mut |_, _, _| Ok(())) {
            // A database that was just begun has none.
            Err(error) if error.kind() == Kind::NotFound => {}
            other => other.map_err(blame).doing(doing)?,
        }
    }
    Ok(if is_whole { Condition::Whole } else { Condition::Mended })
}

/// What the library does not expect of a database is damage.
fn blame(error: Error) -> Error {
    match error.kind() {
        Kind::Internal => Error::new(Kind::DataLoss, format!("damaged: {error}")),
        _ => error,
    }
}

/// Puts the damaged database at `path` aside, and in its place a new one that says what the journal does. `None`, and
/// nothing is changed, where the journal does not help; else where the damaged one is, if there is one.
///
/// # Errors
/// When the new one cannot be written.
pub(super) fn rebuild(path: &Path) -> Result<Option<PathBuf>> {
    let Some(told) = journal::read(path)? else { return Ok(None) };
    let doing = || format!("make {} anew", path.display());
    let fresh = write(path, &told.rows).doing(doing)?;
    let aside = path.with_extension(format!("redb.damaged-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")));
    match std::fs::rename(path, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).doing(doing),
        _ => {}
    }
    place(&fresh, path).doing(doing)?;
    let (records, aside_shown) = (told.rows.len(), aside.display());
    if told.is_clipped {
        tracing::warn!(records, damaged = %aside_shown, "metadata was damaged and made anew; its last changes may be lost");
    } else {
        tracing::warn!(records, damaged = %aside_shown, "metadata was damaged and made anew");
    }
    Ok(Some(aside))
}

/// Makes a database at `path`, where there is none. The machine may fail meanwhile: then there is none still, and not
/// one that is damaged.
pub(super) fn begin(path: &Path) -> Result<()> {
    place(&write(path, &Rows::new())?, path)
}

fn place(fresh: &Path, path: &Path) -> Result<()> {
    std::fs::rename(fresh, path)?;
    Ok(sync_directory(path.parent().unwrap_or(Path::new("/"))).map_err(std::io::Error::from)?)
}

/// Whether there is nothing at `path` that a database could be made of.
pub(super) fn is_gone(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() == 0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).doing(|| format!("open {}", path.display())),
    }
}

/// Writes a database beside `path`.
fn write(path: &Path, rows: &Rows) -> Result<PathBuf> {
    let fresh = path.with_extension("redb.new");
    drop(std::fs::remove_file(&fresh));
    let database = super::opened(&fresh).map_err(failed)?;
    let tx = WriteTx::begin(&database, redb::Durability::Immediate)?;
    for table in schema::ALL {
        tx.create(table)?;
    }
    for ((table, namespace, key), value) in rows {
        if let Some(table) = schema::ALL.into_iter().find(|known| known.name() == table) {
            tx.put(table, namespace, key, value)?;
        }
    }
    tx.commit()?;
    Ok(fresh)
}

impl Db {
    /// Opens the database at `path`, which `verify` has a process read first. One that is damaged or gone is made anew
    /// from its journal. Where that does not help either, and one of `described`, directories of what it describes, is not
    /// empty, it is not begun anew: the collection would remove all that is there, under running containers too.
    ///
    /// # Errors
    /// As [`Db::open`]; `DataLoss` when the database is damaged or gone, and cannot be made anew.
    pub fn open_beside(
        path: &Path,
        described: &[PathBuf],
        verify: &dyn Fn(&Path) -> Result<Condition>,
    ) -> Result<Self> {
        let damage = if is_gone(path)? {
            let holds = |directory: &&PathBuf| match std::fs::read_dir(directory) {
                Ok(mut all) => all.next().is_some(),
                Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            };
            let what = |directory: &PathBuf| {
                let text = format!("open {}: gone or empty, but {} is not", path.display(), directory.display());
                Error::new(Kind::DataLoss, text)
            };
            rebuild(path)?.map_or_else(|| described.iter().find(holds).map(what), |_| None)
        } else {
            match verify(path) {
                Ok(Condition::Whole) => None,
                // The journal knows what went with the earlier state; without one that state is what there is.
                Ok(Condition::Mended) => rebuild(path).map(|_| None)?,
                Err(error) if error.kind() == Kind::DataLoss => rebuild(path)?.map_or(Some(error), |_| None),
                Err(error) => return Err(error),
            }
        };
        damage.map_or_else(|| Self::open(path), |error| Err(super::say_remedy(&error, path)))
    }
}
