//! Committing: a writable snapshot's files become what others stand on.

use std::time::SystemTime;

use gantry_proto::containerd::events::SnapshotCommit;

use super::local::Local;
use super::{Driver, Info, Kind, Layer, Usage};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::labels::{self, Labels};
use crate::metadata::snapshots::{self as table, Record};
use crate::metadata::{Tx, WriteTx, leases};

impl<D: Driver> Local<D> {
    pub(super) fn commit_one(&self, tx: &WriteTx, ctx: &Context, layer: &Layer, usage: Usage) -> Result<()> {
        let Layer { name, key, parent, labels } = layer;
        let namespace = ctx.namespace.as_str();
        let record = self.committable(tx, ctx, name, key)?;
        self.parent(tx, ctx, parent)?;
        table::delete(tx, namespace, &self.name, &record)?;
        if let Some(lease) = &ctx.lease {
            leases::release(tx, namespace, lease, &format!("snapshots/{}", self.name), key)?;
        }
        self.hold_for(tx, ctx, name)?;
        let info = new_info(name, parent, Kind::Committed, labels.clone());
        let Usage { size, inodes } = usage;
        let committed = Record { info, number: record.number, size, inodes, fresh: record.fresh };
        table::put(tx, namespace, &self.name, &committed)
    }

    pub(super) fn announce_commit(&self, ctx: &Context, layer: &Layer) {
        let (key, name) = (layer.key.clone(), layer.name.clone());
        let event = SnapshotCommit { key, name, snapshotter: self.name.clone() };
        self.events.announce(&ctx.namespace, "/snapshot/commit", &event);
    }

    pub(super) fn committable(&self, tx: &impl Tx, ctx: &Context, name: &str, key: &str) -> Result<Record> {
        // A client that repeats a commit, whose source is gone with the first, is told that it is done.
        if table::get(tx, ctx.namespace.as_str(), &self.name, name)?.is_some() {
            return Err(Error::already_exists(format!("snapshot {name:?}: already exists")));
        }
        let record = self.find(tx, ctx, key)?;
        if record.info.kind() != Kind::Active {
            return Err(Error::precondition(format!("snapshot {key} is not active")));
        }
        Ok(record)
    }

    /// Has a layer's files take the place of damaged ones, and says whether they were. Whatever stands on the snapshot stands
    /// on the new ones then; what is left of the old ones no record names.
    pub(super) fn replace_damaged(&self, tx: &WriteTx, ctx: &Context, layer: &Layer, usage: Usage) -> Result<bool> {
        let (namespace, Layer { name, key, parent, .. }) = (ctx.namespace.as_str(), layer);
        let damaged = table::get(tx, namespace, &self.name, name)?.filter(|it| {
            it.info.kind() == Kind::Committed && it.info.parent == *parent && self.driver.is_lost(it.number)
        });
        let Some(mut record) = damaged else { return Ok(false) };
        let fresh = self.find(tx, ctx, key)?;
        table::delete(tx, namespace, &self.name, &fresh)?;
        leases::release_for(tx, ctx, &format!("snapshots/{}", self.name), key)?;
        (record.number, record.size, record.inodes) = (fresh.number, usage.size, usage.inodes);
        table::put(tx, namespace, &self.name, &record)?;
        tracing::warn!(
            snapshotter = self.name,
            snapshot = name,
            "the files of a snapshot were damaged, and are replaced"
        );
        Ok(true)
    }
}

pub(super) fn chosen_parent(info: &Info, parent: Option<&str>) -> Result<String> {
    match parent.filter(|parent| !parent.is_empty()) {
        Some(parent) if !info.parent.is_empty() && info.parent != parent => {
            let Info { name, parent: own, .. } = info;
            Err(Error::invalid(format!("snapshot {name} has the parent {own}: it cannot become {parent}")))
        }
        Some(parent) => Ok(parent.to_owned()),
        None => Ok(info.parent.clone()),
    }
}

pub(super) fn new_info(name: &str, parent: &str, kind: Kind, mut labels: Labels) -> Info {
    labels::drop_empty(&mut labels);
    let now = Some(SystemTime::now().into());
    Info { name: name.into(), parent: parent.into(), kind: kind.into(), created_at: now, updated_at: now, labels }
}
