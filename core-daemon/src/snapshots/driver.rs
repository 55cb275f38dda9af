//! What keeps the files of snapshots.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rung_sys::writeback::FileSystems;

use super::{Kind, Mount, Unpacking, Usage};
use crate::error::{Doing, Error, Kind as ErrorKind, Result};
use crate::labels::Labels;

/// Keeps the files of snapshots, which it knows by number. Parents come newest first.
pub trait Driver: Send + Sync + 'static {
    /// Everything it keeps is below this, each snapshot in `snapshots/<number>`.
    fn root(&self) -> &Path;

    /// Where a snapshot is.
    fn dir(&self, number: u64) -> PathBuf {
        self.root().join("snapshots").join(number.to_string())
    }

    /// Makes a snapshot's files, or finds that it is there whole. What it made before a failure is removed by the caller.
    ///
    /// # Errors
    /// When the files cannot be made, or a label that it understands is malformed.
    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made>;

    /// Brings what [`Driver::create`] made to the disk: before anybody is told that it is there, or later where it is
    /// renewable. The flush of the record itself need not take along what else the file system has noted.
    ///
    /// # Errors
    /// When something of it cannot be written.
    fn keep(&self, number: u64) -> Result<()> {
        flush_names(&self.dir(number))
    }

    /// Whether all that [`Driver::create`] makes are directories without anything in them, which [`Driver::renew`] makes
    /// again: then nobody waits until they are on the disk.
    fn is_renewable(&self) -> bool {
        false
    }

    /// Makes what is missing of what [`Driver::create`] has made, and leaves what is there.
    ///
    /// # Errors
    /// As [`Driver::create`].
    fn renew(&self, _number: u64, _kind: Kind, _parents: &[u64], _labels: &Labels) -> Result<()> {
        Ok(())
    }

    /// The mounts that show a snapshot.
    ///
    /// # Errors
    /// When what they need cannot be made ready.
    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>>;

    /// The mounts that show a snapshot without parents which a layer is unpacked into.
    ///
    /// # Errors
    /// As [`Driver::mounts`].
    fn layer(&self, number: u64, labels: &Labels) -> Result<Vec<Mount>> {
        self.mounts(number, Kind::Active, &[], labels)
    }

    /// What a snapshot takes.
    ///
    /// # Errors
    /// When its files cannot be read.
    fn usage(&self, number: u64) -> Result<Usage>;

    /// Makes what only a committed snapshot needs, before the record says that it is one.
    ///
    /// # Errors
    /// When that fails.
    fn commit(&self, _number: u64, _parents: &[u64], _labels: &Labels) -> Result<()> {
        Ok(())
    }

    /// Brings a snapshot's files to the disk, before the record says that it is committed.
    ///
    /// # Errors
    /// When something of them cannot be written.
    fn flush(&self, number: u64, _labels: &Labels) -> Result<()> {
        flush(&self.dir(number))
    }

    /// Gives up what only an active snapshot needs, now that the record says that it is committed. What cannot be given up
    /// takes space, and goes with the snapshot.
    fn committed(&self, _number: u64) {}

    /// Removes a snapshot's files, whatever there is of them.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn remove(&self, number: u64) -> Result<()> {
        remove(&self.dir(number))
    }

    /// What a snapshot lacks, where it lacks something.
    fn damage(&self, number: u64, _kind: Kind) -> Option<String> {
        missing(&self.dir(number))
    }

    /// Whether others may take the place of a committed snapshot's files.
    fn is_lost(&self, number: u64) -> bool {
        self.damage(number, Kind::Committed).is_some()
    }

    /// Labels that tell clients of a snapshot's files.
    fn labels(&self, _number: u64, _kind: Kind) -> Labels {
        Labels::new()
    }

    /// See [`Snapshotter::unpacking`].
    fn unpacking(&self) -> Unpacking {
        Unpacking::Stacked
    }

    /// Frees what is not a snapshot's.
    ///
    /// # Errors
    /// When that fails.
    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    /// See [`Snapshotter::close`].
    fn close(&self) {}

    /// See [`Snapshotter::capabilities`].
    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    /// See [`Snapshotter::exports`].
    fn exports(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("root".to_owned(), self.root().to_string_lossy().into_owned())])
    }
}

/// What [`Driver::create`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// A new snapshot.
    Fresh,
    /// The committed snapshot that the label `containerd.io/snapshot.ref` names: the driver had it.
    Committed,
}

/// Brings what is in a directory, and on its file system, to the disk.
pub(super) fn flush(dir: &Path) -> Result<()> {
    let disk = FileSystems::of([dir]);
    disk.and_then(|disk| disk.flush()).doing(|| format!("flush {}", dir.display()))
}

/// Brings a directory without files of its own, and what was made for it, to the disk.
pub(super) fn flush_names(dir: &Path) -> Result<()> {
    let flushed = rung_sys::atomic_file::sync_directory(dir).map_err(std::io::Error::from);
    flushed.doing(|| format!("flush {}", dir.display()))
}

/// Says of a directory that it is not there.
pub(super) fn missing(dir: &Path) -> Option<String> {
    match std::fs::symlink_metadata(dir) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(format!("{} is no directory", dir.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(format!("{} is gone", dir.display())),
        Err(error) => Some(format!("{}: {error}", dir.display())),
    }
}

fn remove(dir: &Path) -> Result<()> {
    match rung_sys::beneath::remove(dir).map_err(Error::from) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("remove {}", dir.display())),
    }
}
