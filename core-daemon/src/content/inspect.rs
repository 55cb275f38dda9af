//! What is wrong with the store's files, and taking out of the way what is.

use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rung_spec::digest::{Algorithm, Digest};

use super::Content;
use super::claims::Lock;
use super::ingest::{self, Status};
use crate::error::{Doing, Result};

/// How long damaged files are kept for whoever wants to know what happened to them.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is wrong with the bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// There are none.
    Missing,
    /// There is another number of them.
    Size(u64),
    /// They are others.
    Bytes,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("its file is gone"),
            Self::Size(size) => write!(f, "its file has {size} bytes"),
            Self::Bytes => f.write_str("its bytes are not what its digest says"),
        }
    }
}

impl Content {
    /// What is wrong with a blob of `size` bytes; `deep` reads it whole.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn damage(&self, digest: &Digest, size: u64, deep: bool) -> Result<Option<Damage>> {
        let Some(blob) = self.0.open_blob(digest)? else { return Ok(Some(Damage::Missing)) };
        if blob.size != size {
            return Ok(Some(Damage::Size(blob.size)));
        }
        if !deep {
            return Ok(None);
        }
        if !super::blobs::is_whole(&blob.file, digest)? {
            return Ok(Some(Damage::Bytes));
        }
        self.mark_verified(&blob.file, digest).map(|()| None)
    }

    /// Moves the bytes of a blob out of the way that are damaged as [`Content::damage`] says, so that they are fetched
    /// again, and says where they are; nothing where others are in their place by now.
    ///
    /// # Errors
    /// When the file cannot be read or moved.
    pub fn quarantine(&self, digest: &Digest, size: u64, deep: bool) -> Result<Option<PathBuf>> {
        let Some(blob) = self.0.open_blob(digest)? else { return Ok(None) };
        let is_right = blob.size == size && (!deep || super::blobs::is_whole(&blob.file, digest)?);
        if is_right || !self.0.is_stored(digest, &blob.file)? {
            return Ok(None);
        }
        self.set_aside(&self.0.blob(digest)).map(Some)
    }

    /// Moves a file of the store to `damaged/`, under its name and the time.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf> {
        let dir = self.0.root.join("damaged");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .doing(|| format!("make {}", dir.display()))?;
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = dir.join(format!("{name}.{seconds}"));
        std::fs::rename(path, &aside).doing(|| format!("move {} to {}", path.display(), aside.display()))?;
        Ok(aside)
    }

    /// Removes what has been set aside for long.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn expire_damaged(&self) -> Result<()> {
        let dir = self.0.root.join("damaged");
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.doing(|| format!("list {}", dir.display()))?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let at = path.extension().and_then(|text| text.to_str()).and_then(|text| text.parse().ok()).unwrap_or(0);
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            if age.is_ok_and(|age| age > KEPT) {
                rung_sys::beneath::remove(&path).doing(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The blobs on disk that no record names and nobody is about to record.
    ///
    /// # Errors
    /// When files or records cannot be read.
    pub fn orphans(&self) -> Result<Vec<Digest>> {
        let mut orphans = self.stored()?;
        // Whoever is about to record a blob says so before its file is there, and no longer once it is recorded.
        let pending: Vec<Digest> = self.0.pending().keys().cloned().collect();
        let recorded = super::blobs::all_recorded(&self.0.db)?;
        orphans.retain(|digest| !recorded.contains(digest.as_str()) && !pending.contains(digest));
        Ok(orphans)
    }

    /// How many bytes are stored of a blob, whoever's it is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stored_size(&self, digest: &Digest) -> Result<u64> {
        Ok(self.0.open_blob(digest)?.map_or(0, |blob| blob.size))
    }

    /// Files among the blobs that are none.
    ///
    /// # Errors
    /// When the directories cannot be read.
    pub fn strays(&self) -> Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.0.blobs(algorithm);
            let entries = std::fs::read_dir(&dir).doing(|| format!("list {}", dir.display()))?;
            strays.extend(entries.flatten().filter(|entry| !is_blob(entry, algorithm)).map(|entry| entry.path()));
        }
        Ok(strays)
    }

    /// Removes ingests that nobody writes, `is_held` says no lease holds, and that are older than a day; at once those
    /// that nobody goes on with, and what a crash left that is no ingest.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn expire_ingests(&self, is_held: impl Fn(&str, &str) -> bool) -> Result<()> {
        self.each_idle_ingest(|path, status| {
            let keep = status.is_some_and(|(namespace, status)| {
                let age = SystemTime::now().duration_since(status.updated).unwrap_or_default();
                !status.once && (age < ingest::KEPT || is_held(&namespace, &status.reference))
            });
            if !keep {
                ingest::discard(path, "of an earlier time");
            }
            Ok(())
        })
    }

    /// Directories among the ingests that are none and that nobody is making one of; with `remove`, they are removed.
    ///
    /// # Errors
    /// When the directory cannot be read, or one cannot be removed.
    pub fn broken_ingests(&self, remove: bool) -> Result<Vec<PathBuf>> {
        let mut broken = Vec::new();
        self.each_idle_ingest(|path, status| {
            if status.is_none() {
                if remove {
                    rung_sys::beneath::remove(path).doing(|| format!("remove {}", path.display()))?;
                }
                broken.push(path.to_owned());
            }
            Ok(())
        })?;
        Ok(broken)
    }

    /// Visits what is where ingests are and nobody writes to, which nobody can while it is visited.
    fn each_idle_ingest(&self, mut visit: impl FnMut(&Path, Option<(String, Status)>) -> Result<()>) -> Result<()> {
        let dir = self.0.root.join("ingest");
        for entry in std::fs::read_dir(&dir).doing(|| format!("list {}", dir.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(_lock) = Lock::take(&self.0, &name, &name) else { continue };
            visit(&entry.path(), ingest::read_status(&entry.path()))?;
        }
        Ok(())
    }
}

fn is_blob(entry: &std::fs::DirEntry, algorithm: Algorithm) -> bool {
    let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
    let name = entry.file_name();
    is_file && name.to_str().is_some_and(|hex| Digest::parse(&format!("{algorithm}:{hex}")).is_ok())
}
