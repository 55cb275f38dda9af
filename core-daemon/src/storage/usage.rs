//! What takes space, and what keeps it.

use std::collections::{BTreeMap, HashMap};

use gantry_proto::containerd::services::content::v1::Info;
use gantry_proto::namespace::Namespace;
use prost::Message as _;
use rung_spec::digest::Digest;

use super::Parts;
use crate::context::Context;
use crate::error::Result;
use crate::gc::{Kept, Node};
use crate::metadata::schema::{CONTAINERS, CONTENT, IMAGES};
use crate::metadata::{Tx, namespaces};

/// A kind of thing that takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whatever an image needs, with what it shares with others.
    Image,
    /// What a container has written.
    Container,
    /// A blob.
    Blob,
    /// A snapshot, without its parents.
    Snapshot,
    /// What is or was being fetched.
    Ingest,
    /// A container's log, with what was rotated.
    Log,
}

/// One thing that takes space.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Whose; empty for a file without a record.
    pub namespace: String,
    /// What it is called.
    pub name: String,
    /// Bytes on disk.
    pub size: u64,
    /// What keeps it; empty where nothing does.
    pub kept_by: String,
}

pub(super) fn usage(parts: &Parts) -> Result<Vec<Item>> {
    let (kept, names) = (parts.gc.kept()?, parts.db.read(Names::read)?);
    let mut sizes: HashMap<Node, u64> = names.blobs.iter().map(|(node, size)| (node.clone(), *size)).collect();
    let mut items = Vec::new();
    for node in snapshots(parts, &mut sizes)?.into_iter().chain(names.blobs.into_keys()) {
        let (kind, name) = match &node {
            Node::Snapshot(_, snapshotter, name) => (Kind::Snapshot, format!("{snapshotter}/{name}")),
            node => (Kind::Blob, node.name().to_owned()),
        };
        items.push(item(kind, &node, name, &sizes, &kept));
    }
    for node in names.images {
        let needed: u64 = kept.needed_by(&node).iter().filter_map(|node| sizes.get(node)).sum();
        sizes.insert(node.clone(), needed);
        items.push(item(Kind::Image, &node, node.name().to_owned(), &sizes, &kept));
    }
    for (node, snapshot) in names.containers {
        let written = sizes.get(&snapshot).copied().unwrap_or(0);
        sizes.insert(node.clone(), written);
        items.push(item(Kind::Container, &node, node.name().to_owned(), &sizes, &kept));
    }
    for digest in parts.content.orphans()? {
        let size = parts.content.stored_size(&digest)?;
        let (namespace, kept_by) = (String::new(), String::new());
        items.push(Item { kind: Kind::Blob, namespace, name: digest.to_string(), size, kept_by });
    }
    for (namespace, status) in parts.content.ingests()? {
        let (name, size) = (status.reference, status.offset);
        items.push(Item { kind: Kind::Ingest, namespace, name, size, kept_by: "its time".to_owned() });
    }
    for ((namespace, id), log) in parts.logs.all()? {
        if log.size() > 0 {
            let node = Node::Container(namespace.to_string(), id.to_string());
            let kept_by = kept.root(&node).map_or_else(String::new, |_| node.to_string());
            let (namespace, name, size) = (namespace.to_string(), id.to_string(), log.size());
            items.push(Item { kind: Kind::Log, namespace, name, size, kept_by });
        }
    }
    Ok(items)
}

fn item(kind: Kind, node: &Node, name: String, sizes: &HashMap<Node, u64>, kept: &Kept) -> Item {
    let kept_by = match kept.root(node) {
        Some(root) if root == *node => "itself".to_owned(),
        Some(root) => root.to_string(),
        None => String::new(),
    };
    let size = sizes.get(node).copied().unwrap_or(0);
    Item { kind, namespace: node.namespace().to_owned(), name, size, kept_by }
}

/// What is recorded.
#[derive(Default)]
struct Names {
    blobs: BTreeMap<Node, u64>,
    images: Vec<Node>,
    /// With the snapshots they write to.
    containers: Vec<(Node, Node)>,
}

impl Names {
    fn read(tx: &impl Tx) -> Result<Self> {
        use gantry_proto::containerd::services::containers::v1::Container;
        let mut names = Self::default();
        tx.scan_all(CONTENT, &mut |namespace, digest, bytes| {
            let size = Info::decode(bytes).map_or(0, |info| u64::try_from(info.size).unwrap_or(0));
            // What is recorded and is not there takes no space; a check finds it.
            if Digest::parse(digest).is_ok() {
                names.blobs.insert(Node::Content(namespace.to_owned(), digest.to_owned()), size);
            }
            Ok(())
        })?;
        tx.scan_all(IMAGES, &mut |namespace, name, _| {
            names.images.push(Node::Image(namespace.to_owned(), name.to_owned()));
            Ok(())
        })?;
        tx.scan_all(CONTAINERS, &mut |namespace, id, bytes| {
            let it = Container::decode(bytes).unwrap_or_default();
            let snapshot = Node::Snapshot(namespace.to_owned(), it.snapshotter, it.snapshot_key);
            names.containers.push((Node::Container(namespace.to_owned(), id.to_owned()), snapshot));
            Ok(())
        })?;
        Ok(names)
    }
}

/// All snapshots, and what they take.
fn snapshots(parts: &Parts, sizes: &mut HashMap<Node, u64>) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for namespace in parts.db.read(namespaces::names)? {
        let Ok(name) = Namespace::parse(&namespace) else { continue };
        let context = Context::new(name);
        for (snapshotter, files) in parts.snapshotters.iter() {
            for info in files.list(&context)? {
                // One that went meanwhile takes nothing.
                let size = files.usage(&context, &info.name).map_or(0, |usage| usage.size);
                let node = Node::Snapshot(namespace.clone(), snapshotter.to_owned(), info.name);
                sizes.insert(node.clone(), size);
                nodes.push(node);
            }
        }
    }
    Ok(nodes)
}
