//! Room for what comes in: layers of one image, layers of all images, and slices of layers that came before their turn.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AtOnce;

/// Most layers that come in at once, whatever is pulled: each takes threads and memory.
const LAYERS: usize = 32;
/// Bytes of a slice, and most slices that are in memory.
pub(super) const SLICE: u64 = 4 << 20;
const SLICES: usize = 8;

/// Room for all images.
#[derive(Clone)]
pub(super) struct House {
    layers: Arc<Semaphore>,
    slices: Arc<Semaphore>,
}

impl Default for House {
    fn default() -> Self {
        Self { layers: Arc::new(Semaphore::new(LAYERS)), slices: Arc::new(Semaphore::new(SLICES)) }
    }
}

/// Room for one image.
#[derive(Clone)]
pub(super) struct Room {
    /// One place for each connection.
    own: Arc<Semaphore>,
    house: House,
    at_once: AtOnce,
}

impl Room {
    /// A part of the house.
    pub(super) fn new(house: &House, at_once: AtOnce) -> Self {
        Self { own: Arc::new(Semaphore::new(at_once.downloads)), house: house.clone(), at_once }
    }

    /// A place for a layer, until it is dropped. Who has one waits for nobody else's.
    pub(super) async fn place(self) -> (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>) {
        let own = self.own.acquire_owned().await.ok();
        (own, self.house.layers.acquire_owned().await.ok())
    }

    /// Whether a layer of this size may come over several connections.
    pub(super) fn is_large(&self, size: u64) -> bool {
        self.at_once.slices > 1 && size >= self.at_once.large
    }

    /// A place for one more connection of a layer that has `connections`; none where it has as many as it may have, or where
    /// the places are for layers that have none yet.
    pub(super) fn connection(&self, connections: usize) -> Option<OwnedSemaphorePermit> {
        (connections < self.at_once.slices).then(|| self.own.clone().try_acquire_owned().ok())?
    }

    /// Memory for one slice, if there is any.
    pub(super) fn slice(&self) -> Option<OwnedSemaphorePermit> {
        self.house.slices.clone().try_acquire_owned().ok()
    }
}
