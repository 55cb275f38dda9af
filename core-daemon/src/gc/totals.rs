//! What collections have done so far, for whoever watches the daemon: something that cannot be removed keeps no collection
//! from the rest, and is seen here.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::Swept;

/// Since the daemon began.
#[derive(Debug, Default)]
pub(super) struct Totals(Mutex<Sums>);

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    collections: u64,
    /// Those that removed nothing, because records could not be read or written.
    failures: u64,
    blobs: u64,
    bytes: u64,
    snapshots: u64,
    expired: u64,
    /// Of the last collection.
    left: usize,
}

impl Totals {
    pub(super) fn add(&self, swept: &Swept) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.collections += 1;
        sums.blobs += swept.blobs as u64;
        sums.bytes += swept.bytes;
        sums.snapshots += swept.snapshots as u64;
        sums.expired += swept.expired as u64;
        sums.left = swept.failed;
    }

    pub(super) fn failed(&self) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.collections += 1;
        sums.failures += 1;
    }

    pub(super) fn write(&self, out: &mut String) {
        let sums = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = [
            ("collections_total", "counter", "Collections that have ended.", sums.collections),
            ("collection_failures_total", "counter", "Collections that failed as a whole.", sums.failures),
            ("collected_blobs_total", "counter", "Blobs that were removed.", sums.blobs),
            ("collected_bytes_total", "counter", "Bytes of those blobs.", sums.bytes),
            ("collected_snapshots_total", "counter", "Snapshots that were removed.", sums.snapshots),
            ("collected_expired_total", "counter", "Leases and images that had expired.", sums.expired),
            ("uncollectable", "gauge", "Things that the last collection could not remove.", sums.left as u64),
        ];
        for (name, kind, help, value) in rows {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP gantryd_gc_{name} {help}\n# TYPE gantryd_gc_{name} {kind}");
            let _ = writeln!(out, "gantryd_gc_{name} {value}");
        }
    }
}
