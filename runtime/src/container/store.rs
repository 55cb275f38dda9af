//! The state directory.
//!
//! ```text
//! <root>/                     0711
//! └── <id>/                   0711, made first: its existence is the claim on the name
//!     ├── state.json          the record; replaced whole by rename, never written in place
//!     ├── exec.fifo           there from `create` until `start` has let the program go
//!     └── notify/notify.sock  only with NOTIFY_SOCKET
//! ```
//!
//! A run that is killed at any instant leaves the directory, and in it a record that names the cgroups before the first
//! of them is made: that is all `delete --force` needs.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::id::ContainerId;
use super::record::Record;
use crate::error::{Doing as _, Error, Kind, Result};

const RECORD: &str = "state.json";
const FIFO: &str = "exec.fifo";
const TEMPORARY: &str = ".state.json.new";

/// All containers of one `--root`.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub struct Entry {
    path: PathBuf,
}

impl Store {
    /// Opens the state directory; nothing is touched yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Claims a name: of two runs with the same name exactly one succeeds.
    pub fn claim(&self, id: &ContainerId) -> Result<Entry> {
        let path = self.root.join(id.as_str());
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o711);
        let made = match builder.create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut parents = std::fs::DirBuilder::new();
                parents
                    .recursive(true)
                    .mode(0o711)
                    .create(&self.root)
                    .doing(|| format!("make state directory {}", self.root.display()))?;
                builder.create(&path)
            }
            other => other,
        };
        match made {
            Ok(()) => Ok(Entry { path }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::new(Kind::AlreadyExists, format!("container with given ID already exists: {id}")))
            }
            Err(error) => Err(error).doing(|| format!("make {}", path.display())),
        }
    }

    /// The directory of a container that exists.
    pub fn entry(&self, id: &ContainerId) -> Result<Entry> {
        let path = self.root.join(id.as_str());
        if path.is_dir() {
            return Ok(Entry { path });
        }
        Err(Error::new(Kind::NotFound, format!("container {id:?}: container does not exist", id = id.as_str())))
    }

    /// The names of all containers, sorted.
    pub fn names(&self) -> Result<Vec<ContainerId>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).doing(|| format!("read {}", self.root.display()))? {
            let entry = entry.doing(|| format!("read {}", self.root.display()))?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Some(name)) = (is_directory, entry.file_name().to_str()) {
                names.extend(ContainerId::parse(name));
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Entry {
    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The gate between `create` and `start`.
    pub fn fifo(&self) -> PathBuf {
        self.path.join(FIFO)
    }

    /// Reads the record.
    pub fn load(&self) -> Result<Record> {
        let path = self.path.join(RECORD);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("container does not exist: {} is missing", path.display());
                return Err(Error::new(Kind::NotFound, message));
            }
            Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
        };
        serde_json::from_str(&text)
            .map_err(|error| Error::new(Kind::Internal, format!("read {}: {error}", path.display())))
    }

    /// Replaces the record.
    ///
    /// Not synced: the state directory lives in memory (`/run`), and after a power loss there is no container left that
    /// the record could speak of. The rename is what keeps a killed run from leaving half a file.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.path.join(RECORD);
        let temporary = self.path.join(TEMPORARY);
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(record)?;
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            std::fs::rename(&temporary, &path)
        };
        write().doing(|| format!("write {}", path.display()))
    }

    /// Forgets the container. What is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        for name in [RECORD, FIFO, TEMPORARY, "notify/notify.sock"] {
            gone(std::fs::remove_file(self.path.join(name))).doing(|| format!("remove {name}"))?;
        }
        for directory in [self.path.join("notify"), self.path.clone()] {
            gone(std::fs::remove_dir(&directory)).doing(|| format!("remove {}", directory.display()))?;
        }
        Ok(())
    }
}

/// What is gone already needs no removing.
fn gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        other => other,
    }
}
