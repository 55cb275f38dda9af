//! The logs that shims write for the engine: what they take together, and which of them go where that is too much.
//!
//! A container's log is `ROOT/NAMESPACE/ID/log.json`, before it `log.json.1` or `log.json.1.gz`, and so on. A shim moves these
//! names while it rotates; whoever moves or removes one holds a lock on the directory, which nobody waits for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gantry_proto::namespace::Namespace;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::failpoint;
use crate::id::ContainerId;

/// Name of a container's log in its directory.
pub const NAME: &str = "log.json";
/// What a log that goes is called until its shim writes another.
const CUT: &str = ".cut";
/// Says what of a log was dropped.
const DROPPED: &str = ".dropped";
/// How long a shim may hold the lock: it renames a few files.
const LOCKED: Duration = Duration::from_secs(2);
/// How often the lock is tried meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// Whose log it is.
pub type Owner = (Namespace, ContainerId);

/// All logs. Clones are the same.
#[derive(Clone)]
pub struct Logs {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    limit: u64,
    totals: Mutex<Totals>,
}

/// Since the daemon began.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    /// What all logs took when that was last reckoned.
    bytes: u64,
    dropped_bytes: u64,
    dropped_files: u64,
    failures: u64,
}

/// One container's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Rotated files, oldest first.
    parts: Vec<Part>,
    /// Bytes of the file that is or was written to.
    current: u64,
    /// Bytes of what a rotation, or a daemon, was about to make or to remove.
    passing: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    number: u32,
    size: u64,
    /// When it was last written to; no earlier than what is older.
    written: SystemTime,
}

/// What is to go of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Rotated files that were last written to until then.
    until: SystemTime,
    /// The current file too.
    pub current: bool,
}

/// What is not in a log any more because all logs together had become too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// When the last of it was written, at most.
    pub until: SystemTime,
    /// Bytes of the files that are gone.
    pub bytes: u64,
    /// How many.
    pub files: u64,
}

impl Log {
    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum::<u64>() + self.current + self.passing
    }

    /// The file that `name` is, where it is one of a log.
    fn add(&mut self, name: &str, size: u64, written: SystemTime) {
        let Some(rest) = name.strip_prefix(NAME) else { return };
        let number = rest.strip_prefix('.').map(|rest| rest.strip_suffix(".gz").unwrap_or(rest));
        match (rest, number.and_then(|number| number.parse().ok())) {
            ("", _) => self.current += size,
            (DROPPED, _) => {}
            (_, Some(number)) => self.parts.push(Part { number, size, written }),
            // Being compressed, renamed or cut.
            _ if rest.starts_with('.') => self.passing += size,
            _ => {}
        }
    }

    /// Brings the parts into their order.
    fn settle(&mut self) {
        self.parts.sort_by_key(|part| Reverse(part.number));
        let mut latest = SystemTime::UNIX_EPOCH;
        for part in &mut self.parts {
            latest = latest.max(part.written);
            part.written = latest;
        }
    }

    fn takes(&self, cut: Cut) -> (u64, u64) {
        let parts = self.parts.iter().filter(|part| part.written <= cut.until);
        let (files, bytes) = parts.fold((0, 0), |(files, bytes), part| (files + 1, bytes + part.size));
        if cut.current { (files + 1, bytes + self.current) } else { (files, bytes) }
    }
}

/// What is to go of which log so that all of them take no more than `target`: the oldest rotated files, whose they may be,
/// and then the largest current ones.
pub fn plan(logs: &[(Owner, Log)], target: u64) -> BTreeMap<Owner, Cut> {
    let mut excess = logs.iter().map(|(_, log)| log.size()).sum::<u64>().saturating_sub(target);
    let mut cuts = BTreeMap::new();
    let mut parts: Vec<_> = logs.iter().flat_map(|(owner, log)| log.parts.iter().map(move |it| (it, owner))).collect();
    parts.sort_by_key(|(part, _)| part.written);
    for (part, owner) in parts {
        if excess == 0 {
            return cuts;
        }
        cuts.insert(owner.clone(), Cut { until: part.written, current: false });
        excess = excess.saturating_sub(part.size);
    }
    let mut whole: Vec<_> = logs.iter().filter(|(_, log)| log.current > 0).collect();
    whole.sort_by_key(|(_, log)| Reverse(log.current));
    for (owner, log) in whole {
        if excess == 0 {
            break;
        }
        cuts.insert(owner.clone(), Cut { until: SystemTime::now(), current: true });
        excess = excess.saturating_sub(log.current);
    }
    cuts
}

impl Logs {
    /// The logs below `root`, which may take `limit` bytes together; 0: any number.
    pub fn new(root: PathBuf, limit: u64) -> Self {
        Self { shared: Arc::new(Shared { root, limit, totals: Mutex::default() }) }
    }

    /// Bytes that all logs may take together; 0: any number.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// The directory of a container's log.
    pub fn directory(&self, owner: &Owner) -> PathBuf {
        self.shared.root.join(owner.0.as_str()).join(owner.1.as_str())
    }

    /// A container's log; empty where there is none. Blocks on the disk, as all below does.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn of(&self, owner: &Owner) -> Result<Log> {
        let directory = self.directory(owner);
        let doing = || format!("look at the log in {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Log::default()),
            entries => entries.doing(doing)?,
        };
        let mut log = Log::default();
        for entry in entries {
            let entry = entry.doing(doing)?;
            // What is renamed or removed meanwhile is found the next time.
            let Ok(meta) = entry.metadata() else { continue };
            if let (Some(name), true) = (entry.file_name().to_str(), meta.is_file()) {
                log.add(name, meta.len(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            }
        }
        log.settle();
        Ok(log)
    }

    /// Every log there is, also of containers that do not run, or are gone.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn all(&self) -> Result<Vec<(Owner, Log)>> {
        let mut all = Vec::new();
        for space in names(&self.shared.root)? {
            let Ok(namespace) = Namespace::parse(&space) else { continue };
            for id in names(&self.shared.root.join(&space))? {
                let Ok(id) = ContainerId::parse(&id) else { continue };
                let owner = (namespace.clone(), id);
                let log = self.of(&owner)?;
                all.push((owner, log));
            }
        }
        Ok(all)
    }

    /// What was dropped of a container's log, if anything was.
    pub fn dropped(&self, owner: &Owner) -> Option<Dropped> {
        serde_json::from_slice(&fs::read(self.named(owner, DROPPED)).ok()?).ok()
    }

    /// Removes what is to go. A current file is put aside: its shim is to open another (`ReopenLog`), and then, or where there
    /// is no shim, [`Logs::finish`] ends it.
    ///
    /// What goes is written down before, so that whoever reads the log is told of it whenever the daemon is killed; on a full
    /// disk, once there is room.
    ///
    /// # Errors
    /// When a file cannot be removed; those removed so far are gone.
    pub fn drop_of(&self, owner: &Owner, cut: Cut) -> Result<()> {
        let directory = self.directory(owner);
        let doing = || format!("drop old logs in {}", directory.display());
        let _lock = lock(&directory).doing(doing)?;
        let log = self.of(owner)?;
        let (files, bytes) = log.takes(cut);
        if files == 0 {
            return Ok(());
        }
        let noted = self.note(owner, cut, files, bytes);
        failpoint::hit("logs.noted");
        // From the oldest on, so that no file is left behind a gap in the numbers.
        for part in log.parts.iter().filter(|part| part.written <= cut.until) {
            for ending in [format!(".{}.gz", part.number), format!(".{}", part.number)] {
                gone(fs::remove_file(self.named(owner, &ending))).doing(doing)?;
            }
            failpoint::hit("logs.dropped");
        }
        if cut.current {
            gone(fs::rename(self.named(owner, ""), self.named(owner, CUT))).doing(doing)?;
            failpoint::hit("logs.cut");
        }
        if noted.is_err() {
            self.note(owner, cut, files, bytes).doing(doing)?;
        }
        let mut totals = self.totals();
        totals.dropped_files += files;
        totals.dropped_bytes += bytes;
        tracing::warn!(
            namespace = %owner.0, id = %owner.1, files, bytes, limit = self.shared.limit,
            "dropped the oldest of a container's log: all logs together were about to reach container_log.max_total"
        );
        Ok(())
    }

    /// Ends what is left of a current file that was put aside. `reopened`: nobody writes to it any more; otherwise it is the
    /// container's log again, unless there is another.
    ///
    /// # Errors
    /// When it can neither be removed nor be put back.
    pub fn finish(&self, owner: &Owner, reopened: bool) -> Result<()> {
        let (aside, path) = (self.named(owner, CUT), self.named(owner, ""));
        if !aside.exists() {
            return Ok(());
        }
        let doing = || format!("end {}", aside.display());
        let _lock = lock(&self.directory(owner)).doing(doing)?;
        if reopened || path.exists() {
            gone(fs::remove_file(&aside)).doing(doing)
        } else {
            gone(fs::rename(&aside, &path)).doing(doing)
        }
    }

    /// Whether an earlier attempt to cut a container's log was cut short itself.
    pub fn is_cut_short(&self, owner: &Owner) -> bool {
        self.named(owner, CUT).exists()
    }

    /// Keeps for whoever watches the daemon what all logs take, and how many could not be made smaller.
    pub fn reckoned(&self, bytes: u64, failures: u64) {
        let mut totals = self.totals();
        totals.bytes = bytes;
        totals.failures += failures;
    }

    /// Writes the counters as Prometheus reads them; nothing where logs have no limit, as nobody reckons then.
    pub fn write_metrics(&self, out: &mut String) {
        if self.shared.limit == 0 {
            return;
        }
        let totals = *self.totals();
        let rows = [
            ("bytes", "gauge", "What all logs took when that was last reckoned.", totals.bytes),
            ("limit_bytes", "gauge", "What they may take together.", self.shared.limit),
            ("dropped_bytes_total", "counter", "Bytes of logs that were dropped for the limit.", totals.dropped_bytes),
            ("dropped_files_total", "counter", "Files of logs that were dropped for it.", totals.dropped_files),
            ("drop_failures_total", "counter", "Logs that could not be made smaller.", totals.failures),
        ];
        for (name, kind, help, value) in rows {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP gantryd_logs_{name} {help}\n# TYPE gantryd_logs_{name} {kind}");
            let _ = writeln!(out, "gantryd_logs_{name} {value}");
        }
    }

    /// Adds what is about to go to what is gone. What an earlier attempt, which did not end, has written down counts once.
    fn note(&self, owner: &Owner, cut: Cut, files: u64, bytes: u64) -> Result<()> {
        let before = self.dropped(owner);
        if before.is_some_and(|before| before.until >= cut.until) {
            return Ok(());
        }
        let (files, bytes) = before.map_or((files, bytes), |before| (before.files + files, before.bytes + bytes));
        let dropped = Dropped { until: cut.until, bytes, files };
        let text = serde_json::to_vec(&dropped).map_err(|error| Error::internal(error.to_string()))?;
        let written = rung_sys::atomic_file::write(&self.named(owner, DROPPED), &text, 0o600);
        Ok(written.map_err(std::io::Error::from)?)
    }

    fn named(&self, owner: &Owner, ending: &str) -> PathBuf {
        self.directory(owner).join(format!("{NAME}{ending}"))
    }

    fn totals(&self) -> std::sync::MutexGuard<'_, Totals> {
        self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is not there need not be removed or renamed.
fn gone(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.doing(|| format!("list {}", directory.display()))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The lock under which names of a log are changed. A shim that holds it is done in a moment, or hangs.
fn lock(directory: &Path) -> std::io::Result<File> {
    let (directory, end) = (File::open(directory)?, Instant::now() + LOCKED);
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(AGAIN),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::TimedOut.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
