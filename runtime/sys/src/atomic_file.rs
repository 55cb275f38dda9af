//! Files that are written whole or not at all.
//!
//! A reader, and a machine that comes back from a power cut, sees the old content or the new one: the new one is written
//! beside the file, brought to the disk, and renamed over it; then the rename itself is brought to the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Writes `content` to `path` with permissions `mode`, replacing what is there.
///
/// # Errors
/// When a step fails; nothing is left beside the file then, and it is as it was, or, where only the last step failed,
/// new and perhaps not on the disk yet.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    replace(path, content, mode, true)
}

/// Like [`write()`] without waiting for the disk: for files that mean nothing after a reboot.
///
/// # Errors
/// As [`write()`].
pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    replace(path, content, mode, false)
}

/// A file that is written and has not taken its place yet. It is removed when it is dropped.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Writes `content` beside `path`, with permissions `mode`, without waiting for the disk.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<Self> {
        Ok(Self::begin(path, content, mode)?.0)
    }

    fn begin(path: &Path, content: &[u8], mode: u32) -> Result<(Self, File)> {
        let (temporary, mut file) = create_beside(path, mode)?;
        let draft = Self { temporary, path: path.to_owned(), published: false };
        file.write_all(content).map_err(|error| Error::from_io("write", shown(&draft.temporary), &error))?;
        Ok((draft, file))
    }

    /// Puts it in the place of what is there.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn publish(mut self) -> Result<()> {
        fs::rename(&self.temporary, &self.path).map_err(|error| {
            Error::from_io("rename", format!("{}, {}", shown(&self.temporary), shown(&self.path)), &error)
        })?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What led here is the error to tell.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn shown(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn replace(path: &Path, content: &[u8], mode: u32, durable: bool) -> Result<()> {
    let (draft, file) = Draft::begin(path, content, mode)?;
    if durable {
        file.sync_all().map_err(|error| Error::from_io("fsync", shown(&draft.temporary), &error))?;
    }
    draft.publish()?;
    if durable { sync_directory(parent(path)) } else { Ok(()) }
}

/// Brings the names in a directory to the disk.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory(dir: &Path) -> Result<()> {
    let shown = || format!("{:?}", dir.display().to_string());
    let dir = File::open(dir).map_err(|error| Error::from_io("open", shown(), &error))?;
    dir.sync_all().map_err(|error| Error::from_io("fsync", shown(), &error))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a new file in the directory of `path`, hidden, under a name nobody else uses.
fn create_beside(path: &Path, mode: u32) -> Result<(PathBuf, File)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = parent(path).join(format!(".{name}.{}.{number}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        match options.open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // A process of the same number died while it wrote.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Error::from_io("open", format!("{:?}", temporary.display().to_string()), &error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_beside_them() {
        let dir = std::env::temp_dir().join(format!("rung-sys-atomic-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("directory");
        let path = dir.join("state.json");
        write(&path, b"one", 0o600).expect("first");
        write_volatile(&path, b"two", 0o640).expect("second");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o640);
        let error = write(&dir.join("missing/state.json"), b"", 0o600).expect_err("no directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        fs::create_dir(dir.join("taken")).expect("directory");
        assert!(write(&dir.join("taken"), b"", 0o600).is_err());
        assert_eq!(fs::read_dir(&dir).expect("list").count(), 2);
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
