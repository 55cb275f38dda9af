//! The state directory.
//!
//! ```text
//! <root>/                     0711
//! └── <id>/                   0711, made first: its existence is the claim on the name
//!     ├── planned.json        the record as it was before anything was made
//!     ├── state.json          the record of what was made; replaced whole by rename, never written in place
//!     ├── exec.fifo           there from `create` until `start` has let the program go
//!     ├── notify/notify.sock  only with NOTIFY_SOCKET
//!     └── criu-root/          empty; while a container is restored
//! ```
//!
//! A run that is killed at any instant leaves the directory, and in it a record that names the cgroups before the first
//! of them is made: that is all `delete --force` needs.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

pub use rung_sys::atomic_file::Draft;

use super::id::ContainerId;
use super::readiness::SOCKET;
use super::record::Record;
use crate::error::{Doing as _, Error, Kind, Result};

const RECORD: &str = "state.json";
const PLANNED: &str = "planned.json";
const FIFO: &str = "exec.fifo";
const READINESS: &str = "notify";
const CRIU_ROOT: &str = "criu-root";

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
                parents.recursive(true).mode(0o711).create(&self.root).doing(|| {
                    format!("make state directory {} (--root names another directory)", self.root.display())
                })?;
                builder.create(&path)
            }
            other => other,
        };
        match made {
            Ok(()) => Ok(Entry { path }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::new(Kind::AlreadyExists, format!("container with given ID already exists: {id}")))
            }
            Err(error) => Err(error).doing(|| format!("make {} (--root names another directory)", path.display())),
        }
    }

    /// Where the directory of a container is, or was.
    pub fn path(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
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

    /// Where the root is bound while criu restores the container, in a mount namespace that ends with criu.
    pub fn criu_root(&self) -> PathBuf {
        self.path.join(CRIU_ROOT)
    }

    /// The directory of the socket through which the program says that it is ready.
    pub fn readiness(&self) -> PathBuf {
        self.path.join(READINESS)
    }

    /// Reads the record: the planned one while the container is being made.
    pub fn load(&self) -> Result<Record> {
        let read = |name: &str| match std::fs::read(self.path.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // Made a moment ago, and not written yet.
            Ok(text) if text.is_empty() => Ok(None),
            other => other.map(Some).doing(|| format!("read {}", self.path.join(name).display())),
        };
        if let Some(text) = read(RECORD)? {
            let unreadable = |error| format!("read the record of {}: {error}", self.path.display());
            return serde_json::from_slice(&text).map_err(|error| Error::new(Kind::Internal, unreadable(error)));
        }
        // A half-written plan is treated as a missing one: nothing was made before it was complete.
        read(PLANNED)?.and_then(|text| serde_json::from_slice(&text).ok()).ok_or_else(|| {
            let message = format!("container does not exist: {} is missing", self.path.join(RECORD).display());
            Error::new(Kind::NotFound, message)
        })
    }

    /// The record as it was before anything was made; `None` where it is missing or only half written.
    pub fn planned(&self) -> Option<Record> {
        let text = std::fs::read(self.path.join(PLANNED)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether a record that [`Self::load`] cannot read still names a process that runs.
    pub fn may_run(&self) -> bool {
        let text = match std::fs::read(self.path.join(RECORD)) {
            Ok(text) => text,
            Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
        };
        let record = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
        let pid = record.get("init_process_pid").and_then(serde_json::Value::as_u64);
        pid.is_some_and(|pid| pid > 0 && Path::new(&format!("/proc/{pid}")).exists())
    }

    /// Writes down what is about to be made, in a directory just claimed.
    ///
    /// It has a name of its own because the record that follows must not take the place of another file: ext4 writes
    /// the data of a file to disk when it replaces one (`docs/decisions/0010-state-files.md`). It is written in place,
    /// because a half-written one does no harm: nothing was made yet.
    pub fn plan(&self, record: &Record) -> Result<()> {
        let path = self.path.join(PLANNED);
        let write = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(&record.to_json()?)
        };
        write().doing(|| format!("write {}", path.display()))
    }

    /// Replaces the record.
    ///
    /// Not synced: the state directory lives in memory (`/run`), and after a power loss there is no container left that
    /// the record could speak of. The rename is what keeps a killed run from leaving half a file.
    pub fn save(&self, record: &Record) -> Result<()> {
        Ok(self.draft(record)?.publish()?)
    }

    /// As [`Self::save`], up to the rename.
    pub fn draft(&self, record: &Record) -> Result<Draft> {
        let path = self.path.join(RECORD);
        let text = record.to_json().map_err(std::io::Error::from).doing(|| format!("write {}", path.display()))?;
        Ok(Draft::write(&path, &text, 0o600)?)
    }

    /// Forgets the container. What is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        for name in [RECORD, PLANNED] {
            gone(std::fs::remove_file(self.path.join(name))).doing(|| format!("remove {name}"))?;
        }
        // As a rule nothing else is there, and one call is enough.
        if std::fs::remove_dir(&self.path).is_ok() {
            return Ok(());
        }
        gone(std::fs::remove_file(self.readiness().join(SOCKET))).doing(|| format!("remove {SOCKET}"))?;
        gone(std::fs::remove_file(self.fifo())).doing(|| format!("remove {FIFO}"))?;
        for directory in [self.readiness(), self.criu_root()] {
            gone(std::fs::remove_dir(&directory)).doing(|| format!("remove {}", directory.display()))?;
        }
        let removed = match std::fs::remove_dir(&self.path) {
            // A file that somebody else has put there, or a run that was killed while it saved, must not keep the name
            // taken for ever.
            Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => rung_sys::beneath::remove(&self.path),
            other => other,
        };
        gone(removed).doing(|| format!("remove {}", self.path.display()))
    }
}

/// What is gone already needs no removing.
fn gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planned_record_counts_until_there_is_another() {
        let root = tempfile::tempdir().unwrap();
        let id = ContainerId::parse("web").unwrap();
        let entry = Store::new(root.path()).claim(&id).unwrap();
        assert_eq!(entry.load().unwrap_err().kind(), Kind::NotFound);
        for half in ["", "{\"id\":"] {
            std::fs::write(entry.path().join(PLANNED), half).unwrap();
            assert_eq!(entry.load().unwrap_err().kind(), Kind::NotFound);
        }
        let text = r#"{"id":"web","init_process_pid":0,"init_process_start":0,"created":"",
                       "config":{"rootfs":"/r","spec":{"hooks":{"poststop":[{"path":"/bin/true"}]}}}}"#;
        let mut record: Record = serde_json::from_str(text).unwrap();
        entry.plan(&record).unwrap();
        assert_eq!(entry.load().unwrap().init_process_pid, 0);
        record.init_process_pid = 7;
        record.config.labels.push(r#"a="spec":null"#.to_owned());
        entry.save(&record).unwrap();
        let found = entry.load().unwrap();
        assert_eq!(found.init_process_pid, 7);
        assert_eq!(found.config.labels, record.config.labels);
        assert_eq!(found.config.spec.get(), record.config.spec.get());
        // The rest of the configuration is not asked for, not even what is required.
        assert_eq!(found.hooks().unwrap().poststop().as_ref().map(Vec::len), Some(1));
        // What cannot be read may be the record of something that runs.
        std::fs::write(entry.path().join(RECORD), "{").unwrap();
        assert_eq!(entry.load().unwrap_err().kind(), Kind::Internal);
        entry.save(&record).unwrap();
        std::fs::write(entry.path().join("a stranger's"), "").unwrap();
        // Two that save at once do not get into each other's files.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| entry.save(&record).unwrap()));
            }
            scope.spawn(|| (0..400).for_each(|_| assert!(entry.load().is_ok_and(|found| found.init_process_pid == 7))));
        });
        entry.remove().unwrap();
        assert!(!entry.path().exists());
    }
}
