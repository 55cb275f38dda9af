//! Rotation of a log: `log` becomes `log.1`, and so on; rotated files are compressed by a helper process.
//!
//! The helper is this program again (`compress`), reading one descriptor and writing another: a compressor's memory is
//! gone when it ends, and the supervisor goes on meanwhile. Names are given by the supervisor alone, so that a rotation
//! during a compression only changes the name that the result will get. The daemon may remove the oldest files, where the logs
//! of all containers have become too large: each holds a lock on the directory while it changes names. The supervisor waits
//! for nobody: what it cannot do now is done with a later record.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::stdio::LogUri;

use crate::reaper::{self, Reaper};
use crate::{Doing, Result};

/// The rotated files of one log.
#[derive(Debug, Clone)]
pub struct Rotation {
    files: Arc<Mutex<Files>>,
    reaper: Reaper,
}

#[derive(Debug)]
struct Files {
    path: PathBuf,
    keep: u32,
    compress: bool,
    /// The number that the file being compressed has now.
    compressing: Option<u32>,
}

impl Rotation {
    /// The rotation that `uri` asks for.
    pub fn new(uri: &LogUri, reaper: Reaper) -> Self {
        let keep = uri.max_files.saturating_sub(1);
        let files = Files { path: PathBuf::from(&uri.path), keep, compress: uri.compress, compressing: None };
        if uri.compress {
            // Left by a supervisor that was killed.
            let _ = fs::remove_file(files.temporary());
        }
        Self { files: Arc::new(Mutex::new(files)), reaper }
    }

    /// Moves the log out of the way; where only one file is kept, empties it.
    ///
    /// # Errors
    /// Where the file cannot be renamed.
    pub fn rotate(&self, current: &File) -> Result<()> {
        let mut files = self.lock();
        if files.keep == 0 {
            return current.set_len(0).doing(|| "empty the log");
        }
        // Where there is no directory any more, there is nothing to lock either.
        let _names = match files.names() {
            Ok(None) => return Ok(()),
            names => names,
        };
        files.shift()?;
        drop(files);
        self.compress_next();
        Ok(())
    }

    /// Starts to compress the oldest rotated file that is not compressed yet; one at a time.
    fn compress_next(&self) {
        let mut files = self.lock();
        if !files.compress || files.compressing.is_some() {
            return;
        }
        let Some(number) = (1..=files.there()).rev().find(|number| files.plain(*number).exists()) else { return };
        match start(&files.plain(number), &files.temporary()) {
            Ok(pid) => {
                files.compressing = Some(number);
                drop(files);
                let rotation = self.clone();
                self.reaper.claim(pid, move |exited| {
                    rotation.lock().compressed(exited.status == 0);
                    if exited.status == 0 {
                        rotation.compress_next();
                    }
                });
            }
            Err(error) => tracing::error!(%error, "compress a rotated log"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn named(&self, ending: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(ending);
        name.into()
    }

    /// The lock under which names are changed; `None` while somebody else has it.
    fn names(&self) -> Result<Option<File>> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let doing = || format!("lock {}", directory.display());
        let opened = File::open(directory).doing(doing)?;
        match opened.try_lock() {
            Ok(()) => Ok(Some(opened)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).doing(doing),
        }
    }

    fn plain(&self, number: u32) -> PathBuf {
        self.named(&format!(".{number}"))
    }

    fn packed(&self, number: u32) -> PathBuf {
        self.named(&format!(".{number}.gz"))
    }

    fn temporary(&self) -> PathBuf {
        self.named(".compressing")
    }

    /// How many rotated files there are, up to the first number without one: more may be allowed than anybody can look for.
    fn there(&self) -> u32 {
        let is_there = |number: &u32| self.plain(*number).exists() || self.packed(*number).exists();
        u32::try_from((1..=self.keep).take_while(is_there).count()).unwrap_or(self.keep)
    }

    /// Gives every file the next number, up to one that is free. The log first, under a name of its own: where it cannot be
    /// moved, or is not there (somebody removed it), no older one is given up for it.
    fn shift(&mut self) -> Result<()> {
        let moving = self.named(".moving");
        match fs::rename(&self.path, &moving) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.doing(|| format!("rename {}", self.path.display()))?,
        }
        let last = self.there();
        for number in (1..=last).rev() {
            for (from, to) in
                [(self.plain(number), self.plain(number + 1)), (self.packed(number), self.packed(number + 1))]
            {
                let moved = if number == self.keep { fs::remove_file(&from) } else { fs::rename(&from, &to) };
                match moved {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        // The next attempt finds it where it was.
                        let _ = fs::rename(&moving, &self.path);
                        return Err(error).doing(|| format!("move {}", from.display()));
                    }
                    _ => {}
                }
            }
        }
        self.compressing = self.compressing.map(|number| number + u32::from(number <= last));
        fs::rename(&moving, self.plain(1)).doing(|| format!("rename {}", moving.display()))
    }

    fn compressed(&mut self, well: bool) {
        let Some(number) = self.compressing.take() else { return };
        let (temporary, plain) = (self.temporary(), self.plain(number));
        let names = self.names().ok().flatten().filter(|_| well && number <= self.keep);
        // One that was removed meanwhile does not come back.
        let taken = names.is_some() && keep_time(&plain, &temporary).is_ok();
        if !taken || fs::rename(&temporary, self.packed(number)).is_err() {
            let _ = fs::remove_file(temporary);
            return;
        }
        let _ = fs::remove_file(plain);
    }
}

/// Gives the compressed file the time of the other: that says which logs are the oldest.
fn keep_time(plain: &Path, packed: &Path) -> std::io::Result<()> {
    let written = fs::symlink_metadata(plain)?.modified()?;
    OpenOptions::new().write(true).open(packed)?.set_modified(written)
}

fn start(from: &Path, to: &Path) -> Result<i32> {
    let input = File::open(from).doing(|| format!("open {}", from.display()))?;
    let mut options = OpenOptions::new();
    let output = options.write(true).create(true).truncate(true).mode(0o640).open(to);
    let output = output.doing(|| format!("create {}", to.display()))?;
    // The program that runs, even where its file was replaced since.
    let mut command = Command::new("/proc/self/exe");
    command.arg("compress").stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::null());
    let child = command.spawn().doing(|| "start the compressor")?;
    reaper::number_of(&child)
}
