//! The metadata of everything: one redb file, one transaction for every change that belongs together.
//!
//! ```text
//! meta.redb    ── namespaces, containers, images, leases, content, snapshots, sandboxes, engine
//!                  every row: (namespace, key) → record
//! meta.journal ── the same once more: what it is made anew from when it is damaged
//! meta.redb.damaged-<time> ── a damaged one that was replaced
//! ```
//!
//! Records of content and of snapshots live in the same file as those that refer to them, so that after a crash they
//! cannot disagree. A commit returns when the change is on disk. Reading never waits; writers take turns.

pub mod containers;
pub mod content;
pub mod images;
mod journal;
pub mod leases;
pub mod namespaces;
mod rebuild;
pub mod sandboxes;
pub mod schema;
pub mod snapshots;
mod tx;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use journal::Journal;
pub use rebuild::{Condition, VERIFY, verify};
pub use tx::{ReadTx, Tx, Visit, VisitAll, WriteTx, decode};

use crate::error::{Doing, Error, Kind, Result};

/// The open database. Clones share it.
#[derive(Clone)]
pub struct Db {
    /// Empty only while it is opened again.
    inner: Arc<RwLock<Option<redb::Database>>>,
    /// Locked while a change is made, so that changes are in it in their order.
    journal: Arc<Mutex<Journal>>,
    path: Arc<PathBuf>,
    /// How often something was changed.
    changes: Arc<AtomicU64>,
    /// How often records of images or of content were.
    image_changes: Arc<AtomicU64>,
    /// Whether the last change may still be lost: it was made by [`Db::write_soon`].
    unflushed: Arc<AtomicBool>,
    /// How often a failed write has undone what was not flushed.
    undone: Arc<AtomicU64>,
    /// When setting space aside was tried last, where there is none.
    lacks_reserve: Arc<Mutex<Option<Instant>>>,
}

/// Kept beside the database, and given up when the disk is full: what frees space must be recorded too. Once there is space
/// again, it is set aside again.
const RESERVE: u64 = 4 << 20;
/// How long it takes until that is tried again.
const RESERVE_AGAIN: Duration = Duration::from_secs(30);
/// Most of the database that is kept in memory; the kernel has the rest of it near.
const CACHE: usize = 8 << 20;

impl Db {
    /// Opens the database at `path`, making it where there is none.
    ///
    /// # Errors
    /// `FailedPrecondition` when another daemon has it open, or when a newer daemon wrote it; `DataLoss` when it is
    /// damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = Self::try_open(path);
        opened.map_err(|error| if error.kind() == Kind::DataLoss { say_remedy(&error, path) } else { error })
    }

    fn try_open(path: &Path) -> Result<Self> {
        let doing = || format!("open {}", path.display());
        if rebuild::is_gone(path)? {
            rebuild::begin(path).doing(doing)?;
        }
        private(path).doing(doing)?;
        let inner = opened(path).map_err(failed).doing(doing)?;
        let (inner, journal) = (Arc::new(RwLock::new(Some(inner))), Arc::new(Mutex::new(Journal::new(path))));
        let db = Self {
            inner,
            journal,
            path: Arc::new(path.to_owned()),
            changes: Arc::default(),
            image_changes: Arc::default(),
            unflushed: Arc::default(),
            undone: Arc::default(),
            lacks_reserve: Arc::default(),
        };
        db.prepare().doing(|| format!("open {}", path.display()))?;
        db.make_reserve();
        if let Some(database) = db.inner.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            db.journal.lock().unwrap_or_else(PoisonError::into_inner).rewrite(database);
        }
        Ok(db)
    }

    /// Makes the tables and checks the version; writes only what is missing.
    fn prepare(&self) -> Result<()> {
        let version = match self.read(|tx| tx.get(schema::FACTS, "", "version")) {
            Ok(version) => version,
            // A new file has no tables at all yet.
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        match version.map(|bytes| bytes.try_into().map(u32::from_le_bytes)) {
            Some(Ok(schema::VERSION)) => Ok(()),
            Some(Ok(version)) if version > schema::VERSION => Err(Error::precondition(format!(
                "its version is {version}, this gantryd reads up to {}; run the newer gantryd again",
                schema::VERSION
            ))),
            Some(_) => Err(Error::new(Kind::DataLoss, "its version record is damaged")),
            None => self.write(|tx| {
                schema::ALL.into_iter().try_for_each(|table| tx.create(table))?;
                tx.put(schema::FACTS, "", "version", &schema::VERSION.to_le_bytes())
            }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How often it was changed since it was opened: what was read since the last change is as it was.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The same of records of images and of the content that they are made of.
    pub fn image_changes(&self) -> u64 {
        self.image_changes.load(Ordering::Acquire)
    }

    /// Reads a consistent view.
    ///
    /// # Errors
    /// What `f` fails with, or when the database cannot be read.
    pub fn read<T>(&self, f: impl FnOnce(&ReadTx) -> Result<T>) -> Result<T> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        f(&ReadTx::begin(inner.as_ref().ok_or_else(closed)?)?)
    }

    /// Changes it: all that `f` wrote is on disk when this returns, or none of it if `f` or the commit failed.
    ///
    /// # Errors
    /// What `f` fails with, or when the database cannot be written.
    pub fn write<T>(&self, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
        self.change(redb::Durability::Immediate, f)
    }

    /// Changes it as [`Db::write`], except that it may be lost, together with all changes after it, when the machine
    /// fails before the next [`Db::write`]: for what means nothing after a crash, or is done again then.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn write_soon<T>(&self, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
        self.change(redb::Durability::None, f)
    }

    /// [`Db::write`] or, where `soon`, [`Db::write_soon`].
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn write_or_soon<T>(&self, soon: bool, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
        if soon { self.write_soon(f) } else { self.write(f) }
    }

    /// How often a failed write has undone what was not flushed: for [`Db::flush`].
    pub fn undone(&self) -> u64 {
        self.undone.load(Ordering::Acquire)
    }

    /// Has all on disk that was changed since [`Db::undone`] was `before`: what [`Db::write_soon`] wrote is not lost any
    /// more.
    ///
    /// # Errors
    /// As [`Db::write`]; `Aborted` where the failed write of somebody else has undone it.
    pub fn flush(&self, before: u64) -> Result<()> {
        if self.unflushed.load(Ordering::Acquire) {
            self.write(|_| Ok(()))?;
        }
        if self.undone() == before { Ok(()) } else { Err(Error::new(Kind::Aborted, "undone by a write that failed")) }
    }

    fn change<T>(&self, durability: redb::Durability, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
        let result = self.try_change(durability, f);
        match &result {
            Err(error) if matches!(error.kind(), Kind::ResourceExhausted | Kind::Aborted) => {
                self.give_up_reserve();
                self.recover();
            }
            Err(error) if error.kind() == Kind::DataLoss => self.recover(),
            Ok(_) => self.renew_reserve(),
            Err(_) => {}
        }
        result
    }

    fn try_change<T>(&self, durability: redb::Durability, f: impl FnOnce(&WriteTx) -> Result<T>) -> Result<T> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let database = inner.as_ref().ok_or_else(closed)?;
        let tx = WriteTx::begin(database, durability)?;
        let value = f(&tx)?;
        let changed = tx.commit()?;
        self.unflushed.store(matches!(durability, redb::Durability::None), Ordering::Release);
        if !changed.is_empty() {
            self.changes.fetch_add(1, Ordering::Release);
            if changed.iter().any(|row| row.is_of(schema::IMAGES) || row.is_of(schema::CONTENT)) {
                self.image_changes.fetch_add(1, Ordering::Release);
            }
            journal.note(changed, database);
        }
        Ok(value)
    }

    /// Reads every page and says whether all were right; what was not is put right from what is. That is done with nobody
    /// else at it, so first a copy is looked at, beside which the daemon works on.
    ///
    /// # Errors
    /// `DataLoss` where it cannot be put right.
    pub fn verify(&self) -> Result<bool> {
        if self.copy_is_right() {
            return Ok(true);
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let database = inner.as_mut().ok_or_else(closed)?;
        database.check_integrity().map_err(failed).doing(|| format!("verify {}", self.path.display()))
    }

    /// Whether a copy of the file is right. One that cannot be made is not.
    fn copy_is_right(&self) -> bool {
        let check = || -> Result<bool> {
            let mut copy = tempfile::tempfile_in(self.path.parent().unwrap_or(Path::new(".")))?;
            {
                // Nothing is written meanwhile.
                let _journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                std::io::copy(&mut std::fs::File::open(self.path.as_path())?, &mut copy)?;
            }
            let mut database = redb::Database::builder().set_cache_size(CACHE).create_file(copy).map_err(failed)?;
            database.check_integrity().map_err(failed)
        };
        check().unwrap_or_else(|error| {
            tracing::warn!(%error, "verify a copy of the metadata");
            false
        })
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Sets space aside, where there is some to spare.
    fn make_reserve(&self) {
        let make = || -> std::io::Result<()> {
            let file = private(&self.reserve())?;
            let length = i64::try_from(RESERVE).unwrap_or(0);
            Ok(nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length)?)
        };
        if let Err(error) = make() {
            tracing::warn!(%error, "no space can be set aside for the metadata");
            self.give_up_reserve();
        }
    }

    fn give_up_reserve(&self) {
        drop(std::fs::remove_file(self.reserve()));
        *self.lacks_reserve() = Some(Instant::now());
    }

    /// Sets space aside again, some time after it was given up.
    fn renew_reserve(&self) {
        if self.lacks_reserve().take_if(|tried| tried.elapsed() >= RESERVE_AGAIN).is_some() {
            self.make_reserve();
        }
    }

    fn lacks_reserve(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lacks_reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a failed write: opens the file again, which refuses to go on otherwise. What was committed is as it was.
    fn recover(&self) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        // The old one must let go of its lock on the file first.
        drop(inner.take());
        self.undone.fetch_add(1, Ordering::Release);
        // What was not durable yet is gone again, and the journal has noted it.
        journal.forget();
        // The kernel keeps pages that it could not write, as if it had. Only the disk says what is there.
        if let Err(error) = std::fs::File::open(self.path.as_path()).and_then(|file| Ok(forget_pages(&file)?)) {
            tracing::error!(%error, "metadata may be read from memory that is not on disk");
        }
        match opened(&self.path) {
            Ok(database) => *inner = Some(database),
            Err(error) => tracing::error!(%error, "metadata cannot be opened again"),
        }
    }
}

/// The database at `path`, made where there is none.
fn opened(path: &Path) -> std::result::Result<redb::Database, redb::DatabaseError> {
    redb::Database::builder().set_cache_size(CACHE).create(path)
}

fn forget_pages(file: &std::fs::File) -> nix::Result<()> {
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

/// Opens a file that only the daemon's own user may read, making it where there is none.
fn private(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // One from before this rule is readable by all.
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// What to do where the metadata is lost.
fn say_remedy(error: &Error, path: &Path) -> Error {
    let root = path.parent().unwrap_or(path).display();
    let remedy = format!("put it back from a backup, or move {root} away to begin anew and pull the images again");
    Error::new(error.kind(), format!("{error}; {remedy}"))
}

fn closed() -> Error {
    Error::new(Kind::Aborted, "metadata could not be opened again after a failed write; free disk space and try again")
}

/// What a failure of redb means to a client.
fn failed(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    match error {
        redb::Error::Io(error)
            if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            Error::new(Kind::DataLoss, format!("damaged: {error}"))
        }
        redb::Error::Io(error) => error.into(),
        redb::Error::PreviousIo => closed(),
        redb::Error::DatabaseAlreadyOpen => {
            Error::precondition("another gantryd has it open; stop that one, or give this one its own root with --root")
        }
        redb::Error::TableDoesNotExist(name) => Error::not_found(format!("table {name}")),
        redb::Error::Corrupted(why) => Error::new(Kind::DataLoss, format!("damaged: {why}")),
        redb::Error::UpgradeRequired(version) => {
            Error::precondition(format!("its file format {version} is not this gantryd's"))
        }
        other => Error::internal(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
