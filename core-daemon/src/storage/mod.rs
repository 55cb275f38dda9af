//! Whether what is stored is whole, what takes space, and why it is kept.

mod check;
pub mod logs;
mod references;
mod snapshots;
mod usage;

use std::sync::Arc;

pub use check::{Finding, Outcome, Report};
pub use logs::Logs;
pub use usage::{Item, Kind};

use crate::content::Content;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::gc::{Gc, Node, Reason};
use crate::metadata::Db;
use crate::snapshots::Snapshotters;

/// All that is stored. Clones are the same.
#[derive(Clone)]
pub struct Storage {
    parts: Arc<Parts>,
}

/// What it consists of.
pub struct Parts {
    /// The records.
    pub db: Db,
    /// Blobs and ingests.
    pub content: Content,
    /// Snapshots.
    pub snapshotters: Snapshotters,
    /// What knows why a thing is kept.
    pub gc: Gc,
    /// Containers' logs.
    pub logs: Logs,
}

impl Storage {
    /// What these parts hold.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Compares records with files. `repair` mends what differs as far as it can be, `deep` reads every blob whole.
    ///
    /// # Errors
    /// When records or directories cannot be read at all. What cannot be mended is a finding.
    pub fn check(&self, repair: bool, deep: bool) -> Result<Report> {
        check::check(&self.parts, repair, deep)
    }

    /// Everything that takes space.
    ///
    /// # Errors
    /// When records or directories cannot be read.
    pub fn usage(&self) -> Result<Vec<Item>> {
        usage::usage(&self.parts)
    }

    /// Everything in the namespace that has one of these names, and the way from what keeps it.
    ///
    /// # Errors
    /// `NotFound` where nothing has.
    pub fn explain(&self, context: &Context, names: &[String]) -> Result<Vec<(Node, Vec<Reason>)>> {
        let kept = self.parts.gc.kept()?;
        let found = kept.find(context.namespace.as_str(), names);
        if found.is_empty() {
            let (namespace, name) = (&context.namespace, names.first().map_or("", String::as_str));
            return Err(Error::not_found(format!(
                "{name}: namespace {namespace} has no image, content, snapshot, container, sandbox or lease of that name"
            )));
        }
        Ok(found.into_iter().map(|node| (node.clone(), kept.way(&node))).collect())
    }
}

#[cfg(test)]
mod tests;
