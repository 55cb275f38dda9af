//! Numbers of directories whose record is not written yet, or which are being committed or removed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The numbers that somebody is at.
#[derive(Clone, Default)]
pub(super) struct Numbers(Arc<Mutex<HashSet<u64>>>);

/// A number that is busy until this is dropped.
pub(super) struct Busy {
    all: Numbers,
    pub(super) number: u64,
}

impl Numbers {
    /// Keeps others from a number; `None` where somebody is at it.
    pub(super) fn take(&self, number: u64) -> Option<Busy> {
        self.lock().insert(number).then(|| Busy { all: self.clone(), number })
    }

    /// The numbers that are busy now.
    pub(super) fn now(&self) -> HashSet<u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}
