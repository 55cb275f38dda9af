//! Keeping the logs of all containers together below what they may take.
//!
//! Each container's log has a bound of its own, which its shim keeps; so many containers may still fill a disk. The kernel
//! tells of the first write to each log since it was last looked at, and nobody looks while nothing is written. After that
//! word a look waits as long as nobody could have filled what is left, so that a daemon with much room looks rarely.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;

use crate::blocking::blocking;
use crate::engine::{Engine, Key};
use crate::error::Result;
use crate::storage::logs::{Cut, Logs, plan};

/// Bytes a second that all shims together are thought to write at most.
const RATE: u64 = 256 << 20;
/// Between the word of a write and a look, at least and at most.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(60);
/// Between two attempts where the first did not help.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Between two looks at logs of which the kernel does not tell.
const LOOK: Duration = Duration::from_secs(10);
/// How long somebody may be starting or removing a container whose log is to be cut.
const TURN: Duration = Duration::from_secs(10);

/// What is known of all logs.
pub(in crate::engine) struct Cap {
    logs: Logs,
    /// `None` where the kernel has none left, or nothing is limited.
    inotify: Option<Inotify>,
    state: Mutex<State>,
    stirred: Notify,
}

#[derive(Default)]
struct State {
    sizes: HashMap<Key, u64>,
    /// Containers by the numbers of their watches.
    watched: HashMap<i32, Key>,
    /// Containers that run without a watch.
    unwatched: HashSet<Key>,
    /// Those to look at.
    stirred: HashSet<Key>,
    /// The last attempt to make room did not.
    stuck: bool,
}

impl Cap {
    pub(in crate::engine) fn new(logs: Logs) -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = if logs.limit() > 0 { Inotify::init(flags).ok() } else { None };
        Self { logs, inotify, state: Mutex::default(), stirred: Notify::new() }
    }

    /// A container runs: it may write. Whether an earlier daemon was about to cut its log.
    pub(in crate::engine) fn begun(&self, key: &Key) -> bool {
        if self.logs.limit() > 0 {
            self.watch(key);
        }
        self.logs.is_cut_short(key)
    }

    /// A container has ended or was removed.
    pub(in crate::engine) fn ended(&self, key: &Key) {
        if self.logs.limit() > 0 {
            let mut state = self.state();
            state.unwatched.remove(key);
            state.stirred.insert(key.clone());
            drop(state);
            self.stirred.notify_one();
        }
    }

    /// Has the kernel tell of the next write.
    fn watch(&self, key: &Key) {
        // Once: a log that is written all the time costs its writer nothing then.
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let flags = flags | AddWatchFlags::IN_ONESHOT | AddWatchFlags::IN_ONLYDIR;
        let directory = self.logs.directory(key);
        // The state is held, so that a word that comes at once finds the number.
        let mut state = self.state();
        let added = self.inotify.as_ref().and_then(|inotify| inotify.add_watch(&directory, flags).ok());
        match added {
            Some(number) => {
                state.unwatched.remove(key);
                state.watched.insert(number.as_raw(), key.clone());
            }
            // One that is gone by now ends, which is told of.
            None => drop(state.unwatched.insert(key.clone())),
        }
    }

    /// Takes what the kernel has to say; gives those who have written.
    fn take_words(&self, told: Option<&Receiver>) -> Vec<Key> {
        let mut buffer = [0; 4096];
        let mut keys = Vec::new();
        let mut state = self.state();
        while let Some(Ok(length)) = told.map(|told| told.try_read(&mut buffer))
            && length > 0
        {
            keys.extend(numbers(&buffer[..length]).filter_map(|number| state.watched.remove(&number)));
        }
        keys.extend(state.unwatched.iter().cloned());
        state.stirred.extend(keys.iter().cloned());
        keys
    }

    /// Resolves when something may have been written.
    async fn told(&self, told: Option<&Receiver>) {
        let by_kernel = async {
            match told {
                // Where it cannot tell any more, logs are looked at now and then.
                Some(told) if told.readable().await.is_ok() => {}
                _ => std::future::pending().await,
            }
        };
        let is_blind = !self.state().unwatched.is_empty();
        tokio::select! {
            () = by_kernel => {}
            () = self.stirred.notified() => {}
            () = tokio::time::sleep(LOOK), if is_blind => {}
        }
    }

    /// Takes over what logs take now; gives what all take.
    fn note(&self, sizes: Vec<(Key, u64)>) -> u64 {
        let mut state = self.state();
        for (key, size) in sizes {
            match size {
                0 => drop(state.sizes.remove(&key)),
                size => drop(state.sizes.insert(key, size)),
            }
        }
        state.sizes.values().sum()
    }

    fn total(&self) -> u64 {
        self.state().sizes.values().sum()
    }

    /// From here on something is dropped: what is written meanwhile has an eighth of the limit.
    fn high(&self) -> u64 {
        let limit = self.logs.limit();
        limit - limit / 8
    }

    /// Down to here.
    fn low(&self) -> u64 {
        let limit = self.logs.limit();
        limit - limit / 4
    }

    /// How long a look can wait.
    fn pace(&self) -> Duration {
        if self.state().stuck {
            return AFTER_FAILURE;
        }
        let room = self.high().saturating_sub(self.total());
        Duration::from_millis(room / (RATE / 1000)).clamp(SOON, LATE)
    }

    /// What the kernel says comes out of here.
    fn receiver(&self) -> Option<Receiver> {
        let open = |inotify: &Inotify| -> io::Result<Receiver> {
            Receiver::from_file_unchecked(File::from(inotify.as_fd().try_clone_to_owned()?))
        };
        self.inotify.as_ref().and_then(|inotify| open(inotify).ok())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of the watches that events are of: each is a number, three words, of which the last is the length of a name,
/// and that name.
fn numbers(mut events: &[u8]) -> impl Iterator<Item = i32> {
    std::iter::from_fn(move || {
        let (head, rest) = events.split_first_chunk::<16>()?;
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let name = usize::try_from(u32::from_ne_bytes(word(12))).ok()?;
        events = rest.get(name..)?;
        Some(i32::from_ne_bytes(word(0)))
    })
}

impl Engine {
    /// Keeps all logs together below `container_log.max_total` until the daemon stops.
    pub async fn keep_logs_small(self) {
        let cap = &self.shared.cap;
        if cap.logs.limit() == 0 {
            return;
        }
        cap.stirred.notify_one();
        let stopping = self.parts().stopping.clone();
        let told = cap.receiver();
        let work = async {
            let mut looked = self.end_earlier_cuts().await.and(self.look_at_all_logs().await);
            loop {
                if let Err(error) = &looked {
                    tracing::warn!(%error, "look at containers' logs");
                }
                cap.told(told.as_ref()).await;
                tokio::time::sleep(cap.pace()).await;
                // Watched again first, then looked at: nothing is written unseen.
                for key in cap.take_words(told.as_ref()) {
                    if self.running(&key.0, &key.1).is_some() {
                        cap.watch(&key);
                    }
                }
                looked = self.look_at_logs().await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stopping.cancelled() => {}
        }
    }

    /// Looks at the logs that were written to since they were last looked at.
    async fn look_at_logs(&self) -> Result<()> {
        let stirred = std::mem::take(&mut self.shared.cap.state().stirred);
        let logs = self.shared.cap.logs.clone();
        let sizes = blocking(move || {
            let size = |key: Key| logs.of(&key).map(|log| (key, log.size()));
            stirred.into_iter().map(size).collect::<Result<Vec<_>>>()
        });
        let sizes = sizes.await?;
        let total = self.shared.cap.note(sizes);
        self.shared.cap.logs.reckoned(total, 0);
        if total > self.shared.cap.high() {
            return self.look_at_all_logs().await;
        }
        self.shared.cap.state().stuck = false;
        Ok(())
    }

    /// Looks at all logs, and makes room where they take too much.
    async fn look_at_all_logs(&self) -> Result<()> {
        let cap = &self.shared.cap;
        let (mut cut, mut failures) = (0, 0);
        if self.measure_logs().await? > cap.high() {
            let (logs, low) = (cap.logs.clone(), cap.low());
            let cuts = blocking(move || Ok(plan(&logs.all()?, low))).await?;
            let cutting = cuts.into_iter().map(|(key, cut)| async move {
                let done = self.cut_log(&key, cut).await;
                done.inspect_err(|error| tracing::warn!(namespace = %key.0, id = %key.1, %error, "drop old logs"))
            });
            let done = join_all(cutting).await;
            cut = done.iter().filter(|done| done.is_ok()).count();
            failures = done.len() - cut;
            self.measure_logs().await?;
        }
        let total = cap.total();
        cap.logs.reckoned(total, failures as u64);
        let is_full = total > cap.high();
        // Where something could be dropped, what was written meanwhile is the reason, and there is more to drop.
        let stuck = is_full && cut == 0;
        let before = std::mem::replace(&mut cap.state().stuck, stuck);
        if stuck && !before {
            tracing::error!(bytes = total, limit = cap.logs.limit(), "containers' logs are too large and stay so");
        }
        if is_full {
            // Nobody may write any more, and yet it is tried again.
            cap.stirred.notify_one();
        }
        Ok(())
    }

    async fn measure_logs(&self) -> Result<u64> {
        let logs = self.shared.cap.logs.clone();
        let all = blocking(move || logs.all()).await?;
        let sizes = all.into_iter().map(|(key, log)| (key, log.size())).filter(|(_, size)| *size > 0);
        self.shared.cap.state().sizes = sizes.collect();
        Ok(self.shared.cap.total())
    }

    /// Drops what is to go of one log. Whoever writes to it opens another file where the current one goes.
    async fn cut_log(&self, key: &Key, cut: Cut) -> Result<()> {
        let logs = self.shared.cap.logs.clone();
        let of = key.clone();
        if !cut.current {
            return blocking(move || logs.drop_of(&of, cut)).await;
        }
        // Nobody starts or removes the container meanwhile.
        let turn = tokio::time::timeout(TURN, self.shared.turns.take(key.clone())).await;
        let Ok(_turn) = turn else {
            return Err(crate::error::Error::unavailable(
                "somebody has been starting or removing the container for long",
            ));
        };
        let dropped = blocking(move || logs.drop_of(&of, cut)).await;
        self.end_cut(key).await.and(dropped)
    }

    /// Ends the cut of a log: its shim opens another file, and the one that was put aside goes.
    async fn end_cut(&self, key: &Key) -> Result<()> {
        if !self.shared.cap.logs.is_cut_short(key) {
            return Ok(());
        }
        let reopened = match self.running(&key.0, &key.1) {
            Some(live) => live.task.reopen_log().await,
            None => Ok(()),
        };
        let (logs, of, is_reopened) = (self.shared.cap.logs.clone(), key.clone(), reopened.is_ok());
        blocking(move || logs.finish(&of, is_reopened)).await?;
        reopened
    }

    /// Ends what an earlier daemon had begun when it was killed. A shim may still write to a file that was put aside, so that
    /// it is left alone while that shim is not found.
    pub(in crate::engine) async fn end_earlier_cut(&self, key: &Key) {
        let _turn = self.shared.turns.take(key.clone()).await;
        if self.running(&key.0, &key.1).is_none() && self.parts().tasks.holds(&key.0, &key.1) {
            return;
        }
        if let Err(error) = self.end_cut(key).await {
            tracing::warn!(namespace = %key.0, id = %key.1, %error, "end the log that was being cut");
        }
    }

    async fn end_earlier_cuts(&self) -> Result<()> {
        let logs = self.shared.cap.logs.clone();
        for (key, _) in blocking(move || logs.all()).await? {
            self.end_earlier_cut(&key).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn events_are_told_apart() {
        let event = |number: i32, name: &[u8]| {
            let words = [u32::from_ne_bytes(number.to_ne_bytes()), 2, 0, u32::try_from(name.len()).expect("short")];
            [words.map(u32::to_ne_bytes).concat(), name.to_vec()].concat()
        };
        let events = [event(1, b""), event(7, b"log.json\0\0\0\0"), event(3, b"x\0\0\0")].concat();
        assert_eq!(numbers(&events).collect::<Vec<_>>(), [1, 7, 3]);
        assert_eq!(numbers(&events[..40]).collect::<Vec<_>>(), [1], "half an event is none");
    }

    #[tokio::test]
    async fn a_write_is_told_once_until_it_is_watched_again() {
        use crate::id::ContainerId;
        use gantry_proto::namespace::Namespace;

        let root = tempfile::tempdir().expect("directory");
        let cap = Cap::new(Logs::new(root.path().to_owned(), 1 << 20));
        let key: Key = (Namespace::parse("n").expect("namespace"), ContainerId::parse("a").expect("id"));
        let directory: &Path = &cap.logs.directory(&key);
        std::fs::create_dir_all(directory).expect("directory");
        let told = cap.receiver();
        cap.begun(&key);
        for _ in 0..2 {
            std::fs::write(directory.join("log.json"), "line").expect("write");
            tokio::time::timeout(LOOK / 2, cap.told(told.as_ref())).await.expect("told by the kernel");
            assert_eq!(cap.take_words(told.as_ref()), std::slice::from_ref(&key));
            std::fs::write(directory.join("log.json"), "more").expect("write");
            assert!(cap.take_words(told.as_ref()).is_empty(), "it is not watched");
            cap.begun(&key);
        }
        assert!(cap.state().unwatched.is_empty());
        std::fs::remove_dir_all(directory).expect("remove");
        cap.begun(&key);
        assert_eq!(cap.take_words(told.as_ref()), std::slice::from_ref(&key), "what cannot be watched is looked at");
    }

    #[test]
    fn the_more_room_the_rarer_a_look() {
        let cap = Cap::new(Logs::new("/nowhere".into(), 4 << 30));
        assert!(cap.pace() > Duration::from_secs(10) && cap.pace() <= LATE);
        let key = (
            gantry_proto::namespace::Namespace::parse("n").expect("namespace"),
            crate::id::ContainerId::parse("a").expect("id"),
        );
        cap.state().sizes.insert(key, cap.high());
        assert_eq!(cap.pace(), SOON);
        cap.state().stuck = true;
        assert_eq!(cap.pace(), AFTER_FAILURE);
    }
}
