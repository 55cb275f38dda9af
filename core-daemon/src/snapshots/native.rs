//! The native snapshotter: every snapshot is a whole copy of its parent. It needs nothing of the kernel but directories,
//! and costs what copies cost; where the file system can share blocks between files, it does.
//!
//! ```text
//! <root>/snapshots/<number>/fs     everything that the snapshot shows
//! ```

use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rung_sys::beneath::Root;

use super::copy::copy_tree;
use super::driver::{flush, missing};
use super::overlay::make;
use super::{Driver, Kind, Made, Mount, Usage, disk_usage, quota};
use crate::error::{Doing, Result};
use crate::labels::Labels;

/// Keeps snapshots as copies.
pub struct Native {
    root: PathBuf,
}

impl Native {
    /// Keeps its directories below `root`, which is made.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let snapshots = root.join("snapshots");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&snapshots)
            .doing(|| format!("make {}", snapshots.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    fn fs(&self, number: u64) -> PathBuf {
        self.dir(number).join("fs")
    }
}

impl Driver for Native {
    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        let dir = self.dir(number);
        make(&dir, 0o700)?;
        quota::apply(&dir, number, labels)?;
        // A view of what never changes needs no copy.
        if kind == Kind::Active || parents.is_empty() {
            make(&self.fs(number), 0o755)?;
            if let Some(parent) = parents.first().map(|parent| self.fs(*parent)) {
                let copied = Root::open(&parent)
                    .and_then(|parent| copy_tree(parent.as_fd(), Root::open(&self.fs(number))?.as_fd()));
                copied.doing(|| format!("copy {}", parent.display()))?;
            }
        }
        Ok(Made::Fresh)
    }

    /// Copies are files that are not written yet.
    fn keep(&self, number: u64) -> Result<()> {
        flush(&self.dir(number))
    }

    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], _labels: &Labels) -> Result<Vec<Mount>> {
        let (shown, access) = match (kind, parents.first()) {
            (Kind::Active, _) => (number, "rw"),
            (_, Some(parent)) => (*parent, "ro"),
            (_, None) => (number, "ro"),
        };
        let options = vec!["rbind".to_owned(), access.to_owned()];
        let source = self.fs(shown).to_string_lossy().into_owned();
        Ok(vec![Mount { kind: "bind".into(), source, target: String::new(), options }])
    }

    fn damage(&self, number: u64, kind: Kind) -> Option<String> {
        // A view may have no files of its own.
        missing(&if kind == Kind::View { self.dir(number) } else { self.fs(number) })
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        disk_usage(&self.fs(number))
    }
}
