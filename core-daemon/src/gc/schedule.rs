//! When the collection runs: soon after something was removed or has expired, and regularly.

use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::{Gc, Schedule};

/// The pause before a collection is at least this many times as long as the one before took, up to the interval.
const PAUSE_FACTOR: u32 = 50;

impl Gc {
    /// Runs the schedule until `stop`; the first collection removes what a crash left.
    pub async fn run(self, schedule: Schedule, stop: CancellationToken) {
        let mut pause = schedule.delay;
        loop {
            let expiry = &self.parts.expiry;
            let wait = expiry.wait().unwrap_or(schedule.interval).min(schedule.interval);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = expiry.sooner() => continue,
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let begun = Instant::now();
            match self.collect().await {
                Ok(swept) if swept.is_empty() => {}
                Ok(swept) => tracing::info!(
                    blobs = swept.blobs,
                    snapshots = swept.snapshots,
                    bytes = swept.bytes,
                    failed = swept.failed,
                    "collected what nothing refers to"
                ),
                Err(error) => tracing::error!(%error, "collection failed"),
            }
            pause = schedule.delay.max((begun.elapsed() * PAUSE_FACTOR).min(schedule.interval));
        }
    }
}
