//! Activated mounts end with their owners: a lease, or the objects that their labels name. Those without an owner stay
//! until they are deactivated.

use gantry_proto::namespace::Namespace;

use super::Parts;
use super::mark::is_of;
use crate::error::Result;
use crate::labels::Labels;
use crate::metadata::{Tx, containers, content, images, leases, snapshots};
use crate::mounts::OF_CONTAINER;

const OF_CONTENT: &str = "containerd.io/gc.bref.content";
const OF_IMAGE: &str = "containerd.io/gc.bref.image";
const OF_SNAPSHOT: &str = "containerd.io/gc.bref.snapshot.";

/// Takes down those whose owners are gone; answers with how many could not be.
pub(super) fn sweep(parts: &Parts) -> Result<usize> {
    parts.mounts.sweep(|namespace, labels, lease| {
        let wanted = parts.db.read(|tx| is_wanted(tx, namespace, labels, lease));
        // An owner that cannot be read counts as there.
        wanted.unwrap_or(true)
    })
}

fn is_wanted(tx: &impl Tx, namespace: &Namespace, labels: &Labels, lease: Option<&str>) -> Result<bool> {
    let namespace = namespace.as_str();
    let mut owned = lease.is_some();
    if let Some(lease) = lease
        && leases::get(tx, namespace, lease)?.is_some()
    {
        return Ok(true);
    }
    for (label, value) in labels {
        let there = if is_of(label, OF_CONTAINER) {
            containers::get(tx, namespace, value)?.is_some()
        } else if is_of(label, OF_CONTENT) {
            content::get(tx, namespace, value)?.is_some()
        } else if is_of(label, OF_IMAGE) {
            images::get(tx, namespace, value)?.is_some()
        } else if let Some(rest) = label.strip_prefix(OF_SNAPSHOT) {
            let snapshotter = rest.split('/').next().unwrap_or_default();
            snapshots::get(tx, namespace, snapshotter, value)?.is_some()
        } else {
            continue;
        };
        if there {
            return Ok(true);
        }
        owned = true;
    }
    Ok(!owned)
}
