//! References: what images, labels and leases name is there.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use gantry_proto::containerd::services::content::v1::Info;
use gantry_proto::containerd::services::images::v1::Image;
use prost::Message as _;

use super::check::{Check, Problem};
use crate::content;
use crate::error::Result;
use crate::gc::Node;
use crate::labels::{self, Labels};
use crate::metadata::schema::{CONTENT, IMAGES, LEASE_RESOURCES, LEASES, SNAPSHOTS, Table, join};
use crate::metadata::{Tx, content as blobs};
use crate::records;

/// An index names images of other platforms too, which nobody has fetched.
const OF_INDEX: &str = "containerd.io/gc.ref.content.m.";

/// Seconds in which a client may make what it has put under its lease.
const YOUNG: i64 = 3600;

/// Names of one kind: namespace and key.
type Names = BTreeSet<(String, String)>;

/// What there is at one moment.
struct There {
    content: Names,
    images: Names,
    leases: Names,
    /// Leases whose client may be about to make what they hold.
    young: Names,
    /// Keys as in their table.
    snapshots: Names,
    labels: Vec<((String, String), Labels)>,
    targets: Vec<((String, String), String)>,
    held: Names,
}

pub(super) fn check(check: &mut Check<'_>) -> Result<()> {
    // A pull that is going on labels its content before all of it is there. Asked first: what an image leads to now was
    // all there before.
    let of_images = check.parts.gc.kept()?.of_images();
    let there = check.parts.db.read(There::read)?;
    check.looked(there.held.len());
    for ((namespace, name), target) in &there.targets {
        if !there.content.contains(&(namespace.clone(), target.clone())) {
            let (object, problem) = (format!("image {name}"), format!("its target {target} is not recorded"));
            check.leave(Problem { kind: "image-target", namespace, object, problem }, "pull it again, or remove it");
        }
    }
    there.labels(check, &of_images);
    there.leases(check)
}

fn keys(tx: &impl Tx, table: Table) -> Result<Names> {
    let mut names = Names::new();
    tx.scan_all(table, &mut |namespace, key, _| {
        names.insert((namespace.to_owned(), key.to_owned()));
        Ok(())
    })?;
    Ok(names)
}

impl There {
    fn read(tx: &impl Tx) -> Result<Self> {
        let (mut labels, mut targets) = (Vec::new(), Vec::new());
        tx.scan_all(CONTENT, &mut |namespace, key, bytes| {
            if let Ok(info) = Info::decode(bytes)
                && !info.labels.is_empty()
            {
                labels.push(((namespace.to_owned(), key.to_owned()), info.labels));
            }
            Ok(())
        })?;
        tx.scan_all(IMAGES, &mut |namespace, name, bytes| {
            let target = Image::decode(bytes).ok().and_then(|image| image.target);
            targets.extend(target.map(|target| ((namespace.to_owned(), name.to_owned()), target.digest)));
            Ok(())
        })?;
        let (content, images, leases) = (keys(tx, CONTENT)?, keys(tx, IMAGES)?, keys(tx, LEASES)?);
        let (mut young, now) = (Names::new(), jiff::Timestamp::now().as_second());
        tx.scan_all(LEASES, &mut |namespace, id, bytes| {
            let made = records::leases::Lease::decode(bytes).ok().and_then(|lease| lease.created_at);
            if made.is_some_and(|at| now - at.seconds < YOUNG) {
                young.insert((namespace.to_owned(), id.to_owned()));
            }
            Ok(())
        })?;
        let (snapshots, held) = (keys(tx, SNAPSHOTS)?, keys(tx, LEASE_RESOURCES)?);
        Ok(Self { content, images, leases, young, snapshots, labels, targets, held })
    }

    /// What a label on content refers to.
    fn lacks(&self, namespace: &str, label: &str, value: &str) -> Option<String> {
        let at = |key: String| (namespace.to_owned(), key);
        let value = value.to_owned();
        let (kind, is_there) = if let Some(snapshotter) = label.strip_prefix(labels::GC_REF_SNAPSHOT) {
            let snapshotter = snapshotter.split('/').next().unwrap_or(snapshotter);
            ("snapshot", self.snapshots.contains(&at(join(&[snapshotter, &value]))))
        } else if label.starts_with(labels::GC_REF_IMAGE) {
            ("image", self.images.contains(&at(value.clone())))
        } else if label.starts_with(labels::GC_REF_CONTENT) && !label.starts_with(OF_INDEX) {
            ("content", self.content.contains(&at(value.clone())))
        } else {
            return None;
        };
        (!is_there).then(|| format!("label {label} names {kind} {value}, which is gone"))
    }

    fn labels(&self, check: &mut Check<'_>, of_images: &HashSet<Node>) {
        for ((namespace, digest), all) in &self.labels {
            if !of_images.contains(&Node::Content(namespace.clone(), digest.clone())) {
                continue;
            }
            for (label, value) in all {
                let Some(problem) = self.lacks(namespace, label, value) else { continue };
                let what = Problem { kind: "reference", namespace, object: format!("content {digest}"), problem };
                if label.starts_with(labels::GC_REF_CONTENT) {
                    // Without the label nobody would know what is missing.
                    check.leave(what, "pull its image again");
                    continue;
                }
                check.mend(what, "remove the label", |parts| {
                    parts.db.write(|tx| {
                        let Some(mut info) = blobs::get(tx, namespace, digest)? else { return Ok(None) };
                        if info.labels.get(label) == Some(value) {
                            info.labels.remove(label);
                            blobs::put(tx, namespace, &info)?;
                        }
                        Ok(None)
                    })
                });
            }
        }
    }

    fn leases(&self, check: &mut Check<'_>) -> Result<()> {
        let mut ingests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (namespace, status) in check.parts.content.ingests()? {
            ingests.entry(namespace).or_default().insert(status.reference);
        }
        for (namespace, key) in &self.held {
            let mut parts = key.splitn(3, '\0');
            let (Some(lease), Some(kind), Some(id)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let at = |key: String| (namespace.clone(), key);
            let problem = if !self.leases.contains(&at(lease.to_owned())) {
                format!("holds {kind} {id}, but is gone itself")
            } else {
                let is_there = match kind.split_once('/') {
                    None if kind == content::RESOURCE => self.content.contains(&at(id.to_owned())),
                    None if kind == records::images::RESOURCE => self.images.contains(&at(id.to_owned())),
                    None => ingests.get(namespace).is_some_and(|all| all.contains(id)),
                    Some((_, snapshotter)) => self.snapshots.contains(&at(join(&[snapshotter, id]))),
                };
                if is_there || self.young.contains(&at(lease.to_owned())) {
                    continue;
                }
                format!("holds {kind} {id}, which is gone")
            };
            let what = Problem { kind: "lease-resource", namespace, object: format!("lease {lease}"), problem };
            check.mend(what, "let go of it", |parts| {
                parts.db.write(|tx| tx.delete(LEASE_RESOURCES, namespace, key)).map(|_| None)
            });
        }
        Ok(())
    }
}
