//! Being told when a directory's files change.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

use crate::error::{Doing, Result};

/// A watch on the files of one directory. What the kernel says of them is read like a pipe, without being understood:
/// that something changed is enough.
pub(super) struct Watch(Receiver);

impl Watch {
    /// Watches `dir` from now on.
    pub(super) fn directory(dir: &Path) -> Result<Self> {
        let doing = || format!("watch {}", dir.display());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(std::io::Error::from);
        let inotify = inotify.doing(doing)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, flags).map_err(std::io::Error::from).doing(doing)?;
        let receiver = Receiver::from_file_unchecked(File::from(OwnedFd::from(inotify)));
        receiver.map(Self).doing(doing)
    }

    /// Returns once something has changed since the last return.
    pub(super) async fn changed(&self) -> Result<()> {
        // Everything queued is one change; a buffer smaller than the largest event would be refused.
        let mut buffer = [0; 4096];
        let mut changed = false;
        loop {
            match self.0.try_read(&mut buffer) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock && changed => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.0.readable().await.doing(|| "watch a log")?
                }
                Err(error) => return Err(error).doing(|| "watch a log"),
            }
        }
    }
}
