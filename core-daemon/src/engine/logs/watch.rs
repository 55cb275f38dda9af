//! Being told when a directory's files change.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

use crate::error::{Doing, Result};

/// Pause between two looks at a log of whose changes the kernel does not tell.
const LOOK: Duration = Duration::from_millis(250);

/// A watch on the files of one directory. What the kernel says of them is read like a pipe, without being understood:
/// that something changed is enough. All programs of a user share a few such watches (`fs.inotify.max_user_instances`);
/// where none is left, each moment counts as a change.
pub(super) struct Watch(Option<Receiver>);

impl Watch {
    /// Watches `dir` from now on.
    pub(super) fn directory(dir: &Path) -> Result<Self> {
        match told_of(dir) {
            Err(error) if is_want_of_watches(&error) => Ok(Self(None)),
            told => told.map(|receiver| Self(Some(receiver))).doing(|| format!("watch {}", dir.display())),
        }
    }

    /// Returns once something has changed since the last return.
    pub(super) async fn changed(&self) -> Result<()> {
        let Some(told) = &self.0 else {
            tokio::time::sleep(LOOK).await;
            return Ok(());
        };
        // Everything queued is one change; a buffer smaller than the largest event would be refused.
        let mut buffer = [0; 4096];
        let mut changed = false;
        loop {
            match told.try_read(&mut buffer) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock && changed => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => told.readable().await.doing(|| "watch a log")?,
                Err(error) => return Err(error).doing(|| "watch a log"),
            }
        }
    }
}

fn told_of(dir: &Path) -> io::Result<Receiver> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    Receiver::from_file_unchecked(File::from(OwnedFd::from(inotify)))
}

/// Whether an error says that a user has all the watches that he may have.
fn is_want_of_watches(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENOSPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_told(watch: &Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.is_ok_and(|changed| changed.is_ok())
    }

    #[tokio::test]
    async fn changes_are_told_or_looked_for() {
        let dir = tempfile::tempdir().expect("directory");
        let watch = Watch::directory(dir.path()).expect("watch");
        std::fs::write(dir.path().join("log"), "x").expect("write");
        assert!(is_told(&watch).await);
        assert!(is_told(&Watch(None)).await);
        assert!(is_want_of_watches(&Errno::EMFILE.into()) && !is_want_of_watches(&Errno::ENOENT.into()));
        assert!(Watch::directory(&dir.path().join("gone")).is_err());
    }
}
