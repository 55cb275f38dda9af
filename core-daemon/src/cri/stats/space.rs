//! Space on disk. To know it, somebody has to walk over it, so it is known as it was some seconds ago.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::runtime::v1;

use super::convert;
use crate::blocking::blocking;
use crate::cri::store::now;
use crate::cri::{Container, Cri};
use crate::error::Result;
use crate::id::ContainerId;
use crate::snapshots::Usage;

/// How long what was found is good for.
const FRESH: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Default)]
pub(super) struct Space {
    /// Of containers' own layers.
    layers: Mutex<HashMap<String, (Instant, Usage)>>,
    /// Of all snapshots.
    all: tokio::sync::Mutex<Option<(Instant, v1::FilesystemUsage)>>,
    /// Somebody is measuring again what is not fresh any more.
    measuring: AtomicBool,
}

impl Space {
    pub(super) fn keep(&self, keep: impl Fn(&str) -> bool) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(id));
    }

    fn layer(&self, id: &str) -> Option<(Instant, Usage)> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }
}

impl Cri {
    /// What a container has written. The first time it is measured at once; later, what is stale is measured again
    /// behind the answer's back.
    pub(super) fn writable_space(&self, container: &Container) -> Option<Usage> {
        let space = &self.stats().space;
        let id = container.id().as_str();
        let Some((at, usage)) = space.layer(id) else { return self.measure(id) };
        if at.elapsed() > FRESH && !space.measuring.swap(true, Ordering::SeqCst) {
            let cri = self.clone();
            drop(tokio::task::spawn_blocking(move || {
                let space = &cri.stats().space;
                let layers = space.layers.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let stale = layers.into_iter().filter(|(_, (at, _))| at.elapsed() > FRESH / 2);
                for (id, _) in stale {
                    cri.measure(&id);
                }
                space.measuring.store(false, Ordering::SeqCst);
            }));
        }
        Some(usage)
    }

    fn measure(&self, id: &str) -> Option<Usage> {
        let snapshotter = ContainerId::parse(id).and_then(|id| self.snapshotter_of(&id));
        let usage = snapshotter.and_then(|snapshotter| snapshotter.usage(self.context(), id)).ok();
        let mut layers = self.stats().space.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match usage {
            Some(usage) => drop(layers.insert(id.to_owned(), (Instant::now(), usage))),
            None => drop(layers.remove(id)),
        }
        usage
    }

    /// Where snapshots are.
    pub(in crate::cri) fn snapshot_root(&self) -> String {
        let root = self.parts().snapshotters.get("").ok().and_then(|snapshotter| snapshotter.root());
        root.map(|root| root.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Images came or went.
    pub(in crate::cri) async fn space_changed(&self) {
        *self.stats().space.all.lock().await = None;
    }

    /// What all images and containers take where snapshots are.
    pub(in crate::cri) async fn file_system_usage(&self) -> Result<v1::FilesystemUsage> {
        let mut all = self.stats().space.all.lock().await;
        if let Some((at, usage)) = &*all
            && at.elapsed() < FRESH
        {
            return Ok(usage.clone());
        }
        let cri = self.clone();
        let usage = blocking(move || {
            let snapshotter = cri.parts().snapshotters.get("")?;
            let mut total = Usage::default();
            for info in snapshotter.list(cri.context())? {
                // One that is removed meanwhile takes nothing.
                let usage = snapshotter.usage(cri.context(), &info.name).unwrap_or_default();
                total.size += usage.size;
                total.inodes += usage.inodes;
            }
            // Their files are blobs, and no snapshots.
            let (bytes, blobs) = cri.image_names().artifacts();
            total.size += bytes;
            total.inodes += blobs;
            Ok(convert::file_system(now(), &cri.snapshot_root(), total))
        })
        .await?;
        *all = Some((Instant::now(), usage.clone()));
        Ok(usage)
    }
}
