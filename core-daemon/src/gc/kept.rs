//! What keeps each thing, and what each thing keeps.

use std::collections::{BTreeSet, HashSet};

use super::mark::{Graph, Marked, Node};
use crate::error::Result;
use crate::metadata::Tx;
use crate::snapshots::Snapshotters;

/// Fewest characters of a digest or an id that stand for it.
const MIN_PREFIX: usize = 4;

/// One step of the way from a root to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What refers.
    pub node: Node,
    /// By what: a label, `target`, `parent`, `holds`, `uses`; empty for a root.
    pub by: String,
}

/// Everything there is at one moment, and what leads to it.
pub struct Kept {
    graph: Graph,
    marked: Marked,
}

impl Kept {
    pub(super) fn read(tx: &impl Tx, snapshotters: &Snapshotters) -> Result<Self> {
        let graph = Graph::read(tx, snapshotters)?;
        let marked = graph.mark();
        Ok(Self { graph, marked })
    }

    /// The way from a root down to an object; empty where nothing keeps it.
    pub fn way(&self, node: &Node) -> Vec<Reason> {
        let mut way = Vec::new();
        let mut at = node.clone();
        while let Some(from) = self.marked.get(&at) {
            let by = from.as_ref().map(|(by, _)| by.clone()).unwrap_or_default();
            way.push(Reason { node: at.clone(), by });
            match from {
                Some((_, next)) => at = next.clone(),
                None => break,
            }
        }
        way.reverse();
        way
    }

    /// The root that keeps an object, if one does.
    pub fn root(&self, node: &Node) -> Option<Node> {
        self.way(node).into_iter().next().map(|reason| reason.node)
    }

    /// Everything that a node leads to, itself too.
    pub fn needed_by(&self, node: &Node) -> HashSet<Node> {
        let mut needed = HashSet::from([node.clone()]);
        let mut waiting = vec![node.clone()];
        while let Some(node) = waiting.pop() {
            for (_, to) in self.graph.edges.get(&node).into_iter().flatten() {
                if needed.insert(to.clone()) {
                    waiting.push(to.clone());
                }
            }
        }
        needed
    }

    /// Everything that images lead to. Anything else is part of a pull in progress, or about to be collected.
    pub fn of_images(&self) -> HashSet<Node> {
        let images = self.graph.roots.iter().filter(|node| matches!(node, Node::Image(..)));
        images.flat_map(|image| self.needed_by(image)).collect()
    }

    /// What is called one of `names` in a namespace, or begins with it where it is a digest or an id.
    pub fn find(&self, namespace: &str, names: &[String]) -> BTreeSet<Node> {
        let all = self.graph.roots.iter().chain(&self.graph.candidates).chain(&self.graph.expired);
        let of_it = all.filter(|node| node.namespace() == namespace);
        of_it.filter(|node| names.iter().any(|name| is_called(node, name))).cloned().collect()
    }
}

fn is_called(node: &Node, text: &str) -> bool {
    let name = node.name();
    let begins = |name: &str| text.len() >= MIN_PREFIX && name.starts_with(text);
    match node {
        _ if name == text => true,
        Node::Content(..) | Node::Snapshot(..) => match name.split_once(':') {
            // The algorithm alone names nothing.
            Some((algorithm, hex)) => begins(hex) || (text.len() >= algorithm.len() + 1 + MIN_PREFIX && begins(name)),
            None => false,
        },
        Node::Container(..) | Node::Sandbox(..) => begins(name),
        _ => false,
    }
}
