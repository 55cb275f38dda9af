//! Numbers whose directories are not on the disk yet, and the thread that brings them there.
//!
//! Who makes a snapshot is told once its record is on the disk. A moment later its directories are flushed, with those of all
//! others that were made meanwhile; until that has succeeded its number is fresh. What is fresh is empty, or what was put
//! into it and flushed has brought its directories to the disk: what a power failure takes of it can be made again. See
//! `docs/decisions/0028-what-a-disk-did-not-write.md`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};
use rung_sys::writeback::FileSystems;

use super::Driver;
use crate::error::{Doing, Kind, Result};

/// How long after a snapshot was made its directories are flushed.
const LATER: Duration = Duration::from_secs(1);
/// How long after a flush that failed it is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Numbers that may be fresh at once. Whoever makes one more snapshot flushes it before it is recorded.
const MOST: usize = 1024;
/// So many directories are flushed one by one; where there are more, the whole file system is.
const FEW: usize = 32;

/// Gives numbers, and knows those whose directories are not on the disk yet.
pub(super) struct Numbering(Mutex<Numbers>);

struct Numbers {
    next: u64,
    fresh: BTreeSet<u64>,
}

impl Numbering {
    /// The first number is the one after `highest`.
    pub(super) fn after(highest: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Numbers { next: highest + 1, fresh: BTreeSet::new() })))
    }

    /// A new number.
    pub(super) fn take(self: &Arc<Self>) -> Fresh {
        let mut numbers = self.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.fresh.insert(number);
        Fresh { all: self.clone(), number }
    }

    /// A number of an earlier daemon.
    pub(super) fn again(self: &Arc<Self>, number: u64) -> Fresh {
        self.lock().fresh.insert(number);
        Fresh { all: self.clone(), number }
    }

    /// The lowest fresh number; the next one where there is none.
    pub(super) fn lowest_fresh(&self) -> u64 {
        let numbers = self.lock();
        numbers.fresh.first().copied().unwrap_or(numbers.next)
    }

    /// Whether one more may be fresh for longer than it takes to make it.
    pub(super) fn has_room(&self) -> bool {
        self.lock().fresh.len() <= MOST
    }

    /// The directories of a number are on the disk, or are not needed any more.
    pub(super) fn settle(&self, number: u64) {
        self.lock().fresh.remove(&number);
    }

    fn is_fresh(&self, number: u64) -> bool {
        self.lock().fresh.contains(&number)
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that is fresh until this is dropped.
pub(super) struct Fresh {
    all: Arc<Numbering>,
    pub(super) number: u64,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // What failed in the middle has flushed nothing.
        if !std::thread::panicking() {
            self.all.settle(self.number);
        }
    }
}

/// A thread that flushes what was made, later.
pub(super) struct Flusher(Sender<Fresh>);

impl Flusher {
    /// Starts it for what `driver` keeps, if that may be flushed later. It ends some time after this.
    pub(super) fn start<D: Driver>(driver: &Arc<D>) -> Result<Option<Self>> {
        if !driver.is_renewable() || !brings_ancestors(driver.root())? {
            return Ok(None);
        }
        // Opened now, so that it is told of all that cannot be written from now on.
        let disk = FileSystems::of([driver.root()]).doing(|| format!("open {}", driver.root().display()))?;
        let (to, from) = channel();
        let driver = driver.clone();
        let flush = move |fresh| flush(driver.as_ref(), &disk, fresh);
        std::thread::Builder::new().name("gantryd-flush".to_owned()).spawn(move || run(&from, LATER, AGAIN, flush))?;
        Ok(Some(Self(to)))
    }

    /// Has a number flushed, which stays fresh until then.
    pub(super) fn later(&self, fresh: Fresh) {
        if let Err(kept) = self.0.send(fresh) {
            tracing::error!(number = kept.0.number, "nobody flushes new snapshots any more");
            // So it is fresh for ever: what a power failure takes of it is made again.
            std::mem::forget(kept);
        }
    }
}

/// Collects what comes for a moment, flushes it, and tries again later what could not be; until nobody sends any more.
fn run(from: &Receiver<Fresh>, later: Duration, again: Duration, flush: impl Fn(Vec<Fresh>) -> Vec<Fresh>) {
    let mut waiting = Vec::new();
    loop {
        let mut pause = again;
        if waiting.is_empty() {
            let Ok(first) = from.recv() else { return };
            waiting.push(first);
            pause = later;
        }
        std::thread::sleep(pause);
        loop {
            match from.try_recv() {
                Ok(next) => waiting.push(next),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        waiting = flush(waiting);
    }
}

/// Brings the directories of these numbers to the disk, and answers with those for which that failed.
fn flush<D: Driver>(driver: &D, disk: &FileSystems, mut fresh: Vec<Fresh>) -> Vec<Fresh> {
    // What is committed or removed by now needs it no more.
    fresh.retain(|one| one.all.is_fresh(one.number));
    let root = driver.root().display();
    if fresh.len() > FEW {
        let Err(error) = disk.flush() else { return Vec::new() };
        tracing::warn!(%root, %error, "flush new snapshots; it is tried again");
        return fresh;
    }
    fresh.retain(|one| match driver.keep(one.number) {
        Ok(()) => false,
        Err(error) if error.kind() == Kind::NotFound => false,
        Err(error) => {
            tracing::warn!(%root, number = one.number, %error, "flush a new snapshot; it is tried again");
            true
        }
    });
    fresh
}

/// Whether on the file system of a directory a flush of what is in a new directory brings that directory to the disk, and
/// those above it. POSIX does not promise it. Of these it is known, and nothing in memory outlives a power failure.
fn brings_ancestors(dir: &Path) -> Result<bool> {
    let known = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC];
    let found = statfs(dir).map_err(std::io::Error::from);
    Ok(known.contains(&found.doing(|| format!("file system of {}", dir.display()))?.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_number_is_fresh_until_it_is_given_back() {
        let all = Numbering::after(4);
        assert_eq!(all.lowest_fresh(), 5);
        let (five, six) = (all.take(), all.take());
        assert_eq!((five.number, six.number, all.lowest_fresh()), (5, 6, 5));
        drop(five);
        assert_eq!(all.lowest_fresh(), 6);
        let three = all.again(3);
        assert_eq!(all.lowest_fresh(), 3);
        all.settle(3);
        assert_eq!(all.lowest_fresh(), 6);
        drop((three, six));
        assert_eq!((all.lowest_fresh(), all.take().number), (7, 7));
    }

    #[test]
    fn there_is_a_bound() {
        let all = Numbering::after(0);
        let mut taken: Vec<Fresh> = (0..MOST).map(|_| all.take()).collect();
        assert!(all.has_room());
        taken.push(all.take());
        assert!(!all.has_room());
        taken.pop();
        assert!(all.has_room());
    }

    #[test]
    fn what_could_not_be_flushed_stays_fresh_and_is_tried_again() {
        let (all, (to, from)) = (Numbering::after(0), channel());
        let tries = Arc::new(AtomicUsize::new(0));
        let flush = {
            let tries = tries.clone();
            move |mut fresh: Vec<Fresh>| match tries.fetch_add(1, Ordering::SeqCst) {
                // At first it fails for the second alone.
                0 => {
                    assert_eq!(fresh.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2, 3]);
                    fresh.retain(|one| one.number == 2);
                    fresh
                }
                1 => fresh,
                _ => Vec::new(),
            }
        };
        (0..3).for_each(|_| to.send(all.take()).expect("send"));
        let moment = Duration::from_millis(20);
        let thread = std::thread::spawn(move || run(&from, moment, moment, flush));
        while tries.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        assert!(!all.is_fresh(1) && !all.is_fresh(3));
        while all.is_fresh(2) {
            std::thread::yield_now();
        }
        assert_eq!((tries.load(Ordering::SeqCst), all.lowest_fresh()), (3, 4));
        drop(to);
        thread.join().expect("it ends");
    }
}
