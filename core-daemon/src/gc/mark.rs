//! What is reachable from the roots.

use std::collections::{HashMap, HashSet};
use std::fmt;

use gantry_proto::containerd::services::content::v1::Info;

use super::expiry;
use crate::content;
use crate::error::{Error, Result};
use crate::labels::{self, Labels};
use crate::metadata::schema::{CONTAINERS, CONTENT, IMAGES, LEASE_RESOURCES, LEASES, SANDBOXES, SNAPSHOTS};
use crate::metadata::{Tx, decode, snapshots::Record};
use crate::records;
use crate::snapshots::Snapshotters;

/// An object of a namespace that can be collected, or leads to one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// An image's record.
    Image(String, String),
    /// A blob.
    Content(String, String),
    /// A snapshot: namespace, snapshotter, name.
    Snapshot(String, String, String),
    /// A container.
    Container(String, String),
    /// A lease.
    Lease(String, String),
    /// A sandbox.
    Sandbox(String, String),
}

impl Node {
    /// Whose it is.
    pub fn namespace(&self) -> &str {
        let (Self::Image(namespace, _)
        | Self::Content(namespace, _)
        | Self::Snapshot(namespace, ..)
        | Self::Container(namespace, _)
        | Self::Lease(namespace, _)
        | Self::Sandbox(namespace, _)) = self;
        namespace
    }

    /// What it is called among its kind.
    pub fn name(&self) -> &str {
        let (Self::Image(_, name)
        | Self::Content(_, name)
        | Self::Snapshot(_, _, name)
        | Self::Container(_, name)
        | Self::Lease(_, name)
        | Self::Sandbox(_, name)) = self;
        name
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(_, name) => write!(f, "image {name}"),
            Self::Content(_, digest) => write!(f, "content {digest}"),
            Self::Snapshot(_, snapshotter, name) => write!(f, "snapshot {snapshotter}/{name}"),
            Self::Container(_, id) => write!(f, "container {id}"),
            Self::Lease(_, id) => write!(f, "lease {id}"),
            Self::Sandbox(_, id) => write!(f, "sandbox {id}"),
        }
    }
}

/// Everything there is, and where it leads.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) roots: Vec<Node>,
    pub(super) edges: HashMap<Node, Vec<(String, Node)>>,
    /// What could be swept: blobs and snapshots.
    pub(super) candidates: Vec<Node>,
    /// Expired leases, and images that expired.
    pub(super) expired: Vec<Node>,
    /// When the first of the others expires.
    pub(super) expires: Option<jiff::Timestamp>,
    /// Snapshots that a task runs on. They are roots too, but where something else leads to one, that is given as the
    /// reason.
    in_use: Vec<Node>,
    /// References that hold only if the snapshot was last used as long ago as they say.
    conditions: Vec<Condition>,
    /// When snapshots were last used, as their labels say.
    used: HashMap<Node, jiff::Timestamp>,
    /// Leases that hold without recursion.
    flat: HashSet<Node>,
    /// Why a record could not be read. It might refer to anything, so nothing may be removed then.
    pub(super) unreadable: Option<Error>,
}

/// A reference from an object to a snapshot, on a condition.
struct Condition {
    from: Node,
    label: String,
    to: Node,
    age: Age,
}

/// How long ago something was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Less(jiff::SignedDuration),
    More(jiff::SignedDuration),
}

/// Says of each reachable object what leads to it.
pub(super) type Marked = HashMap<Node, Option<(String, Node)>>;

impl Graph {
    pub(super) fn read(tx: &impl Tx, snapshotters: &Snapshotters) -> Result<Self> {
        let mut graph = Self::default();
        let node = |(namespace, snapshotter, key)| Node::Snapshot(namespace, snapshotter, key);
        graph.in_use = snapshotters.used().into_iter().map(node).collect();
        let now = jiff::Timestamp::now();
        graph.images(tx, now)?;
        graph.leases(tx, now)?;
        graph.content(tx)?;
        graph.snapshots(tx)?;
        graph.containers(tx)?;
        graph.decide(now);
        Ok(graph)
    }

    /// Makes references of those conditions that are met.
    fn decide(&mut self, now: jiff::Timestamp) {
        for Condition { from, label, to, age } in std::mem::take(&mut self.conditions) {
            let Some(used) = self.used.get(&to) else { continue };
            let since = now.duration_since(*used);
            let is_met = match age {
                Age::Less(limit) => since < limit,
                Age::More(limit) => since > limit,
            };
            if is_met {
                self.edge(&from, &label, to);
            }
        }
    }

    /// A record, if it can be read.
    fn record<M: prost::Message + Default>(&mut self, bytes: &[u8], key: &str) -> Option<M> {
        decode(bytes, key).map_err(|error| self.unreadable = Some(error)).ok()
    }

    fn root(&mut self, node: Node) {
        self.roots.push(node);
    }

    fn edge(&mut self, from: &Node, by: &str, to: Node) {
        self.edges.entry(from.clone()).or_default().push((by.to_owned(), to));
    }

    fn images(&mut self, tx: &impl Tx, now: jiff::Timestamp) -> Result<()> {
        tx.scan_all(IMAGES, &mut |namespace, name, bytes| {
            let Some(image) = self.record::<records::images::Image>(bytes, name) else { return Ok(()) };
            let node = Node::Image(namespace.to_owned(), name.to_owned());
            if self.has_expired(&image.labels, now) {
                self.expired.push(node.clone());
            } else {
                self.root(node.clone());
            }
            if let Some(target) = &image.target {
                self.edge(&node, "target", Node::Content(namespace.to_owned(), target.digest.clone()));
            }
            self.references(namespace, &node, &image.labels);
            Ok(())
        })
    }

    fn leases(&mut self, tx: &impl Tx, now: jiff::Timestamp) -> Result<()> {
        let mut expired = HashSet::new();
        tx.scan_all(LEASES, &mut |namespace, id, bytes| {
            let Some(lease) = self.record::<records::leases::Lease>(bytes, id) else { return Ok(()) };
            let node = Node::Lease(namespace.to_owned(), id.to_owned());
            if lease.labels.contains_key(labels::GC_FLAT) {
                self.flat.insert(node.clone());
            }
            if self.has_expired(&lease.labels, now) {
                expired.insert(node.clone());
                self.expired.push(node);
            } else {
                self.root(node.clone());
                self.references(namespace, &node, &lease.labels);
            }
            Ok(())
        })?;
        tx.scan_all(LEASE_RESOURCES, &mut |namespace, key, _| {
            let mut parts = key.splitn(3, '\0');
            let (Some(lease), Some(kind), Some(id)) = (parts.next(), parts.next(), parts.next()) else { return Ok(()) };
            let node = Node::Lease(namespace.to_owned(), lease.to_owned());
            if !expired.contains(&node)
                && let Some(held) = resource(namespace, kind, id)
            {
                self.edge(&node, "holds", held);
            }
            Ok(())
        })
    }

    /// Whether something with these labels has expired; else it is noted when it will.
    fn has_expired(&mut self, labels: &Labels, now: jiff::Timestamp) -> bool {
        let Some(at) = expiry::of(labels) else { return false };
        if at >= now {
            self.expires = Some(self.expires.map_or(at, |other| other.min(at)));
        }
        at < now
    }

    fn content(&mut self, tx: &impl Tx) -> Result<()> {
        tx.scan_all(CONTENT, &mut |namespace, digest, bytes| {
            let Some(info) = self.record::<Info>(bytes, digest) else { return Ok(()) };
            let node = Node::Content(namespace.to_owned(), digest.to_owned());
            self.candidate(namespace, node, &info.labels);
            Ok(())
        })
    }

    fn snapshots(&mut self, tx: &impl Tx) -> Result<()> {
        tx.scan_all(SNAPSHOTS, &mut |namespace, key, bytes| {
            let Some(Record { info, .. }) = self.record(bytes, key) else { return Ok(()) };
            let Some((snapshotter, name)) = key.split_once('\0') else { return Ok(()) };
            let of = |name: &str| Node::Snapshot(namespace.to_owned(), snapshotter.to_owned(), name.to_owned());
            let node = of(name);
            if !info.parent.is_empty() {
                self.edge(&node, "parent", of(&info.parent));
            }
            if let Some(used) = info.labels.get(labels::GC_COND_USED_AT).and_then(|text| text.parse().ok()) {
                self.used.insert(node.clone(), used);
            }
            self.candidate(namespace, node, &info.labels);
            Ok(())
        })
    }

    fn containers(&mut self, tx: &impl Tx) -> Result<()> {
        use gantry_proto::containerd::services::containers::v1::Container;
        use gantry_proto::containerd::types::Sandbox;
        tx.scan_all(CONTAINERS, &mut |namespace, id, bytes| {
            let Some(container) = self.record::<Container>(bytes, id) else { return Ok(()) };
            let node = Node::Container(namespace.to_owned(), id.to_owned());
            self.root(node.clone());
            if !container.snapshot_key.is_empty() {
                let snapshot = Node::Snapshot(namespace.to_owned(), container.snapshotter, container.snapshot_key);
                self.edge(&node, "uses", snapshot);
            }
            self.references(namespace, &node, &container.labels);
            Ok(())
        })?;
        tx.scan_all(SANDBOXES, &mut |namespace, id, bytes| {
            let Some(sandbox) = self.record::<Sandbox>(bytes, id) else { return Ok(()) };
            let node = Node::Sandbox(namespace.to_owned(), id.to_owned());
            self.root(node.clone());
            self.references(namespace, &node, &sandbox.labels);
            Ok(())
        })
    }

    fn candidate(&mut self, namespace: &str, node: Node, labels: &Labels) {
        if labels.contains_key(labels::GC_ROOT) {
            self.root(node.clone());
        }
        self.references(namespace, &node, labels);
        self.candidates.push(node);
    }

    /// The references that labels say.
    fn references(&mut self, namespace: &str, node: &Node, labels: &Labels) {
        let own = |text: &str| text.to_owned();
        for (key, value) in labels {
            if let Some(rest) = key.strip_prefix(labels::GC_REF_SNAPSHOT) {
                // A name may be followed by a number: gc.ref.snapshot.overlayfs/1.
                let snapshotter = rest.split('/').next().unwrap_or(rest);
                self.edge(node, key, Node::Snapshot(own(namespace), own(snapshotter), own(value)));
            } else if let Some(rest) = key.strip_prefix(labels::GC_COND_SNAPSHOT) {
                let snapshotter = rest.trim_start_matches(['.', '/']).split('/').next().unwrap_or_default();
                let Some((ages, name)) = value.split_once('|') else { continue };
                let to = Node::Snapshot(own(namespace), own(snapshotter), own(name));
                let condition = |age| Condition { from: node.clone(), label: key.clone(), to: to.clone(), age };
                self.conditions.extend(ages.split(',').filter_map(used_at).map(condition));
            } else if is_of(key, labels::GC_REF_CONTENT) {
                self.edge(node, key, Node::Content(own(namespace), own(value)));
            } else if is_of(key, labels::GC_REF_IMAGE) {
                self.edge(node, key, Node::Image(own(namespace), own(value)));
            } else if let Some(kind) = key.strip_prefix(labels::GC_BACK_REF)
                && let Some(keeper) = back_reference(namespace, kind, value)
            {
                self.edge(&keeper, key, node.clone());
            }
        }
    }

    /// Everything that the roots lead to.
    pub(super) fn mark(&self) -> Marked {
        let mut marked: Marked = self.roots.iter().map(|root| (root.clone(), None)).collect();
        // The last one is taken first, so the roots proper come before the snapshots in use.
        let mut waiting: Vec<Node> = self.in_use.iter().chain(&self.roots).cloned().collect();
        // A flat lease keeps what it holds, but not what that refers to, except what it could not exist without: a
        // snapshot's parents, and the target of an image.
        let mut held_flat = Vec::new();
        while let Some(node) = waiting.pop() {
            marked.entry(node.clone()).or_insert(None);
            for (by, to) in self.edges.get(&node).into_iter().flatten() {
                if self.flat.contains(&node) {
                    held_flat.push((by.clone(), node.clone(), to.clone()));
                } else if !marked.contains_key(to) {
                    marked.insert(to.clone(), Some((by.clone(), node.clone())));
                    waiting.push(to.clone());
                }
            }
        }
        while let Some((by, from, to)) = held_flat.pop() {
            if marked.contains_key(&to) {
                continue;
            }
            marked.insert(to.clone(), Some((by, from)));
            let essential =
                self.edges.get(&to).into_iter().flatten().filter(|(by, _)| by == "parent" || by == "target");
            held_flat.extend(essential.map(|(by, next)| (by.clone(), to.clone(), next.clone())));
        }
        marked
    }
}

/// Whether a label is `name`, or that with `.x` or `/x` behind it.
pub(super) fn is_of(label: &str, name: &str) -> bool {
    label.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

/// A condition such as `usedat<24h`; others are not known, and never met.
fn used_at(text: &str) -> Option<Age> {
    let rest = text.strip_prefix("usedat")?;
    match (rest.strip_prefix('<'), rest.strip_prefix('>')) {
        (Some(limit), _) => limit.parse().ok().map(Age::Less),
        (_, Some(limit)) => limit.parse().ok().map(Age::More),
        _ => None,
    }
}

fn resource(namespace: &str, kind: &str, id: &str) -> Option<Node> {
    let namespace = namespace.to_owned();
    match kind.split_once('/') {
        None if kind == content::RESOURCE => Some(Node::Content(namespace, id.to_owned())),
        None if kind == records::images::RESOURCE => Some(Node::Image(namespace, id.to_owned())),
        Some(("snapshots", name)) => Some(Node::Snapshot(namespace, name.to_owned(), id.to_owned())),
        _ => None,
    }
}

/// What keeps an object that says so itself: `container`, `content`, `image` or `snapshot.<name>`.
fn back_reference(namespace: &str, kind: &str, value: &str) -> Option<Node> {
    let (namespace, value) = (namespace.to_owned(), value.to_owned());
    let kind = kind.split('/').next().unwrap_or(kind);
    match kind.split_once('.').unwrap_or((kind, "")) {
        ("container", _) => Some(Node::Container(namespace, value)),
        ("content", _) => Some(Node::Content(namespace, value)),
        ("image", _) => Some(Node::Image(namespace, value)),
        ("snapshot", name) if !name.is_empty() => Some(Node::Snapshot(namespace, name.to_owned(), value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read() {
        let hours = jiff::SignedDuration::from_hours;
        assert_eq!(used_at("usedat<24h"), Some(Age::Less(hours(24))));
        assert_eq!(used_at("usedat>1h30m"), Some(Age::More(hours(1) + jiff::SignedDuration::from_mins(30))));
        for other in ["usedat<=24h", "usedat=24h", "usedat", "size<3", "usedat<soon"] {
            assert_eq!(used_at(other), None, "{other}");
        }
    }
}
