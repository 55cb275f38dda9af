//! What keeps others away: from an ingest that is written, from a blob that is about to be recorded.

use std::sync::{Arc, PoisonError};

use rung_spec::digest::Digest;

use super::Store;
use crate::error::{Error, Result};

/// Keeps the collection from a blob whose record is about to be written.
pub(super) struct Pending {
    store: Arc<Store>,
    pub(super) digest: Digest,
}

impl Pending {
    pub(super) fn new(store: &Arc<Store>, digest: Digest) -> Self {
        *store.pending().entry(digest.clone()).or_insert(0) += 1;
        Self { store: store.clone(), digest }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.store.pending();
        if let Some(count) = pending.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.digest);
            }
        }
    }
}

/// Keeps others from writing the same ingest.
pub(super) struct Lock {
    store: Arc<Store>,
    name: String,
}

impl Lock {
    pub(super) fn take(store: &Arc<Store>, name: &str, reference: &str) -> Result<Self> {
        let mut writing = store.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !writing.insert(name.to_owned()) {
            return Err(Error::unavailable(format!("ref {reference} locked: it is being written")));
        }
        Ok(Self { store: store.clone(), name: name.to_owned() })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.store.writing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
