//! Snapshots that somebody runs on: collection leaves them alone, whatever the records say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::namespace::Namespace;

/// Namespace, snapshotter and key of a snapshot in use.
pub type Use = (String, String, String);

/// Everything in use, with how often.
#[derive(Clone, Default)]
pub(super) struct Uses(Arc<Mutex<HashMap<Use, usize>>>);

/// A snapshot is in use until this is dropped.
pub struct InUse {
    uses: Uses,
    what: Use,
}

impl Uses {
    pub(super) fn begin(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> InUse {
        let what = (namespace.to_string(), snapshotter.to_owned(), key.to_owned());
        *self.lock().entry(what.clone()).or_default() += 1;
        InUse { uses: self.clone(), what }
    }

    pub(super) fn all(&self) -> Vec<Use> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Use, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut uses = self.uses.lock();
        if let Some(count) = uses.get_mut(&self.what) {
            *count -= 1;
            if *count == 0 {
                uses.remove(&self.what);
            }
        }
    }
}
