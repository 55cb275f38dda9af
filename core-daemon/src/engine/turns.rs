//! One start or removal of a container at a time: a container removed half-way through its start would go on running
//! without a record, on a root file system that is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

use super::Key;

/// Who may change which container.
#[derive(Default)]
pub(super) struct Turns {
    locks: Mutex<HashMap<Key, Arc<Lock<()>>>>,
}

impl Turns {
    /// Waits until nobody else changes the container. It needs no deadline: whatever others do in their turn has one.
    pub(super) async fn take(&self, key: Key) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // A lock that is held or waited for has another reference. All others are removed.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(key).or_default().clone()
        };
        lock.lock_owned().await
    }
}
