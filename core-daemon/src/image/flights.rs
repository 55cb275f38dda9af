//! Work that several callers want at once is done by one of them.
//!
//! A pull holds each layer it fetches until the layer is recorded, so that another finds it there. To wait for somebody
//! else's layer while holding some of one's own could wait for ever, so a pull makes its own last first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One at a time does what a key stands for.
#[derive(Clone, Default)]
pub(super) struct Flights {
    known: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

/// The turn, until it is dropped.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Flights {
    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, flight| Arc::strong_count(flight) > 1);
        known.entry(key.to_owned()).or_default().clone()
    }

    /// Waits for the turn.
    pub(super) async fn take(&self, key: &str) -> Turn {
        Turn { _guard: self.of(key).lock_owned().await }
    }

    /// The turn, if nobody has it.
    pub(super) fn try_take(&self, key: &str) -> Option<Turn> {
        Some(Turn { _guard: self.of(key).try_lock_owned().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_stays() {
        let flights = Flights::default();
        let first = flights.take("a").await;
        assert!(flights.try_take("a").is_none());
        let other = flights.try_take("b").expect("another key");
        drop((first, other));
        drop(flights.take("a").await);
        flights.take("c").await;
        assert_eq!(flights.known.lock().expect("lock").len(), 1);
    }
}
