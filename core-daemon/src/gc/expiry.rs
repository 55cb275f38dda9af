//! When the next lease or image expires: that is when a collection is due.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::labels::{self, Labels};

/// The soonest end that is known, for the schedule.
#[derive(Default)]
pub(super) struct Expiry {
    soonest: Mutex<Option<Timestamp>>,
    sooner: Notify,
}

/// When something with these labels expires. A time that cannot be read keeps it: better too much is kept than too little.
pub(super) fn of(labels: &Labels) -> Option<Timestamp> {
    labels.get(labels::GC_EXPIRE)?.parse().ok()
}

impl Expiry {
    /// Before everything is looked at: what comes meanwhile is noted beside what is found.
    pub(super) fn forget(&self) {
        *self.soonest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Something expires at `at`.
    pub(super) fn note(&self, at: Timestamp) {
        let mut soonest = self.soonest.lock().unwrap_or_else(PoisonError::into_inner);
        if soonest.is_none_or(|soonest| at < soonest) {
            *soonest = Some(at);
            self.sooner.notify_one();
        }
    }

    /// Returns when something is noted that expires sooner than all before.
    pub(super) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// How long it is until something expires.
    pub(super) fn wait(&self) -> Option<Duration> {
        let soonest = *self.soonest.lock().unwrap_or_else(PoisonError::into_inner);
        soonest.map(|at| at.duration_since(Timestamp::now()).try_into().unwrap_or_default())
    }
}
