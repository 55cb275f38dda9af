//! Making a snapshot: its directories, then its record. Its caller is told once the record is on the disk.
//!
//! The directories are flushed later, with many others' (see `fresh`). So a power failure can leave a record without its
//! directories. The next start makes them again, which is why this goes only for what is empty (see
//! [`Driver::is_renewable`]). Which snapshots these can be the records say: each has the lowest number whose directories
//! were not flushed yet when it was written, itself among them. What is lost of any other snapshot is damage, and nobody
//! makes it look whole.

use gantry_proto::containerd::events::SnapshotPrepare;
use gantry_proto::namespace::Namespace;

use super::commit::new_info;
use super::local::{Local, check_key};
use super::{Driver, Info, Kind, Made, Mount, Snapshotter, Usage};
use crate::context::Context;
use crate::error::{Doing, Error, Kind as ErrorKind, Result};
use crate::id;
use crate::labels::{self, Labels};
use crate::metadata::snapshots::{self as table, Record};
use crate::metadata::{Tx, WriteTx};

/// A snapshot to be made.
pub(super) struct New<'a> {
    pub(super) kind: Kind,
    pub(super) key: &'a str,
    pub(super) parent: &'a str,
    /// Its record is on disk when it is made.
    pub(super) lasting: bool,
    /// A layer is put into it alone: its parents are not needed.
    pub(super) layer: bool,
}

impl<D: Driver> Local<D> {
    fn check_new(&self, tx: &impl Tx, ctx: &Context, key: &str, labels: &Labels) -> Result<()> {
        let namespace = ctx.namespace.as_str();
        if let Some(target) = labels.get(labels::SNAPSHOT_REF)
            && table::get(tx, namespace, &self.name, target)?.is_some_and(|it| it.info.kind() == Kind::Committed)
        {
            return Err(Error::already_exists(format!("target snapshot {target:?}: already exists")));
        }
        match table::get(tx, namespace, &self.name, key)? {
            Some(_) => Err(Error::already_exists(format!("snapshot {key:?}: already exists"))),
            None => Ok(()),
        }
    }

    pub(super) fn create(&self, ctx: &Context, new: New<'_>, labels: Labels) -> Result<Vec<Mount>> {
        let New { kind, key, parent, lasting, layer } = new;
        check_key(key)?;
        labels::check(&labels)?;
        let parents = self.db.read(|tx| {
            self.check_new(tx, ctx, key, &labels)?;
            self.chain(tx, ctx, parent)
        });
        let parents = match parents {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.hold_existing(ctx, key, &labels)?;
                return Err(error);
            }
            other => other?,
        };
        let fresh = self.numbering.take();
        let number = fresh.number;
        let flusher = self.flusher.as_ref().filter(|_| lasting && self.numbering.has_room());
        let busy = self.take(number, key)?;
        let made = self.driver.create(number, kind, &parents, &labels).and_then(|made| {
            let target = labels.get(labels::SNAPSHOT_REF).filter(|_| made == Made::Committed);
            let (name, kind) = target.map_or((key, kind), |target| (target.as_str(), Kind::Committed));
            let usage = if target.is_some() { self.driver.usage(number)? } else { Usage::default() };
            let record = |tx: &WriteTx| {
                // Another may have taken the key, or removed the parent, since the look above.
                self.check_new(tx, ctx, key, &labels)?;
                self.parent(tx, ctx, parent)?;
                self.hold_for(tx, ctx, name)?;
                let info = new_info(name, parent, kind, labels.clone());
                let fresh = self.numbering.lowest_fresh();
                let record = Record { info, number, size: usage.size, inodes: usage.inodes, fresh };
                table::put(tx, ctx.namespace.as_str(), &self.name, &record)
            };
            let flusher = flusher.filter(|_| made == Made::Fresh);
            match lasting {
                false => self.db.write_soon(record)?,
                true if flusher.is_some() => self.db.write(record)?,
                true => self.driver.keep(number).and_then(|()| self.db.write(record))?,
            }
            Ok((target, flusher))
        });
        let made = made.map(|(target, flusher)| {
            match flusher {
                Some(flusher) => flusher.later(fresh),
                None => drop(fresh),
            }
            target
        });
        if made.is_err() {
            self.discard(number);
        }
        drop(busy);
        if let Some(target) = made.doing(|| format!("snapshot {key}"))? {
            return Err(Error::already_exists(format!("target snapshot {target:?} from snapshotter: already exists")));
        }
        // Views are not announced, as by containerd.
        if kind == Kind::Active {
            let event = SnapshotPrepare { key: key.into(), parent: parent.into(), snapshotter: self.name.clone() };
            self.events.announce(&ctx.namespace, "/snapshot/prepare", &event);
        }
        let mounts = match layer {
            true => self.driver.layer(number, &labels),
            false => self.driver.mounts(number, kind, &parents, &labels),
        };
        mounts.inspect_err(|_| {
            // To its caller it was not made, and another try must not find it.
            if let Err(error) = self.remove(ctx, key) {
                tracing::warn!(snapshotter = self.name, key, %error, "remove a snapshot that cannot be mounted");
            }
        })
    }

    /// Has the directories of `recent` snapshots flushed that may not be on the disk yet: an earlier daemon may have been
    /// killed before it did. Once after each start of the machine it makes those again that a power failure took.
    pub(super) fn renew(&self, recent: Vec<(String, Record)>) -> Result<()> {
        if !self.driver.is_renewable() {
            return Ok(());
        }
        let boot = id::boot();
        let noted = self.db.read(|tx| table::boot(tx, &self.name));
        let is_anew = matches!((&boot, &noted), (Ok(now), Ok(noted)) if noted.as_ref() != Some(now));
        for (namespace, record) in recent {
            let (number, info) = (record.number, record.info);
            // What layers are unpacked into means nothing any more, and goes with its lease.
            if !matches!(info.kind(), Kind::Active | Kind::View) || info.labels.contains_key(labels::SHORT_LIVED) {
                continue;
            }
            if is_anew && let Err(error) = self.renew_one(&namespace, number, &info) {
                tracing::warn!(snapshotter = self.name, snapshot = info.name, %error, "a snapshot may have lost its files");
                continue;
            }
            match &self.flusher {
                Some(flusher) => flusher.later(self.numbering.again(number)),
                None if is_anew => self.driver.keep(number)?,
                None => {}
            }
        }
        let (boot, _) = (boot?, noted?);
        if is_anew { self.db.write(|tx| table::set_boot(tx, &self.name, &boot)) } else { Ok(()) }
    }

    fn renew_one(&self, namespace: &str, number: u64, info: &Info) -> Result<()> {
        let namespace = Namespace::parse(namespace).map_err(|error| Error::internal(error.to_string()))?;
        let parents = self.db.read(|tx| self.chain(tx, &Context::new(namespace), &info.parent))?;
        self.driver.renew(number, info.kind(), &parents, &info.labels)
    }
}
