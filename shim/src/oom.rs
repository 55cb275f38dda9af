//! Watches a container's cgroup for processes that the kernel ended for want of memory.
//!
//! The counter is `oom_kill`: it counts processes ended in this cgroup, where `oom` would also count a limit further
//! up. The kernel wakes us through inotify (v2) or an eventfd (v1). Before an exit is announced the counter is read
//! once more, so that the reason is always announced before the exit.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::task::AbortHandle;

use crate::stats::cgroup::Cgroup;

/// The watch over one container.
#[derive(Debug)]
pub struct Watch {
    counter: Arc<Counter>,
    task: Option<AbortHandle>,
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    seen: Mutex<u64>,
}

impl Watch {
    /// Watches `cgroup` and calls `report` for every growth; none where it has no memory controller.
    pub fn start(cgroup: &Cgroup, report: impl Fn() + Send + 'static) -> Option<Self> {
        let (file, event) = match cgroup {
            Cgroup::Unified(dir) => {
                let file = dir.join("memory.events");
                let event = inotify(&file);
                (file, event)
            }
            Cgroup::Legacy(_) => {
                let dir = cgroup.controller("memory")?;
                let file = dir.join("memory.oom_control");
                let event = eventfd(&dir, &file);
                (file, event)
            }
        };
        let counter = Arc::new(Counter { seen: Mutex::new(read(&file)?), file });
        // Without a wake-up there is still the reading before the exit.
        let task = event.and_then(|event| crate::io::watch(event).ok()).map(|event| {
            let counter = counter.clone();
            tokio::spawn(async move {
                loop {
                    let Ok(mut ready) = event.readable().await else { return };
                    let mut buffer = [0; 4096];
                    while nix::unistd::read(&event, &mut buffer).is_ok_and(|count| count > 0) {}
                    ready.clear_ready();
                    match counter.grown() {
                        Some(true) => report(),
                        Some(false) => {}
                        // The cgroup is gone; a v1 eventfd fires for that too.
                        None => return,
                    }
                }
            })
            .abort_handle()
        });
        Some(Self { counter, task })
    }

    /// True where processes were ended since this, or the watch, last looked.
    pub fn grown(&self) -> bool {
        self.counter.grown().unwrap_or(false)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Counter {
    fn grown(&self) -> Option<bool> {
        let now = read(&self.file)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = now > *seen;
        *seen = now;
        Some(grown)
    }
}

/// The value of the `oom_kill` line, which both versions have.
fn read(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn inotify(file: &Path) -> Option<OwnedFd> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    inotify.add_watch(file, AddWatchFlags::IN_MODIFY).ok()?;
    Some(inotify.into())
}

fn eventfd(dir: &Path, file: &Path) -> Option<OwnedFd> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).ok()?;
    let watched = File::open(file).ok()?;
    let mut control = OpenOptions::new().write(true).open(dir.join("cgroup.event_control")).ok()?;
    control.write_all(format!("{} {}", event.as_raw_fd(), watched.as_raw_fd()).as_bytes()).ok()?;
    Some(event.into())
}
