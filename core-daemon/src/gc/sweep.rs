//! Removal of what is not marked.

use std::collections::{HashMap, HashSet};

use gantry_proto::containerd::events::SnapshotRemove;
use gantry_proto::containerd::services::images::v1::ImageDelete;
use gantry_proto::namespace::Namespace;

use super::Parts;
use super::mark::{Graph, Node};
use crate::content;
use crate::error::Result;
use crate::metadata::schema::{LEASE_RESOURCES, join};
use crate::metadata::{Tx, WriteTx, content as blobs, images, leases, snapshots};
use crate::snapshots::Snapshotters;

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs whose bytes are gone.
    pub blobs: usize,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// Snapshots.
    pub snapshots: usize,
    /// Leases and images that had expired.
    pub expired: usize,
    /// Things that could not be removed; they are tried again.
    pub failed: usize,
}

impl Swept {
    /// Nothing was removed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

pub(super) fn sweep(parts: &Parts) -> Result<Swept> {
    let mut swept = Swept::default();
    // Most runs find nothing, and a read transaction is enough to know that: it does not keep writers waiting.
    parts.expiry.forget();
    let found = parts.db.read(|tx| find(tx, &parts.snapshotters))?;
    if let Some(at) = found.expires {
        parts.expiry.note(at);
    }
    if !(found.doomed.is_empty() && found.expired.is_empty()) {
        let gone = parts.db.write(|tx| remove_records(tx, &parts.snapshotters))?;
        swept.expired = gone.iter().filter(|node| matches!(node, Node::Image(..) | Node::Lease(..))).count();
        swept.snapshots = gone.iter().filter(|node| matches!(node, Node::Snapshot(..))).count();
        announce(parts, &gone);
    }
    for (name, snapshotter) in parts.snapshotters.iter() {
        swept.failed += snapshotter.cleanup().unwrap_or_else(|error| {
            tracing::warn!(snapshotter = name, %error, "cleanup failed");
            1
        });
    }
    swept.failed += super::mounts::sweep(parts)?;
    reclaim(parts, &mut swept)?;
    let held = held_ingests(parts)?;
    parts.content.expire_ingests(|namespace, reference| {
        held.get(namespace).is_some_and(|references| references.contains(reference))
    })?;
    parts.content.expire_damaged()?;
    Ok(swept)
}

/// What there is to do.
struct Found {
    /// What is not reachable.
    doomed: Vec<Node>,
    /// What has expired, and nothing else keeps.
    expired: Vec<Node>,
    /// When the next expires.
    expires: Option<jiff::Timestamp>,
}

fn find(tx: &impl Tx, snapshotters: &Snapshotters) -> Result<Found> {
    let graph = Graph::read(tx, snapshotters)?;
    if let Some(error) = graph.unreadable {
        return Err(error.context("collect nothing; mend it with `gantry system fsck --repair`"));
    }
    let marked = graph.mark();
    let doomed = graph.candidates.iter().filter(|node| !marked.contains_key(*node)).cloned().collect();
    let expired = graph.expired.into_iter().filter(|node| !marked.contains_key(node)).collect();
    Ok(Found { doomed, expired, expires: graph.expires })
}

fn remove_records(tx: &WriteTx, snapshotters: &Snapshotters) -> Result<Vec<Node>> {
    let Found { mut doomed, expired, .. } = find(tx, snapshotters)?;
    for node in &expired {
        match node {
            Node::Lease(namespace, id) => drop(leases::delete(tx, namespace, id)?),
            Node::Image(namespace, name) => drop(images::delete(tx, namespace, name)?),
            _ => {}
        }
    }
    for node in &doomed {
        match node {
            Node::Content(namespace, digest) => drop(blobs::delete(tx, namespace, digest)?),
            // A whole unreachable chain goes at once: children are unreachable when their parent is.
            Node::Snapshot(namespace, snapshotter, name) => {
                if let Some(record) = snapshots::get(tx, namespace, snapshotter, name)? {
                    snapshots::delete(tx, namespace, snapshotter, &record)?;
                }
            }
            _ => {}
        }
    }
    doomed.extend(expired);
    Ok(doomed)
}

fn announce(parts: &Parts, gone: &[Node]) {
    for node in gone {
        match node {
            Node::Image(namespace, name) => {
                if let Ok(namespace) = Namespace::parse(namespace) {
                    parts.events.announce(&namespace, "/images/delete", &ImageDelete { name: name.clone() });
                }
            }
            Node::Snapshot(namespace, snapshotter, key) => {
                if let Ok(namespace) = Namespace::parse(namespace) {
                    let event = SnapshotRemove { key: key.clone(), snapshotter: snapshotter.clone() };
                    parts.events.announce(&namespace, "/snapshot/remove", &event);
                }
            }
            _ => {}
        }
    }
}

/// Removes the bytes of blobs that no namespace has any more.
fn reclaim(parts: &Parts, swept: &mut Swept) -> Result<()> {
    for digest in &parts.content.orphans()? {
        match parts.content.reclaim(digest) {
            Ok(Some(bytes)) => {
                swept.blobs += 1;
                swept.bytes += bytes;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%digest, %error, "left a blob that nothing refers to");
                swept.failed += 1;
            }
        }
    }
    Ok(())
}

/// References of ingests that leases hold, by namespace.
fn held_ingests(parts: &Parts) -> Result<HashMap<String, HashSet<String>>> {
    let mut held: HashMap<String, HashSet<String>> = HashMap::new();
    let kind = join(&["", content::INGEST_RESOURCE, ""]);
    parts.db.read(|tx| {
        tx.scan_all(LEASE_RESOURCES, &mut |namespace, key, _| {
            if let Some((_, reference)) = key.split_once(kind.as_str()) {
                held.entry(namespace.to_owned()).or_default().insert(reference.to_owned());
            }
            Ok(())
        })
    })?;
    Ok(held)
}
