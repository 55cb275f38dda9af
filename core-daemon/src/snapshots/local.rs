//! Snapshot records in the metadata, over a driver that keeps the files.
//!
//! Files come first and go last: a directory is made before its record is written and removed after its record is
//! gone, so a crash leaves at most a directory without a record, which `cleanup` removes. See `create` for what a power
//! failure may leave besides.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_proto::containerd::events::SnapshotRemove;

use tokio::sync::Semaphore;

use super::busy::{Busy, Numbers};
use super::commit::chosen_parent;
use super::create::New;
use super::fresh::{Flusher, Numbering};
use super::{Driver, Info, Kind, Layer, Mount, Snapshotter, Unpacking, Usage, mounted};
use crate::blocking::each;
use crate::context::Context;
use crate::error::{Doing, Error, Kind as ErrorKind, Result};
use crate::events::Events;
use crate::failpoint;
use crate::labels::{self, Labels};
use crate::metadata::snapshots::{self as table, Record};
use crate::metadata::{Db, Tx, WriteTx, leases};

/// Longest snapshot name.
const MAX_KEY: usize = 4096;
/// Snapshots whose files are removed at once, before whoever removes one more waits for it.
const REMOVALS: usize = 8;

/// A snapshotter whose files are on this machine.
pub struct Local<D> {
    pub(super) name: String,
    pub(super) driver: Arc<D>,
    pub(super) db: Db,
    pub(super) events: Events,
    pub(super) numbering: Arc<Numbering>,
    pub(super) flusher: Option<Flusher>,
    busy: Numbers,
    /// How many may be removed beside what goes on.
    removals: Arc<Semaphore>,
}

impl<D: Driver> Local<D> {
    /// Keeps records as those of the snapshotter `name`.
    ///
    /// # Errors
    /// When records or directories cannot be read.
    pub fn open(name: &str, driver: D, db: Db, events: Events) -> Result<Self> {
        let (recorded, recent) = db.read(|tx| table::recent(tx, name))?;
        let highest = numbers(&driver)?.into_iter().fold(recorded, u64::max);
        let (driver, name, numbering) = (Arc::new(driver), name.to_owned(), Numbering::after(highest));
        let (busy, removals) = (Numbers::default(), Arc::new(Semaphore::new(REMOVALS)));
        let flusher = Flusher::start(&driver)?;
        let it = Self { name, driver, db, events, numbering, flusher, busy, removals };
        if let Err(error) = it.renew(recent) {
            tracing::error!(snapshotter = it.name, %error, "what a power failure took of new snapshots is not made again");
        }
        Ok(it)
    }

    /// Keeps others from committing or removing a snapshot.
    pub(super) fn take(&self, number: u64, key: &str) -> Result<Busy> {
        let busy = self.busy.take(number);
        busy.ok_or_else(|| Error::unavailable(format!("snapshot {key}: is being made, committed or removed")))
    }

    pub(super) fn find(&self, tx: &impl Tx, ctx: &Context, key: &str) -> Result<Record> {
        table::get(tx, ctx.namespace.as_str(), &self.name, key)?
            .ok_or_else(|| Error::not_found(format!("snapshot {key} does not exist")))
    }

    /// What `parent`, if there is one, is recorded as. As long as it is there, its ancestors are.
    pub(super) fn parent(&self, tx: &impl Tx, ctx: &Context, parent: &str) -> Result<Option<Record>> {
        if parent.is_empty() {
            return Ok(None);
        }
        let record = table::get(tx, ctx.namespace.as_str(), &self.name, parent)?
            .ok_or_else(|| Error::not_found(format!("parent snapshot {parent} does not exist")))?;
        if record.info.kind() != Kind::Committed {
            return Err(Error::invalid(format!("parent {parent} is not a committed snapshot")));
        }
        Ok(Some(record))
    }

    /// The numbers of `parent` and its ancestors, newest first.
    pub(super) fn chain(&self, tx: &impl Tx, ctx: &Context, parent: &str) -> Result<Vec<u64>> {
        let mut chain = Vec::new();
        let mut next = self.parent(tx, ctx, parent)?;
        while let Some(record) = next {
            chain.push(record.number);
            next = self.parent(tx, ctx, &record.info.parent)?;
        }
        Ok(chain)
    }

    /// Puts what a caller is told exists already under its lease, so that it can go on with it.
    pub(super) fn hold_existing(&self, ctx: &Context, key: &str, labels: &Labels) -> Result<()> {
        if ctx.lease.is_none() {
            return Ok(());
        }
        let candidates = [labels.get(labels::SNAPSHOT_REF).map(String::as_str), Some(key)];
        leases::change(&self.db, ctx, |tx| {
            for name in candidates.into_iter().flatten() {
                if table::get(tx, ctx.namespace.as_str(), &self.name, name)?.is_some() {
                    return self.hold_for(tx, ctx, name);
                }
            }
            Ok(())
        })
    }

    /// What clients see of a record.
    fn shown(&self, record: Record) -> Info {
        let mut info = record.info;
        let added = self.driver.labels(record.number, info.kind());
        for (key, value) in added {
            info.labels.entry(key).or_insert(value);
        }
        info
    }

    pub(super) fn hold_for(&self, tx: &WriteTx, ctx: &Context, key: &str) -> Result<()> {
        leases::hold_for(tx, ctx, &format!("snapshots/{}", self.name), key)
    }

    /// Removes the files of a number. What cannot be removed now waits for `cleanup`.
    pub(super) fn discard(&self, number: u64) -> bool {
        discard(self.driver.as_ref(), &self.name, number)
    }

    /// Removes the files of a number beside what its caller does next, where that is possible and there are not too many.
    /// Where its record was removed soon, that is flushed before: one that comes back has to find its files.
    fn discard_beside(&self, busy: Busy, soon: Option<u64>) {
        let (db, driver, name) = (self.db.clone(), self.driver.clone(), self.name.clone());
        let number = busy.number;
        let work = move || match soon.map_or(Ok(()), |before| db.flush(before)) {
            Ok(()) => drop(discard(driver.as_ref(), &name, number)),
            Err(error) => warn_left(&name, number, &error),
        };
        let place = self.removals.clone().try_acquire_owned();
        let (Ok(runtime), Ok(place)) = (tokio::runtime::Handle::try_current(), place) else {
            return work();
        };
        runtime.spawn_blocking(move || {
            work();
            failpoint::hit("snapshot.removed");
            drop((busy, place));
        });
    }
}

impl<D: Driver> Snapshotter for Local<D> {
    fn stat(&self, ctx: &Context, key: &str) -> Result<Info> {
        self.db.read(|tx| self.find(tx, ctx, key)).map(|record| self.shown(record))
    }

    fn prepare(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        // What is to be removed soon is made with something of its own that is recorded to last: that takes it along.
        let lasting = !labels.contains_key(labels::SHORT_LIVED);
        self.create(ctx, New { kind: Kind::Active, key, parent, lasting, layer: false }, labels)
    }

    fn view(&self, ctx: &Context, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.create(ctx, New { kind: Kind::View, key, parent, lasting: true, layer: false }, labels)
    }

    fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>> {
        let (record, kind, parents) = self.db.read(|tx| {
            let record = self.find(tx, ctx, key)?;
            let kind = record.info.kind();
            if !matches!(kind, Kind::Active | Kind::View) {
                return Err(Error::precondition(format!(
                    "snapshot {key} is neither active nor a view: it has no mounts"
                )));
            }
            let parents = self.chain(tx, ctx, &record.info.parent)?;
            Ok((record, kind, parents))
        })?;
        self.driver.mounts(record.number, kind, &parents, &record.info.labels)
    }

    fn commit(&self, ctx: &Context, name: &str, key: &str, labels: Labels, parent: Option<&str>) -> Result<()> {
        check_key(name)?;
        labels::check(&labels)?;
        let record = match self.db.read(|tx| self.committable(tx, ctx, name, key)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.hold_existing(ctx, name, &Labels::new())?;
                return Err(error);
            }
            other => other?,
        };
        let parent = chosen_parent(&record.info, parent)?;
        if record.info.parent != parent && !self.driver.capabilities().iter().any(|name| name == super::REBASE) {
            let text =
                format!("snapshot {key} was made without a parent, and snapshotter {} cannot give it one", self.name);
            return Err(Error::precondition(text));
        }
        let parents = self.db.read(|tx| self.chain(tx, ctx, &parent))?;
        let _busy = self.take(record.number, key)?;
        let made = self.driver.commit(record.number, &parents, &labels);
        made.and_then(|()| self.driver.flush(record.number, &record.info.labels))
            .doing(|| format!("commit snapshot {key}"))?;
        let usage = self.driver.usage(record.number)?;
        let layer = Layer { name: name.to_owned(), key: key.to_owned(), parent, labels };
        self.db.write(|tx| self.commit_one(tx, ctx, &layer, usage))?;
        self.numbering.settle(record.number);
        self.driver.committed(record.number);
        self.announce_commit(ctx, &layer);
        Ok(())
    }

    fn prepare_layer(&self, ctx: &Context, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let new = New { kind: Kind::Active, key, parent, lasting: false, layer: true };
        self.create(ctx, new, Labels::new())
    }

    fn commit_layers(&self, ctx: &Context, layers: &[Layer]) -> Result<()> {
        let (busy, usages): (Vec<_>, Vec<_>) = each(layers, |_, layer| {
            let record = self.db.read(|tx| self.find(tx, ctx, &layer.key))?;
            let busy = self.take(record.number, &layer.key)?;
            self.driver.commit(record.number, &[], &layer.labels)?;
            Ok((busy, self.driver.usage(record.number)?))
        })?
        .into_iter()
        .unzip();
        let spare = self.db.write(|tx| {
            let mut spare = Vec::new();
            for (layer, usage) in layers.iter().zip(usages) {
                match self.commit_one(tx, ctx, layer, usage) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        self.hold_for(tx, ctx, &layer.name)?;
                        if !self.replace_damaged(tx, ctx, layer, usage)? {
                            // Somebody else unpacked it meanwhile.
                            spare.push(layer.key.clone());
                        }
                    }
                    other => other?,
                }
            }
            Ok(spare)
        })?;
        busy.iter().for_each(|busy| self.driver.committed(busy.number));
        drop(busy);
        layers.iter().filter(|layer| !spare.contains(&layer.key)).for_each(|layer| self.announce_commit(ctx, layer));
        spare.iter().try_for_each(|key| self.remove(ctx, key))
    }

    fn remove_with(
        &self,
        ctx: &Context,
        key: &str,
        soon: bool,
        also: &mut dyn FnMut(&WriteTx) -> Result<()>,
    ) -> Result<()> {
        let namespace = ctx.namespace.as_str();
        let number = self.db.read(|tx| self.find(tx, ctx, key))?.number;
        let busy = self.take(number, key)?;
        let before = soon.then(|| self.db.undone());
        self.db.write_or_soon(soon, |tx| {
            let record = self.find(tx, ctx, key)?;
            if record.number != number {
                return Err(Error::unavailable(format!("snapshot {key}: was replaced meanwhile")));
            }
            if table::has_children(tx, namespace, &self.name, key)? {
                return Err(Error::precondition(format!("cannot remove snapshot {key}: it is a parent of others")));
            }
            table::delete(tx, namespace, &self.name, &record)?;
            leases::release_for(tx, ctx, &format!("snapshots/{}", self.name), key)?;
            also(tx)
        })?;
        failpoint::hit("snapshot.removing");
        self.discard_beside(busy, before);
        let event = SnapshotRemove { key: key.into(), snapshotter: self.name.clone() };
        self.events.announce(&ctx.namespace, "/snapshot/remove", &event);
        Ok(())
    }

    fn list(&self, ctx: &Context) -> Result<Vec<Info>> {
        let records = self.db.read(|tx| table::list(tx, ctx.namespace.as_str(), &self.name))?;
        Ok(records.into_iter().map(|record| self.shown(record)).collect())
    }

    fn usage(&self, ctx: &Context, key: &str) -> Result<Usage> {
        let record = self.db.read(|tx| self.find(tx, ctx, key))?;
        match record.info.kind() {
            Kind::Active => self.driver.usage(record.number),
            _ => Ok(Usage { size: record.size, inodes: record.inodes }),
        }
    }

    fn update(&self, ctx: &Context, info: Info, mask: &[String]) -> Result<Info> {
        self.db.write(|tx| {
            let mut record = self.find(tx, ctx, &info.name)?;
            labels::update(&mut record.info.labels, &info.labels, mask, |path| {
                Err(Error::invalid(format!("cannot update field {path:?} of snapshot {}", info.name)))
            })?;
            record.info.updated_at = Some(SystemTime::now().into());
            table::put(tx, ctx.namespace.as_str(), &self.name, &record)?;
            Ok(self.shown(record))
        })
    }

    fn cleanup(&self) -> Result<usize> {
        let orphans = self.orphans()?;
        let mounted = if orphans.is_empty() { HashSet::new() } else { mounted::numbers(self.driver.root()) };
        let (running, gone): (Vec<u64>, Vec<u64>) = orphans.into_iter().partition(|number| mounted.contains(number));
        let left = gone.into_iter().filter(|number| !self.discard(*number)).count();
        if !running.is_empty() {
            tracing::warn!(snapshotter = self.name, ?running, "snapshots without a record are mounted, and are left");
        }
        self.driver.cleanup()?;
        Ok(left)
    }

    fn orphans(&self) -> Result<Vec<u64>> {
        // Directories are listed before the records are read: one on the list without a record is busy or an orphan.
        let found = numbers(self.driver.as_ref())?;
        let mut orphans: Vec<u64> = {
            let mut busy = self.busy.now();
            let records = self.db.read(|tx| table::list_all(tx, &self.name))?;
            busy.extend(self.busy.now());
            let known: HashSet<u64> = records.iter().map(|(_, record)| record.number).collect();
            found.into_iter().filter(|number| !known.contains(number) && !busy.contains(number)).collect()
        };
        // Children have higher numbers than what they were made on, and a driver may insist on their order.
        orphans.sort_unstable_by(|one, other| other.cmp(one));
        Ok(orphans)
    }

    fn damage(&self, number: u64, kind: Kind) -> Option<String> {
        self.driver.damage(number, kind)
    }

    fn is_whole(&self, ctx: &Context, name: &str) -> Result<bool> {
        let record = self.db.read(|tx| table::get(tx, ctx.namespace.as_str(), &self.name, name))?;
        Ok(record.is_some_and(|it| it.info.kind() == Kind::Committed && !self.driver.is_lost(it.number)))
    }

    fn hold(&self, ctx: &Context, name: &str) -> Result<bool> {
        leases::change(&self.db, ctx, |tx| match table::get(tx, ctx.namespace.as_str(), &self.name, name)? {
            Some(record) if record.info.kind() == Kind::Committed => self.hold_for(tx, ctx, name).map(|()| true),
            _ => Ok(false),
        })
    }

    fn unpacking(&self) -> Unpacking {
        self.driver.unpacking()
    }

    fn root(&self) -> Option<PathBuf> {
        Some(self.driver.root().to_owned())
    }

    fn close(&self) {
        self.driver.close();
    }

    fn capabilities(&self) -> Vec<String> {
        self.driver.capabilities()
    }

    fn exports(&self) -> BTreeMap<String, String> {
        self.driver.exports()
    }
}

pub(super) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("snapshot: its key must not be empty"));
    }
    if key.len() > MAX_KEY || key.contains('\0') {
        return Err(Error::invalid(format!("snapshot: its key must be at most {MAX_KEY} bytes without NUL")));
    }
    Ok(())
}

/// Whether the files of a number are gone.
fn discard(driver: &impl Driver, name: &str, number: u64) -> bool {
    driver.remove(number).inspect_err(|error| warn_left(name, number, error)).is_ok()
}

fn warn_left(snapshotter: &str, number: u64, error: &Error) {
    tracing::warn!(snapshotter, number, %error, "left a removed snapshot's files for the next cleanup");
}

/// The numbers that have a directory.
fn numbers(driver: &impl Driver) -> Result<Vec<u64>> {
    let dir = driver.root().join("snapshots");
    let entries = std::fs::read_dir(&dir).doing(|| format!("list {}", dir.display()))?;
    let number = |name: &str| name.parse().ok().filter(|number: &u64| number.to_string() == name);
    Ok(entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
}
