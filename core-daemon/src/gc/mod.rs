//! Collection: what nothing refers to any more is removed.
//!
//! ```text
//! roots ─► images · leases · containers · sandboxes · objects labelled gc.root · snapshots that tasks run on
//!   │ gc.ref.content, gc.ref.snapshot.<name>, gc.ref.image labels; a snapshot's parent; what a lease holds
//!   ▼
//! marked ── everything else is swept: first records, in one transaction with the marking, then files
//! ```
//!
//! Marking and the removal of records are one write transaction, so nothing can come to refer to what is about to go.
//! Files are removed after it; one that cannot be is left for the next time and keeps no other.

mod expiry;
mod kept;
mod mark;
mod mounts;
mod schedule;
mod sweep;
mod totals;

use std::sync::Arc;
use std::time::Duration;

use expiry::Expiry;
pub use kept::{Kept, Reason};
pub use mark::Node;
pub use sweep::Swept;
use totals::Totals;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::labels::Labels;
use crate::metadata::Db;
use crate::mounts::Mounts;
use crate::snapshots::Snapshotters;

/// When to collect.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// How long to wait after a deletion for more of them.
    pub delay: Duration,
    /// Collect at least this often.
    pub interval: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { delay: Duration::from_millis(100), interval: Duration::from_secs(300) }
    }
}

/// The collection. Clones are the same.
#[derive(Clone)]
pub struct Gc {
    parts: Arc<Parts>,
    wake: Arc<tokio::sync::Notify>,
}

struct Parts {
    db: Db,
    content: Content,
    snapshotters: Snapshotters,
    mounts: Mounts,
    events: Events,
    expiry: Expiry,
    totals: Totals,
    /// One at a time.
    running: Arc<tokio::sync::Mutex<()>>,
}

impl Gc {
    /// The collection of these stores. It runs when asked; see [`Gc::run`] for the schedule.
    pub fn new(db: Db, content: Content, snapshotters: Snapshotters, mounts: Mounts, events: Events) -> Self {
        let (expiry, totals, running) = (Expiry::default(), Totals::default(), Arc::default());
        let parts = Parts { db, content, snapshotters, mounts, events, expiry, totals, running };
        Self { parts: Arc::new(parts), wake: Arc::default() }
    }

    /// Says that something was removed, so that a collection is worth while.
    pub fn changed(&self) {
        self.wake.notify_one();
    }

    /// Says that there is something with these labels: where it expires, a collection comes then.
    pub fn made(&self, labels: &Labels) {
        if let Some(at) = expiry::of(labels) {
            self.parts.expiry.note(at);
        }
    }

    /// What [`Gc::changed`] notifies, for modules of lower layers.
    pub fn waker(&self) -> Arc<tokio::sync::Notify> {
        self.wake.clone()
    }

    /// Collects now.
    ///
    /// # Errors
    /// When records cannot be read or written: then nothing was removed. Files that cannot be removed are no error.
    pub async fn collect(&self) -> Result<Swept> {
        let parts = self.parts.clone();
        // Held until the sweep has ended, whether or not it is waited for.
        let running = self.parts.running.clone().lock_owned().await;
        let sweep = move || {
            let _running = running;
            sweep::sweep(&parts).inspect(|swept| parts.totals.add(swept)).inspect_err(|_| parts.totals.failed())
        };
        tokio::task::spawn_blocking(sweep).await.map_err(|error| Error::internal(format!("collection: {error}")))?
    }

    /// What collections have done since the daemon began, as Prometheus reads it.
    pub fn write_metrics(&self, out: &mut String) {
        self.parts.totals.write(out);
    }

    /// What keeps what, now.
    ///
    /// # Errors
    /// When records cannot be read.
    pub fn kept(&self) -> Result<Kept> {
        self.parts.db.read(|tx| Kept::read(tx, &self.parts.snapshotters))
    }
}

#[cfg(test)]
mod tests;
