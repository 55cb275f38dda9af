//! System calls that filters forbid, where a pod asks by annotation that somebody hears of them.
//!
//! The runtime hands the descriptor of each process's filter to a socket of the daemon's. A forbidden call waits until it is
//! refused here: that takes no decision, and no look at the process. Where the daemon is gone, so are its descriptors, and the
//! kernel answers in its place that there is no such call (ENOSYS), now and for the rest of the process's life. A daemon that is
//! started again listens again, for processes that are started then.

mod follow;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Container, Cri};
use crate::error::{Doing as _, Result};

/// Characters of a container's id in its socket's name; a socket's path must be short.
const SOCKET_NAME: usize = 16;
/// Longest time for which new calls keep a container from being ended.
const LONGEST: Duration = Duration::from_secs(60);

/// Most processes of all containers that are followed at once: each is a descriptor of the daemon's.
const MOST_OF_ALL: usize = 512;
/// How long to wait before an end that failed is tried again, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// All that is watched.
pub(super) struct Calls {
    /// For descriptors, of all containers together.
    room: Arc<Semaphore>,
    /// What listens for descriptors, by container.
    listeners: Mutex<BTreeMap<String, AbortHandle>>,
    /// How often each was called.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MOST_OF_ALL)), listeners: Mutex::default(), counts: Mutex::default() }
    }
}

/// The forbidden calls of one container.
#[derive(Default)]
struct Used {
    calls: BTreeMap<String, u64>,
    /// When it made the first of them, and when the last one that it had not made before.
    since: Option<(Instant, Instant)>,
}

/// What follows from a call.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The container makes its first one.
    First,
    /// It makes one that it did not make before.
    Other,
    /// Nothing new.
    None,
}

impl Used {
    fn add(&mut self, name: &str, now: Instant) -> News {
        let count = self.calls.entry(name.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            return News::None;
        }
        let first = self.since.map(|(first, _)| first);
        self.since = Some((first.unwrap_or(now), now));
        if first.is_some() { News::Other } else { News::First }
    }

    /// When the container is to be ended.
    fn due(&self, delay: Duration) -> Option<Instant> {
        self.since.map(|(first, last)| (last + delay).min(first + delay.max(LONGEST)))
    }

    fn told(&self) -> String {
        let calls: Vec<String> = self.calls.iter().map(|(name, count)| format!("{name} ({count}x)")).collect();
        format!("used forbidden system calls: {}", calls.join(", "))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cri {
    /// Where somebody listens for a container's forbidden calls.
    pub(super) fn calls_socket(&self, id: &str) -> PathBuf {
        self.parts().config.state.join("cri/calls").join(id.get(..SOCKET_NAME).unwrap_or(id))
    }

    /// Listens for the forbidden calls of a container that is about to be started, where it is to be watched.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(super) fn watch_calls(&self, container: &Arc<Container>) -> Result<()> {
        if !container.record().calls_watched {
            return Ok(());
        }
        let path = self.calls_socket(container.id().as_str());
        let doing = || format!("listen for forbidden system calls at {}", path.display());
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).doing(doing)?;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).doing(doing),
            _ => {}
        }
        let listener = UnixListener::bind(&path).doing(doing)?;
        let task = tokio::spawn(self.clone().follow_all(listener, container.clone()));
        let before = lock(&self.shared.calls.listeners).insert(container.id().to_string(), task.abort_handle());
        if let Some(before) = before {
            before.abort();
        }
        Ok(())
    }

    /// The same of one that an earlier daemon has started.
    pub(super) fn watch_calls_again(&self, container: &Arc<Container>) {
        match self.watch_calls(container) {
            Err(error) => tracing::warn!(id = %container.id(), %error, "watch a container again"),
            Ok(()) if container.record().calls_watched => {
                tracing::warn!(id = %container.id(), "forbidden system calls of processes there are not heard of any more");
            }
            Ok(()) => {}
        }
    }

    /// Listens no longer, because the container has ended.
    pub(super) fn unwatch_calls(&self, container: &Container) {
        if container.record().calls_watched {
            if let Some(task) = lock(&self.shared.calls.listeners).remove(container.id().as_str()) {
                task.abort();
            }
            let _ = std::fs::remove_file(self.calls_socket(container.id().as_str()));
        }
    }

    /// Notes a call, which is about to be refused.
    fn note_call(&self, container: &Arc<Container>, used: &Arc<Mutex<Used>>, name: &str) {
        *lock(&self.shared.calls.counts).entry(name.to_owned()).or_default() += 1;
        let news = lock(used).add(name, Instant::now());
        if news == News::None {
            return;
        }
        // Once for each: a container can make them as fast as it likes.
        tracing::warn!(id = %container.id(), syscall = name, "a container used a forbidden system call");
        if news == News::First && container.record().ended_for_calls {
            tokio::spawn(self.clone().end_for_calls(container.clone(), used.clone()));
        }
    }

    /// Ends a container a while after it has made the last new one of its calls.
    async fn end_for_calls(self, container: Arc<Container>, used: Arc<Mutex<Used>>) {
        let delay = Duration::from_secs(self.config().seccomp_stop_delay);
        loop {
            let Some(due) = lock(&used).due(delay) else { return };
            if due <= Instant::now() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = container.ended() => return,
            }
        }
        // Who is being started cannot be ended yet: its calls may come before the start is over.
        drop(container.turn.lock().await);
        let told = lock(&used).told();
        tracing::warn!(id = %container.id(), reason = told, "end a container");
        let _ = container.ended_for.set(told);
        let [mut pause, longest] = AGAIN;
        loop {
            if let Err(error) = self.stop_now(&container, 0).await {
                tracing::error!(id = %container.id(), %error, "end a container that used forbidden system calls");
            }
            tokio::select! {
                () = container.ended() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
            }
        }
    }

    /// Writes counters as Prometheus reads them.
    pub fn write_metrics(&self, out: &mut String) {
        let counts = lock(&self.shared.calls.counts);
        if counts.is_empty() {
            return;
        }
        let name = "gantryd_forbidden_syscalls_total";
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "# HELP {name} System calls that watched containers' filters forbade.\n# TYPE {name} counter"
        );
        for (syscall, count) in counts.iter() {
            let _ = writeln!(out, "{name}{{syscall=\"{syscall}\"}} {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_calls_put_the_end_off_but_not_for_ever() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let delay = 5 * second;
        let mut used = Used::default();
        assert_eq!(used.due(delay), None);
        assert_eq!(used.add("mount", start), News::First);
        assert_eq!(used.due(delay), Some(start + delay));
        assert_eq!(used.add("mount", start + second), News::None);
        assert_eq!(used.due(delay), Some(start + delay), "nothing new");
        assert_eq!(used.add("swapon", start + 2 * second), News::Other);
        assert_eq!(used.due(delay), Some(start + 7 * second));
        assert_eq!(used.add("reboot", start + 58 * second), News::Other);
        assert_eq!(used.due(delay), Some(start + LONGEST));
        assert_eq!(used.due(Duration::ZERO), Some(start + 58 * second));
        assert_eq!(used.told(), "used forbidden system calls: mount (2x), reboot (1x), swapon (1x)");
    }
}
