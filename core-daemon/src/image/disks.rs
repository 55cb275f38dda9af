//! The disks that images are written to.

use rung_sys::writeback::FileSystems;

use super::Images;
use crate::content::Content;
use crate::error::{Doing, Result};

/// Where blobs and snapshots are, for one piece of work: what of it cannot be written fails its flush.
pub(super) struct Disks(FileSystems);

impl Disks {
    /// Where blobs alone are.
    pub(super) fn of(content: &Content) -> Result<Self> {
        FileSystems::of([content.root()]).map(Self).doing(|| "open the content store")
    }

    /// Flushes them, each with one call.
    pub(super) fn flush(&self) -> Result<()> {
        self.0.flush().doing(|| "flush what is stored")
    }
}

impl Images {
    /// Where blobs and all snapshots are.
    pub(super) fn disks(&self) -> Result<Disks> {
        let snapshots: Vec<_> = self.snapshotters.iter().filter_map(|(_, snapshotter)| snapshotter.root()).collect();
        let all = [self.content.root()].into_iter().chain(snapshots.iter().map(AsRef::as_ref));
        FileSystems::of(all).map(Disks).doing(|| "open the stores")
    }
}
