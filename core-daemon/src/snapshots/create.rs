//! Making a snapshot: its directories, then its record. Its caller is told once both are on the disk.
//!
//! The one is flushed while the other is: two flushes in a row would take longer. So a power failure can leave a
//! record without its directories, of a snapshot that nobody was told of. The next start makes them again, which is why
//! this goes only for what is empty (see [`Driver::is_renewable`]). Which snapshots these can be the records say:
//! each has the lowest number whose directories were not flushed yet when it was written, itself among them. What is lost
//! of any other snapshot is damage, and nobody makes it look whole.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::containerd::events::SnapshotPrepare;
use gantry_proto::namespace::Namespace;

use super::commit::new_info;
use super::local::{Local, check_key};
use super::{Driver, Kind, Made, Mount, Snapshotter, Usage};
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

/// Gives numbers, and knows those whose directories are not on the disk yet.
pub(super) struct Numbering(Mutex<Numbers>);

struct Numbers {
    next: u64,
    fresh: BTreeSet<u64>,
}

impl Numbering {
    /// The first number is the one after `highest`.
    pub(super) fn after(highest: u64) -> Self {
        Self(Mutex::new(Numbers { next: highest + 1, fresh: BTreeSet::new() }))
    }

    /// A number, which is fresh until this is dropped.
    fn take(&self) -> Fresh<'_> {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = numbers.next;
        numbers.next += 1;
        numbers.fresh.insert(number);
        Fresh { all: self, number }
    }

    /// The lowest fresh number; the next one where there is none.
    fn lowest_fresh(&self) -> u64 {
        let numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.fresh.first().copied().unwrap_or(numbers.next)
    }
}

struct Fresh<'a> {
    all: &'a Numbering,
    number: u64,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).fresh.remove(&self.number);
    }
}

/// A thread that flushes beside whoever makes a snapshot. It waits for that: on a busy machine one that is only started
/// would be the last to have its turn.
pub(super) struct Flusher(SyncSender<(u64, SyncSender<Result<()>>)>);

impl Flusher {
    /// Starts it for what `driver` keeps. It ends with this.
    pub(super) fn start<D: Driver>(driver: &Arc<D>) -> Result<Self> {
        let (to, from) = sync_channel::<(u64, SyncSender<Result<()>>)>(0);
        let driver = driver.clone();
        std::thread::Builder::new().name("gantryd-flush".to_owned()).spawn(move || {
            for (number, tell) in from {
                // Who does not wait for it any more does not miss it.
                drop(tell.send(driver.keep(number)));
            }
        })?;
        Ok(Self(to))
    }

    /// Begins to flush a number, and tells when it is done; none where it is at another, which is not waited for.
    fn begin(&self, number: u64) -> Option<Receiver<Result<()>>> {
        let (tell, told) = sync_channel(1);
        self.0.try_send((number, tell)).ok().map(|()| told)
    }
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
            match lasting {
                false => self.db.write_soon(record)?,
                true if made == Made::Fresh && self.driver.is_renewable() => {
                    self.keep_beside(number, || self.db.write(record))?
                        .inspect_err(|_| self.forget(ctx, name, number))?;
                }
                true => self.driver.keep(number).and_then(|()| self.db.write(record))?,
            }
            Ok(target)
        });
        drop(fresh);
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

    /// Flushes what was made for a number while `record` writes what is recorded of it. An error of the flush comes inside:
    /// the record is there then.
    fn keep_beside(&self, number: u64, record: impl FnOnce() -> Result<()>) -> Result<Result<()>> {
        let Some(told) = self.flusher.as_ref().and_then(|flusher| flusher.begin(number)) else {
            self.driver.keep(number)?;
            return record().map(Ok);
        };
        let recorded = record();
        let kept = told.recv().unwrap_or_else(|_| Err(Error::internal("the flush of a snapshot ended")));
        recorded.map(|()| kept)
    }

    /// Takes back the record of a snapshot whose directories cannot be flushed.
    fn forget(&self, ctx: &Context, name: &str, number: u64) {
        let namespace = ctx.namespace.as_str();
        let forgotten = self.db.write(|tx| match table::get(tx, namespace, &self.name, name)? {
            Some(record) if record.number == number => {
                crate::metadata::leases::release_for(tx, ctx, &format!("snapshots/{}", self.name), name)?;
                table::delete(tx, namespace, &self.name, &record)
            }
            _ => Ok(()),
        });
        if let Err(error) = forgotten {
            tracing::warn!(snapshotter = self.name, name, %error, "left the record of a snapshot that could not be flushed");
        }
    }

    /// Makes the directories again that a power failure took of snapshots which nobody was told of. It looks for them once
    /// after each start of the machine.
    pub(super) fn renew(&self) -> Result<()> {
        let boot = id::boot()?;
        if !self.driver.is_renewable() || self.db.read(|tx| table::boot(tx, &self.name))?.as_deref() == Some(&boot) {
            return Ok(());
        }
        let all = self.db.read(|tx| table::list_all(tx, &self.name))?;
        let fresh = all.iter().map(|(_, record)| record.fresh).max().filter(|fresh| *fresh > 0).unwrap_or(u64::MAX);
        for (namespace, record) in all.into_iter().filter(|(_, record)| record.number >= fresh) {
            let (number, info) = (record.number, record.info);
            // What layers are unpacked into means nothing any more, and goes with its lease.
            if !matches!(info.kind(), Kind::Active | Kind::View) || info.labels.contains_key(labels::SHORT_LIVED) {
                continue;
            }
            let namespace = Namespace::parse(&namespace).map_err(|error| Error::internal(error.to_string()));
            let renewed = namespace.map(Context::new).and_then(|ctx| {
                let parents = self.db.read(|tx| self.chain(tx, &ctx, &info.parent))?;
                self.driver.renew(number, info.kind(), &parents, &info.labels)?;
                self.driver.keep(number)
            });
            if let Err(error) = renewed {
                tracing::warn!(snapshotter = self.name, snapshot = info.name, %error, "a snapshot may have lost its files");
            }
        }
        self.db.write(|tx| table::set_boot(tx, &self.name, &boot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_fresh_until_it_is_given_back() {
        let all = Numbering::after(4);
        assert_eq!(all.lowest_fresh(), 5);
        let (five, six) = (all.take(), all.take());
        assert_eq!((five.number, six.number, all.lowest_fresh()), (5, 6, 5));
        drop(five);
        assert_eq!(all.lowest_fresh(), 6);
        drop(six);
        assert_eq!(all.lowest_fresh(), 7);
    }
}
